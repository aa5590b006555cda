"""Rewrites for integer kernels: the numbers stay."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compressor.quantization.lowering import lower
from compressor.quantization.onnx_index import index
from compressor.quantization.onnx_static import quantize
from exporters._onnx_graph import normalise
from exporters._schemes import ONNXRUNTIME
from exporters.base import Keep
from tests import models
from tests.compressor.quantization.helpers import apply, executed, prepared, sqnr_db
from tests.compressor.quantization.test_schemes import engine
from tests.net import Net


def transposed(kernel: int, **attributes: object) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(3, 5, kernel, kernel)), "b": rng.normal(size=5)}
    tensors = [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()]
    node = helper.make_node("ConvTranspose", ["x", "w", "b"], ["y"], name="up", **attributes)
    values = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 6, 7]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 5, "h", "w_out"]),
    ]
    graph = helper.make_graph([node], "g", values[:1], values[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize(
    ("kernel", "attributes"),
    [
        (2, {"strides": [2, 2]}),
        (4, {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
        (4, {"strides": [2, 2], "pads": [0, 1, 2, 1]}),
        (4, {"strides": [4, 4], "pads": [2, 2, 2, 2], "output_padding": [1, 0]}),
        (3, {}),
        (3, {"pads": [1, 1, 1, 1]}),
    ],
)
def test_a_transposed_convolution_becomes_a_convolution(kernel, attributes):
    model = transposed(kernel, **attributes)
    feeds = {"x": np.random.default_rng(1).normal(size=(2, 3, 6, 7)).astype(np.float32)}
    want = models.run(model, feeds)["y"]
    assert lower(model, index(model), set()) == ["up"]
    onnx.checker.check_model(model)
    assert "ConvTranspose" not in {node.op_type for node in model.graph.node}
    np.testing.assert_allclose(models.run(model, feeds)["y"], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kernel", "attributes"),
    [(3, {"strides": [2, 2]}), (2, {"dilations": [2, 2]}), (2, {"output_padding": [1, 1]})],
)
def test_one_that_would_cost_more_weights_or_is_not_plain_stays(kernel, attributes):
    if "output_padding" in attributes:
        attributes = {**attributes, "strides": [2, 2]}
    model = transposed(kernel, **attributes)
    assert lower(model, index(model), set()) == []


def test_what_is_kept_is_left_alone():
    model = transposed(2, strides=[2, 2])
    assert lower(model, index(model), {"up"}) == []


def test_a_unet_runs_in_integers_up_and_down(tmp_path):
    given = prepared(tmp_path, "unet")
    made = apply(tmp_path, given, "quantize_static")
    ran = executed(made)
    assert not {"Conv", "ConvTranspose", "Concat", "FusedConv"} & set(ran)
    assert ran["QLinearConcat"] == 1
    assert sqnr_db(given, made) > 30


def dense(rank: int = 2) -> onnx.ModelProto:
    """Two layers as Keras exports them: MatMul, Add of a row, Relu."""
    net = Net(0)
    x = net.op("Relu", net.linear("features", "fc1", 64, 32), name="relu1")
    x = net.op("Relu", net.linear(x, "fc2", 32, 32), name="relu2")
    if rank > 2:
        x = net.op("ReduceMean", x, net.constant("time", [1], np.int64), name="mean", keepdims=0)
    shape = ["batch", *(["time"] * (rank - 2)), 64]
    return net.classifier(net.gemm(x, "head", 32, 10), features=shape)


def test_a_product_with_a_row_added_becomes_a_gemm():
    model = dense()
    feeds = models.feeds(model, 4)
    want = models.run(model, feeds)["logits"]
    assert lower(model, index(model), set()) == ["fc1", "fc2"]
    onnx.checker.check_model(model)
    assert not {"MatMul", "Add"} & {node.op_type for node in model.graph.node}
    np.testing.assert_allclose(models.run(model, feeds)["logits"], want, rtol=1e-5, atol=1e-5)


def test_one_over_tokens_stays_and_so_does_what_is_kept():
    model = dense(rank=3)
    assert lower(model, index(model), set()) == []
    model = dense()
    assert lower(model, index(model), {"fc1", "fc2.add"}) == []


def test_dense_layers_run_in_integers(tmp_path):
    model, _ = normalise(dense())
    data = lambda: iter([models.feeds(model, 32)])  # noqa: E731
    made = quantize(model, ONNXRUNTIME, Keep(), data).model
    session, ran = engine(made, tmp_path)
    assert ran["QGemm"] == 3
    assert not {"Gemm", "FusedGemm", "DequantizeLinear"} & set(ran)
    feeds = models.feeds(model, 32, seed=1)
    a, b = models.run(model, feeds)["logits"], session.run(None, feeds)[0]
    assert 10 * np.log10((a**2).sum() / ((a - b) ** 2).sum()) > 30
