"""Weights that stay where they are: sessions, checks and conversions without copies of them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporters import _onnx_session
from exporters._onnx_session import (
    check_model,
    session_of,
    tapped_session,
    with_weights,
    without_weights,
)
from tests import models


def chain(width: int = 64) -> onnx.ModelProto:
    """y = relu(x @ w) @ v, with weights large enough to be taken out."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.normal(size=(width, width)).astype(np.float32), name)
        for name in "wv"
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("MatMul", ["b", "v"], ["y"], name="second"),
    ]
    shape = ["batch", width]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in "xy"]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_taps_stand_right_behind_what_they_read() -> None:
    model = chain()
    taps = [
        helper.make_node("Mul", ["a", "a"], ["squared"]),
        helper.make_node("ReduceMean", ["squared"], ["mean"], keepdims=0),
        helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0),
    ]
    floats = onnx.TensorProto.FLOAT
    tapped = [helper.make_tensor_value_info(name, floats, None) for name in ("mean", "top")]
    frame = _onnx_session._frame(model, taps, [*model.graph.output, *tapped])
    ops = [node.op_type for node in frame.graph.node]
    assert ops == ["ReduceMax", "MatMul", "Mul", "ReduceMean", "Relu", "MatMul"]
    alone = _onnx_session._frame(model, taps, tapped)
    assert [n.op_type for n in alone.graph.node] == ["ReduceMax", "MatMul", "Mul", "ReduceMean"]
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("mean", "top")]
    x = np.random.default_rng(1).normal(size=(3, 64)).astype(np.float32)
    mean, top = tapped_session(model, taps, outputs, 1).run(None, {"x": x})
    w = numpy_helper.to_array(model.graph.initializer[0])
    assert mean == pytest.approx(float(((x @ w) ** 2).mean()), rel=1e-5)
    assert top == x.max()


def test_weights_in_a_file_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = chain(600)
    x = np.ones((2, 600), np.float32)
    (want,) = session_of(model).run(None, {"x": x})
    monkeypatch.setattr(_onnx_session, "_LARGE", 0)
    (got,) = session_of(model).run(None, {"x": x})
    assert (want == got).all()


@pytest.mark.parametrize("name", models.ALL)
def test_a_model_gets_the_weights_back_that_were_left_out(name: str) -> None:
    model = models.ALL[name]()
    light = without_weights(model)
    with_weights(light, model)
    assert list(light.graph.initializer) == list(model.graph.initializer)
    assert list(light.graph.input) == list(model.graph.input)


def test_what_is_left_is_small_and_the_checker_still_sees_the_weights() -> None:
    model = chain(200)
    assert without_weights(model).ByteSize() < 2000
    check_model(model)
    model.graph.initializer[1].raw_data = b"0" * 8000  # 40,000 values are declared
    with pytest.raises(onnx.checker.ValidationError):
        check_model(model)
