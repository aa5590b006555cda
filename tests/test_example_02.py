"""The second example: a real CMake build, the pipelines' commands, the pytest fixture."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

EXAMPLE = Path(__file__).parent.parent / "examples" / "02_build_systems"
BIN = Path(sys.executable).parent


def run(
    *command: str | Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    path = {"PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [str(part) for part in command],
        env=os.environ | path | (env or {}),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with model.onnx, calib.npz and eval.npz."""
    folder = tmp_path_factory.mktemp("model")
    done = run(sys.executable, EXAMPLE / "make_model.py", folder)
    if "FileNotFoundError: Fashion-MNIST" in done.stderr:
        pytest.skip("Fashion-MNIST is not on this machine: apt-get install dataset-fashion-mnist")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def environment(tmp_path):
    """A store of its own, and this project's command for CMake to find."""
    command = tmp_path / "compress"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m compressor "$@"\n')
    command.chmod(0o755)
    root = str(EXAMPLE.parent.parent)
    return {"COMPRESS_HOME": str(tmp_path / "store"), "PYTHONPATH": root}


def configure(made, tmp_path, environment, **settings):
    if shutil.which("cmake", path=f"{BIN}:{os.environ['PATH']}") is None:
        pytest.skip("CMake is not installed")
    settings = {"MODEL_DIR": made, "COMPRESS_EXECUTABLE": tmp_path / "compress", **settings}
    flags = [f"-D{name}={value}" for name, value in settings.items()]
    done = run("cmake", "-S", EXAMPLE / "cmake", "-B", tmp_path / "build", *flags, env=environment)
    assert done.returncode == 0, done.stderr
    return lambda: run("cmake", "--build", tmp_path / "build", env=environment)


@pytest.mark.slow
def test_cmake_builds_once(made, tmp_path, environment):
    build = configure(made, tmp_path, environment)
    first = build()
    assert first.returncode == 0, first.stdout + first.stderr
    assert "Compressing classifier" in first.stdout
    record = tmp_path / "build" / "classifier" / "run.json"
    (shipped,) = (record.parent / "onnxruntime").glob("*.onnx")
    before = record.stat().st_mtime_ns, shipped.read_bytes()
    second = build()
    assert second.returncode == 0
    assert "Compressing" not in second.stdout
    assert (record.stat().st_mtime_ns, shipped.read_bytes()) == before


@pytest.mark.slow
def test_cmake_builds_again_when_an_input_changed(made, tmp_path, environment):
    inputs = tmp_path / "inputs"
    shutil.copytree(made, inputs)
    build = configure(inputs, tmp_path, environment)
    assert build().returncode == 0
    (inputs / "calib.npz").write_bytes((inputs / "calib.npz").read_bytes())
    touched = build()  # a newer date, the same content: asked, and answered at once
    assert "Compressing classifier" in touched.stdout
    assert "up to date" in touched.stdout + touched.stderr


@pytest.mark.slow
def test_a_failed_gate_fails_the_build_every_time(made, tmp_path, environment):
    build = configure(made, tmp_path, environment, GATES="size_reduction>=99%")
    for _ in range(2):
        done = build()
        assert done.returncode != 0
        assert "size_reduction" in done.stdout + done.stderr


@pytest.mark.slow
def test_the_pytest_fixture(made, environment):
    env = environment | {"MODEL_DIR": str(made), "PYTEST_ADDOPTS": ""}
    here = EXAMPLE / "pytest"
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", here, here]
    done = run(*command, "-p", "no:cacheprovider", env=env)
    assert "3 passed" in done.stdout, done.stdout


@pytest.mark.parametrize("name", ["github-workflow.yml", "gitlab-ci.yml"])
def test_pipelines_call_the_command_as_it_is(name):
    from compressor.cli import build_parser

    text = (EXAMPLE / name).read_text()
    assert yaml.safe_load(text)
    commands = re.findall(r"^\s+(?:run:|-) (compress .*)$", text, re.MULTILINE)
    assert commands
    for command in commands:
        args = build_parser().parse_args(shlex.split(command)[1:])
        assert args.verb == "run"
        assert args.out in text


def test_pipelines_use_files_that_a_run_writes():
    from compressor import output

    written = output.__doc__
    for name in ("github-workflow.yml", "gitlab-ci.yml"):
        for path in re.findall(r"\bout/([\w.]+)", (EXAMPLE / name).read_text()):
            assert path in written, f"{name}: {path}"
