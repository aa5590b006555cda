"""A search for mixed precision that is killed with SIGKILL: the next run goes on where it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import compressor
from compressor.judging import Judge
from compressor.quantization import search
from compressor.quantization.workbench_onnx import OnnxBench
from tests import models

ROLES = {"calibration": 64, "selection": 128, "evaluation": 128}
CHILD = """
import sys
from pathlib import Path
from tests.e2e.test_mixed_resume import searched
kill = (sys.argv[3], int(sys.argv[4])) if len(sys.argv) > 3 else None
searched(Path(sys.argv[1]), Path(sys.argv[2]), kill)
"""


def searched(model: Path, root: Path, kill: tuple[str, int] | None) -> None:
    """A run whose evaluations are written down once done; killed before the n-th of a kind."""
    log = root / "log"
    kinds: list[str] = []

    def logged(owner: Any, name: str, kind: str, what: Any) -> None:
        real = getattr(owner, name)

        def call(*args: Any, **more: Any) -> Any:
            told = what(*args)
            if told != {}:
                kinds.append(kind)
                if kill == (kind, kinds.count(kind)):
                    os.kill(os.getpid(), signal.SIGKILL)
            made = real(*args, **more)
            with log.open("a") as stream:
                stream.write(f"{kind} {json.dumps(told)}\n" if told != {} else "")
            return made

        setattr(owner, name, call)

    # times differ from run to run: here they say that INT8 pays
    search.speedup, search.profiled = (lambda *_: 1.5), (lambda *_: [])  # type: ignore[assignment]
    logged(search, "speedup", "time", lambda _, made, __: made.digest())
    logged(search, "build", "build", lambda *args: dict(args[2]))
    logged(OnnxBench, "outputs", "damage", lambda _, assign: dict(assign))
    logged(Judge, "_evaluate", "score", lambda _, artifact, *__: artifact.digest())
    steps = ["to_onnxruntime", {"quantize_mixed": {"samples": 16}}]
    recipe = {
        "metric": "top1",
        "targets": {"onnxruntime": {"steps": steps}},
        "measure": {"effort": "quick"},
        "gates": ["size_reduction>=50%", "relative_drop<=5%", "sqnr>=15dB", "speedup>=0.01"],
    }
    data = {
        role: models.fashion_like(n, seed=seed)
        for seed, (role, n) in enumerate(ROLES.items(), start=2)
    }
    made = compressor.compress(str(model), recipe, **data, out=root / "out", store=root / "store")
    (root / "digest").write_text(made.artifacts["onnxruntime"].digest())


def run(model: Path, root: Path, *kill: str) -> tuple[list[str], int]:
    """What a child evaluated, and how it ended."""
    root.mkdir(exist_ok=True)
    log = root / "log"
    log.unlink(missing_ok=True)
    ended = subprocess.run([sys.executable, "-c", CHILD, model, root, *kill], check=False)
    return sorted(log.read_text().splitlines()), ended.returncode


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    train = models.fashion_like(256, seed=1)
    path = tmp_path_factory.mktemp("model") / "net.onnx"
    return models.save(models.trained(models.convnet(width=24), train), path)


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], str]:
    """Evaluations and result of a search that nobody kills."""
    root = tmp_path_factory.mktemp("whole")
    done, code = run(model, root)
    assert code == 0
    return done, (root / "digest").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("kill", [("damage", "5"), ("build", "3"), ("score", "5")])
def test_a_killed_search_goes_on_without_repeating_an_evaluation(
    tmp_path: Path, model: Path, whole: tuple[list[str], str], kill: tuple[str, str]
) -> None:
    first, code = run(model, tmp_path, *kill)
    assert code == -signal.SIGKILL
    rest, code = run(model, tmp_path)
    assert code == 0
    assert sorted(first + rest) == whole[0]
    assert (tmp_path / "digest").read_text() == whole[1]
    kinds = [line.split()[0] for line in whole[0]]
    assert kinds.count("build") >= 3
    assert kinds.count("time") == 1
