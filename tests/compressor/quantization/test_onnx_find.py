"""Weights are found wherever they stand, and what they were is what the stored file computes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compressor.quantization.onnx_find import find_weights, hoist_weights
from compressor.quantization.onnx_index import index
from tests import models
from tests.net import Net


def found(model: onnx.ModelProto, least: int = 256) -> dict[str, int]:
    """Tensor name → axis of its output channels."""
    return {w.tensor.name: w.axis for w in find_weights(index(model), least, set())}


def linear(form: str) -> onnx.ModelProto:
    """One product whose weight is written down in an unusual way."""
    net = Net(0)
    shape = (32, 24) if form in {"transposed", "left"} else (24, 32)
    w = net.weight("w", *shape)
    if form == "transposed":
        w = net.op("Transpose", w, name="turn", perm=[1, 0])
    if form == "identity":
        w = net.op("Identity", w, name="same")
    if form == "reshaped":
        net.weights[-1] = numpy_helper.from_array(
            numpy_helper.to_array(net.weights[-1]).reshape(4, 6, 32), "w"
        )
        w = net.op("Reshape", w, net.constant("size", [24, 32], np.int64), name="flat")
    if form == "left":
        x = net.op("Transpose", "x", name="columns", perm=[1, 0])
        y = net.op("MatMul", w, x, name="product")
        y = net.op("Transpose", y, name="rows", perm=[1, 0])
    elif form == "einsum":
        y = net.op("Einsum", "x", w, name="product", equation="bk,kn->bn")
    else:
        y = net.op("MatMul", "x", w, name="product")
    return net.model({"x": ["batch", 24]}, {"y": (y, ["batch", 32])})


@pytest.mark.parametrize(
    ("form", "axis"),
    [("transposed", 0), ("identity", 1), ("reshaped", 2), ("left", 0), ("einsum", 1)],
)
def test_behind_what_it_stands(form, axis):
    assert found(linear(form)) == {"w": axis}


def test_a_positional_embedding_that_is_added():
    net = Net(0)
    y = net.op("Add", "x", net.weight("positions", 1, 64, 32), name="placed")
    shape = ["batch", 64, 32]
    assert "positions" in found(net.model({"x": shape}, {"y": (y, shape)}))


def test_a_tied_embedding_has_one_entry():
    net = Net(0)
    table = net.weight("table", 100, 16)
    x = net.op("Gather", table, "ids", name="embedding")
    turned = net.op("Transpose", table, name="turn", perm=[1, 0])
    y = net.op("MatMul", x, turned, name="head")
    made = net.model(
        {"ids": ["batch", "time"]}, {"y": (y, ["batch", "time", 100])}, integers=["ids"]
    )
    (weight,) = find_weights(index(made), 256, set())
    assert (weight.axis, weight.node.name, len(weight.uses)) == (0, "head", 1)


def test_what_is_an_output_too_stays():
    model = linear("identity")
    model.graph.output.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [24, 32]))
    assert found(model) == {}


def test_kept_nodes_keep_their_weights():
    assert not find_weights(index(linear("transposed")), 256, {"product"})


def test_hoisting_changes_no_output():
    model = models.ALL["if_subgraph"]()
    feeds = models.feeds(model, 3)
    want = models.run(model, feeds)
    assert hoist_weights(model, 256) == 4
    assert hoist_weights(model, 256) == 0
    onnx.checker.check_model(model)
    got = models.run(model, feeds)
    for name, value in want.items():
        np.testing.assert_array_equal(value, got[name])
    assert len(found(model)) == 4
