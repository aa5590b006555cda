"""The command for TensorRT-RTX on a machine without a GPU: it compiles, and judges what it can."""

from __future__ import annotations

import os
from typing import Any

import pytest

from exporters._rtx_compile import missing
from runtimes.types import Artifact
from tests.e2e.conftest import ROOT, Bench

pytestmark = [
    pytest.mark.rtx,
    pytest.mark.skipif(bool(missing()), reason=missing() or "it is here"),
]


def test_int8_ships_as_a_plan_with_emulated_scores(bench: Bench) -> None:
    flags = ["run", "net.onnx", "--target", "tensorrt_rtx", "-o", "rtx", "--effort", "quick"]
    flags += ["--calibration", "calib.npz", "--evaluation", "eval.npz", "--metric", "top1"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = bench.compress(*flags, env={"PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    (target,) = bench.record("rtx")["targets"]
    assert target["shipped"] == "int8"
    chosen: dict[str, Any] = next(c for c in target["candidates"] if c["name"] == "int8")
    assert chosen["score"]["status"] == "emulated"
    assert {c["state"] for c in chosen["checks"] if "speedup" in c["gate"]} == {"not_judged"}
    artifact = Artifact.load(bench.folder / "rtx" / "tensorrt_rtx")
    assert artifact.format == "tensorrt_rtx"
    assert "model.rtx.plan" in artifact.files
    assert chosen["size_bytes"] == artifact.path.stat().st_size
