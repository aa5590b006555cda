"""The adapter against a real binding: TensorRT-RTX builds without a GPU, where it is installed."""

from __future__ import annotations

from importlib import util
from pathlib import Path
from typing import Any

import onnx
import pytest

from runtimes.trt import api, probe
from runtimes.trt.child import run_child
from runtimes.trt.errors import TrtError
from tests import models
from tests.runtimes.trt import board
from tests.runtimes.trt.test_main import quantized_away

pytestmark = pytest.mark.skipif(
    not any(util.find_spec(name) for name in api.MODULES["tensorrt_rtx"]),
    reason="TensorRT-RTX is not installed: pip install edge-compressor[tensorrt-rtx]",
)
PROFILE = {"min": [1, 1, 28, 28], "opt": [4, 1, 28, 28], "max": [8, 1, 28, 28]}


def job(tmp_path: Path, model: onnx.ModelProto, **changes: Any) -> dict[str, Any]:
    onnx.save(model, tmp_path / "model.onnx")
    made = {
        "api": "tensorrt_rtx",
        "model": str(tmp_path / "model.onnx"),
        "engine": str(tmp_path / "model.rtx.plan"),
        "precision": "fp32",
        "inputs": [{"name": "image", "shape": board.SHAPE, **PROFILE}],
        "builder": {"workspace_bytes": 1 << 28, "optimization_level": 3, "detailed": True},
        "timing_cache": str(tmp_path / "timing.cache"),
    }
    return made | changes


@pytest.mark.parametrize("kind", ["fp32", "int8"])
def test_it_builds(kind: str, tmp_path: Path) -> None:
    model = models.convnet() if kind == "fp32" else board.quantized_convnet()
    told = run_child("build", job(tmp_path, model, precision=kind), time_limit_s=120)
    assert told["seconds"] > 0
    assert (tmp_path / "model.rtx.plan").read_bytes()[:4] == b"vtrt"


def test_what_it_refuses_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrtError, match=r"bad\.conv") as caught:
        run_child("build", job(tmp_path, quantized_away()), time_limit_s=120)
    assert caught.value.exit_code == 5
    with pytest.raises(TrtError, match="free dimensions without a profile"):
        run_child("build", job(tmp_path, models.convnet(), inputs=[]), time_limit_s=120)
    assert not (tmp_path / "model.rtx.plan").exists()


def test_a_flag_it_cannot_serve_here_is_told(tmp_path: Path) -> None:
    """Version-compatible plans need a library that is not in the wheel."""
    builder = {"version_compatible": True}
    with pytest.raises(TrtError, match="the builder gave up"):
        run_child("build", job(tmp_path, models.convnet(), builder=builder), time_limit_s=120)


def test_running_needs_a_driver(tmp_path: Path) -> None:
    if probe.why_no_gpu() is None:
        pytest.skip("there is a GPU: tests marked gpu run it")
    asked = {"api": "tensorrt_rtx", "gpu": 0}
    with pytest.raises(TrtError, match="no NVIDIA driver") as caught:
        run_child("validate", asked, quiet=True)
    assert caught.value.exit_code == 4
