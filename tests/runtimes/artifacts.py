"""Artifact folders around the models of `tests.models`."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import ModelProto, helper

from runtimes.types import Artifact, TensorSpec


def artifact_of(model: ModelProto, root: Path, kind: str = "onnxruntime") -> Artifact:
    root.mkdir(parents=True)
    onnx.save(model, root / "model.onnx")
    inputs = [_spec(value) for value in model.graph.input]
    outputs = [_spec(value) for value in model.graph.output]
    return Artifact.write(root, kind, "model.onnx", inputs, outputs)


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    dims = tuple(d.dim_param or d.dim_value for d in tensor.shape.dim)
    return TensorSpec(value.name, str(dtype), dims)
