"""Rewrites for integer kernels: the numbers stay."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compressor.quantization.lowering import lower
from compressor.quantization.onnx_index import index
from tests import models
from tests.compressor.quantization.helpers import apply, executed, prepared, sqnr_db


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
