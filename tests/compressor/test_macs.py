"""MACs against counts made by hand."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from compressor.macs import count_macs
from tests import models


def test_an_mlp(tmp_path: Path) -> None:
    path = models.save(models.mlp(), tmp_path / "mlp.onnx")
    sizes = [t.dims for t in onnx.load(path).graph.initializer if len(t.dims) == 2]
    assert count_macs(path, {}) == sum(a * b for a, b in sizes)


def test_a_grouped_convolution(tmp_path: Path) -> None:
    weight = helper.make_tensor("w", TensorProto.FLOAT, [8, 2, 3, 3], [0.0] * 144)
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=2, pads=[1, 1, 1, 1], strides=[2, 2])
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4, 10, 10])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [weight],
    )
    onnx.save(helper.make_model(graph), tmp_path / "c.onnx")
    assert count_macs(tmp_path / "c.onnx", {}) == 8 * 5 * 5 * 2 * 9


@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_layers_count_every_step(tmp_path: Path, kind: str, gates: int) -> None:
    hidden, inputs, steps = 8, 5, 20
    weights = [
        helper.make_tensor("w", TensorProto.FLOAT, [1, gates * hidden, inputs], [0.0] * gates * 40),
        helper.make_tensor("r", TensorProto.FLOAT, [1, gates * hidden, hidden], [0.0] * gates * 64),
    ]
    node = helper.make_node(kind, ["x", "w", "r"], ["y"], hidden_size=hidden)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["steps", 1, inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        weights,
    )
    graph.input[0].type.tensor_type.shape.dim[0].dim_value = steps
    onnx.save(helper.make_model(graph), tmp_path / "r.onnx")
    assert count_macs(tmp_path / "r.onnx", {}) == steps * gates * hidden * (inputs + hidden)
