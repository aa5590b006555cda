"""`python -m runtimes`: one JSON document on stdout, exit codes as everywhere."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from runtimes.arrays import read_arrays, write_arrays
from runtimes.types import Artifact
from tests import models
from tests.runtimes.artifacts import artifact_of


def runtimes(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "runtimes", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture
def mlp(tmp_path: Path) -> Artifact:
    return artifact_of(models.mlp(), tmp_path / "mlp")


def test_run_writes_the_outputs(mlp: Artifact, tmp_path: Path) -> None:
    feeds = models.feeds(models.mlp())
    write_arrays(tmp_path / "x.npz", feeds)
    done = runtimes("run", mlp.root, "--feeds", tmp_path / "x.npz", "--out", tmp_path / "y.npz")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outputs"]["logits"]["shape"] == [4, 10]
    expected = models.run(models.mlp(), feeds)["logits"]
    np.testing.assert_allclose(read_arrays(tmp_path / "y.npz")["logits"], expected, rtol=1e-4)


def test_bench_prints_percentiles_and_doubts(mlp: Artifact) -> None:
    done = runtimes("bench", mlp.root, "--seconds", 0.5, "--batch", 3)
    found = json.loads(done.stdout)
    assert found["latency"]["min_ms"] <= found["latency"]["p50_ms"] <= found["latency"]["p99_ms"]
    assert found["batch"] == 3
    assert isinstance(found["doubts"], list)


def test_facts_name_the_engines() -> None:
    assert "onnxruntime" in json.loads(runtimes("facts").stdout)["versions"]


def test_a_changed_artifact_is_not_run(mlp: Artifact, tmp_path: Path) -> None:
    mlp.path.write_bytes(mlp.path.read_bytes() + b"\0")
    done = runtimes("run", mlp.root, "--feeds", tmp_path / "x.npz", "--out", tmp_path / "y.npz")
    assert done.returncode == 7
    assert "changed after it was made" in done.stderr
    assert done.stdout == ""


def test_missing_feeds_are_a_usage_error(mlp: Artifact, tmp_path: Path) -> None:
    done = runtimes("run", mlp.root, "--feeds", tmp_path / "no.npz", "--out", tmp_path / "y.npz")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
