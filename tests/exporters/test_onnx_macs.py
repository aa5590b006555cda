"""MACs against counts made by hand."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from exporters._onnx_macs import count_macs
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


def test_shapes_that_the_graph_computes(tmp_path: Path) -> None:
    """Positions as Range over the sequence's own length: plain inference knows no shape here."""

    def value(name: str, kind: int, shape: list[int | str]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    table = helper.make_tensor("table", TensorProto.FLOAT, [64, 8], [0.0] * 512)
    weight = helper.make_tensor("w", TensorProto.FLOAT, [8, 4], [0.0] * 32)
    scalars = [helper.make_tensor(n, TensorProto.INT64, [], [i]) for i, n in enumerate("ab")]
    nodes = [
        helper.make_node("Shape", ["tokens"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "b"], ["steps"]),
        helper.make_node("Range", ["a", "steps", "b"], ["positions"]),
        helper.make_node("Gather", ["table", "positions"], ["rows"]),
        helper.make_node("MatMul", ["rows", "w"], ["y"]),
    ]
    tokens = value("tokens", TensorProto.INT64, ["batch", "steps"])
    outputs = [value("y", TensorProto.FLOAT, ["steps", 4])]
    graph = helper.make_graph(nodes, "g", [tokens], outputs, [table, weight, *scalars])
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets), tmp_path / "t.onnx")
    assert count_macs(tmp_path / "t.onnx", {"steps": 20}) == 20 * 8 * 4
