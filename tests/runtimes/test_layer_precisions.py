"""Precisions are read from the engine, under the source's node names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto

from runtimes.base import LayerPrecision, load_runtime
from runtimes.onnx_nodes import Node, merge_layers, read_nodes
from runtimes.types import Artifact
from tests import models
from tests.runtimes.artifacts import artifact_of

FLOATS = {"float32", "bfloat16", "float16"}


def quantized(model: ModelProto, folder: Path) -> Artifact:
    """INT8 Q/DQ around convolutions and Gemms, made by ONNX Runtime's own quantizer."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds = iter([models.feeds(model, batch=8)])

        def get_next(self) -> dict | None:
            return next(self.feeds, None)

    artifact = artifact_of(model, folder)
    quantize_static(
        artifact.path, artifact.path, Reader(), per_channel=True,
        op_types_to_quantize=["Conv", "Gemm"], activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8, extra_options={"ActivationSymmetric": True},
    )  # fmt: skip
    return Artifact.write(
        artifact.root, artifact.format, artifact.entry, artifact.inputs, artifact.outputs
    )


def layers(engine: str, artifact: Artifact, model: ModelProto) -> list[LayerPrecision]:
    module = load_runtime(engine)
    if module.missing():
        pytest.skip(module.missing())
    return module.layer_precisions(artifact, feeds=models.feeds(model))


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_quantized_convolution_ran_in_int8(engine: str, tmp_path: Path) -> None:
    model = models.convnet()
    found = layers(engine, quantized(model, tmp_path / "q"), model)
    convs = {name: one.precision for one in found for name in one.layers if "Conv" in one.op}
    assert convs["stem"] == convs["block.conv2"] == convs["conv3"] == "int8"
    assert any(one.time_ns for one in found)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_float_model_has_no_int8(engine: str, tmp_path: Path) -> None:
    model = models.convnet()
    found = layers(engine, artifact_of(model, tmp_path / "f"), model)
    by_name = {name: one.precision for one in found for name in one.layers}
    assert by_name["stem"] in FLOATS
    assert by_name["head"] in FLOATS
    assert "int8" not in by_name.values()


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_fused_layers_have_the_sources_names(engine: str, tmp_path: Path) -> None:
    model = models.convnet()
    found = layers(engine, artifact_of(model, tmp_path / "f"), model)
    stem = next(one for one in found if one.layer == "stem")
    assert "stem.relu" in stem.layers
    named = {name for one in found for name in one.layers}
    assert named >= {"stem", "block.conv1", "block.conv2", "head"}


def test_nodes_are_read_without_onnx(tmp_path: Path) -> None:
    model = models.convnet()
    nodes = read_nodes(artifact_of(model, tmp_path / "f").path)
    wanted = [(n.name, n.op_type, tuple(n.input), tuple(n.output)) for n in model.graph.node]
    assert [(n.name, n.op, n.inputs, n.outputs) for n in nodes] == wanted


def test_a_file_that_is_no_model_has_no_nodes(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(b"\x3a\xff\xff\xff\xff\x0fshort")
    assert read_nodes(path) == []


def test_engine_names_resolve_by_node_or_tensor() -> None:
    nodes = [Node("c", "Conv", ("x", "w"), ("t",)), Node("r", "Relu", ("t",), ("u",))]
    by_tensor = merge_layers([LayerPrecision("u_nchwc", "Conv", "float32")], nodes)
    by_node = merge_layers([LayerPrecision("c_token_7", "QLinearConv", "int8")], nodes)
    assert by_tensor[0].layers == by_node[0].layers == ("c", "r")
    alien = merge_layers([LayerPrecision("ReorderOutput", "ReorderOutput", "float32")], nodes)
    assert alien[0].layers == ()


def test_profiles_leave_nothing_behind(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = models.mlp()
    assert layers("onnxruntime", artifact_of(model, tmp_path / "m"), model)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    assert np.all([p.name in ("artifact.json", "model.onnx") for p in (tmp_path / "m").iterdir()])
