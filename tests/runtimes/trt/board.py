"""A bundle by the contract, and a machine that only seems to have a GPU and TensorRT."""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from exporters._trt_board import copy_board_files
from tests import models

HERE = Path(__file__).parent
SHAPE = ["batch", 1, 28, 28]


def quantized_convnet() -> onnx.ModelProto:
    """The common model with INT8 pairs on every Conv and Gemm, weights per channel, symmetric."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter([{"image": models.fashion_like(32)["image"]}])

        def get_next(self) -> Any:
            return next(self.left, None)

    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        models.save(models.convnet(), given)
        quantize_static(
            given,
            made,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["Conv", "Gemm"],
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
            },
        )
        return onnx.load(made)


def write_bundle(root: Path, model: onnx.ModelProto | None = None, **changes: Any) -> Path:
    """A TensorRT bundle in `root`, board files included; `changes` go into its trt.json."""
    root.mkdir(parents=True)
    model = quantized_convnet() if model is None else model
    onnx.save(model, root / "model.onnx")
    feeds = {"image": models.fashion_like(12, seed=3)["image"]}
    outputs = models.run(model, feeds)
    arrays = {f"in/{k}": v for k, v in feeds.items()} | {f"out/{k}": v for k, v in outputs.items()}
    np.savez(root / "reference.npz", **arrays)
    computing = [n for n in model.graph.node if n.op_type in ("Conv", "Gemm")]
    int8 = any(n.op_type == "QuantizeLinear" for n in model.graph.node)
    data = {
        "schema": 1,
        "status": "portable",
        "model": "model.onnx",
        "sha256": {name: digest(root / name) for name in ("model.onnx", "reference.npz")},
        "inputs": [
            {"name": "image", "dtype": "float32", "shape": SHAPE}
            | {"min": [1, 1, 28, 28], "opt": [4, 1, 28, 28], "max": [8, 1, 28, 28]}
        ],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 10]}],
        "precision": "int8" if int8 else "fp32",
        "layers": [
            {"name": n.name, "op": n.op_type, "precision": "int8" if int8 else "float32"}
            | {"macs": 1000, "reason": ""}
            for n in computing
        ],
        "requires": {"tensorrt": {"min": "10.3", "below": "12"}, "sm": [80, 86, 87, 89, 90, 110]}
        | {"sm_min": None, "jetpack": "6.1 or later", "opset": 21},
        "builder": {"workspace_bytes": 256 << 20, "optimization_level": 3, "detailed": True},
        "tolerance": {"sqnr_db": 30.0},
        "checks": [],
        "rtx": None,
    }
    (root / "trt.json").write_text(json.dumps(data | changes))
    copy_board_files(root)
    return root


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@functools.cache
def fake_machine() -> Path:
    """A folder with libcuda.so.1 and a package `tensorrt`; skips where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler, for a stand-in of the CUDA driver")
    root = Path(tempfile.mkdtemp(prefix="fake-gpu-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    source, library = HERE / "fake_cuda.c", root / "lib" / "libcuda.so.1"
    library.parent.mkdir()
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(HERE / "fake_tensorrt", root / "python" / "tensorrt", ignore=skip)
    return root


def environment(python: bool = True, **settings: str) -> dict[str, str]:
    """The environment of a process on that machine; nothing of ours is on its path."""
    root = fake_machine()
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "FAKE_TENSORRT")}
    kept |= {"LD_LIBRARY_PATH": str(root / "lib"), "OMP_NUM_THREADS": "1"}
    return kept | ({"PYTHONPATH": str(root / "python")} if python else {}) | settings
