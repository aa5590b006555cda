"""A real, fitted network, labelled data, and one finished run of the command for many tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import models

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Bench:
    """A folder with `net.onnx`, `calib.npz`, `eval.npz`, and the command run in it."""

    folder: Path

    def compress(
        self, *arguments: str, store: str = "store", env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """`compress …` in a process of its own."""
        return subprocess.run(
            [sys.executable, "-m", "compressor", *arguments],
            cwd=self.folder,
            env=self.environment(store) | (env or {}),
            capture_output=True,
            text=True,
            check=False,
        )

    def environment(self, store: str = "store") -> dict[str, str]:
        """Of every process: its own store, our packages, one thread."""
        return os.environ | {
            "COMPRESS_HOME": str(self.folder / store),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }

    def record(self, out: str) -> dict[str, Any]:
        """`run.json` of an output folder."""
        found: dict[str, Any] = json.loads((self.folder / out / "run.json").read_text())
        return found


RUN = (
    "run", "net.onnx", "--target", "onnxruntime",
    "--calibration", "calib.npz", "--evaluation", "eval.npz", "--metric", "top1",
    "--effort", "quick",
)  # fmt: skip
# Timing on a busy machine decides nothing here: these tests are about everything else.
UNTIMED = ("--gate", "speedup>=0.1")


def run_flags(out: str, *more: str) -> Sequence[str]:
    """The flags of the standard run into `out`."""
    return (*RUN, *UNTIMED, "-o", out, *more)


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("e2e")
    fitted = models.trained(models.convnet(), models.fashion_like(2000, seed=0))
    models.save(fitted, folder / "net.onnx")
    np.savez(folder / "calib.npz", image=models.fashion_like(200, seed=1)["image"])
    np.savez(folder / "eval.npz", **models.fashion_like(1000, seed=2))
    return Bench(folder)


@pytest.fixture(scope="session")
def finished(bench: Bench) -> dict[str, Any]:
    """The record of a finished run in `out`, with a gate that the first candidate can pass.

    The next one is a search that chooses by measured times, which do not repeat.
    """
    done = bench.compress(*run_flags("out", "--max-drop", "0.2"))
    assert done.returncode == 0, done.stdout + done.stderr
    return bench.record("out")
