"""Products and their biases as one node: what is fused, that answers stay, what is refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from compressor.quantization.fusion import fuse, products
from compressor.quantization.ledger import ledger
from exporters._schemes import ONNXRUNTIME_ARM
from exporters.base import Context
from tests import models
from tests.compressor.quantization.helpers import apply, executed, prepared, refused
from tests.contract import subjects


def answers(artifact, feeds):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(artifact.path), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


@pytest.mark.parametrize("four", [False, True])
@pytest.mark.parametrize("scheme", [None, ONNXRUNTIME_ARM])
def test_answers_stay_and_the_adds_go(four, scheme, tmp_path, monkeypatch):
    if scheme is not None:
        monkeypatch.setattr(subjects, "context", lambda *_: Context(scheme=scheme))
    made = apply(tmp_path, prepared(tmp_path, "transformer_block"), "quantize_static")
    if four:
        made = apply(tmp_path, made, "reconstruct_weights", share=1.0)
    fused = apply(tmp_path, made, "fuse_products")
    feeds = models.feeds(onnx.load(made.path))
    for before, after in zip(answers(made, feeds), answers(fused, feeds), strict=True):
        np.testing.assert_array_equal(before, after)
    was, now = executed(made), executed(fused)
    count = len(products(onnx.load(made.path)))
    assert count >= 4
    assert sum(now.values()) < sum(was.values())
    assert now["MatMulIntegerToFloat"] == count
    assert fused.size_bytes < made.size_bytes
    weights = [
        {r.kind: r.size_bytes for r in ledger(a) if "weights" in r.kind} for a in (made, fused)
    ]
    assert weights[0] == weights[1]
    assert f"{count} products in INT8 add their biases by themselves" in fused.facts["notes"]


def test_names_of_layers_stay(tmp_path):
    model = onnx.load(apply(
        tmp_path, prepared(tmp_path, "transformer_block"), "quantize_static"
    ).path)  # fmt: skip
    found = products(model)
    names = [one.node.name for one in found]
    fuse(model, found)
    made = {n.name: n for n in model.graph.node if n.op_type == "MatMulIntegerToFloat"}
    assert list(made) == names
    assert products(model) == []


def changed(tmp_path, change):
    model = onnx.load(apply(
        tmp_path, prepared(tmp_path, "transformer_block"), "quantize_static"
    ).path)  # fmt: skip
    one = products(model)[0]
    before = len(products(model))
    change(model, one)
    return before, len(products(model))


def read_twice(model, one):
    model.graph.node.append(onnx.helper.make_node("Relu", [one.node.output[0]], ["more"]))
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info("more"))


def an_output(model, one):
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(one.node.output[0]))


def computed_bias(model, one):
    model.graph.node.insert(0, onnx.helper.make_node("Identity", [one.bias], ["again"]))
    place = list(one.add.input).index(one.bias)
    one.add.input[place] = "again"


def wider_bias(model, one):
    bias = next(t for t in model.graph.initializer if t.name == one.bias)
    array = onnx.numpy_helper.to_array(bias)[None]
    bias.CopyFrom(onnx.numpy_helper.from_array(array, bias.name))


@pytest.mark.parametrize("change", [read_twice, an_output, computed_bias, wider_bias])
def test_what_is_no_bias_of_this_product_alone_stays(change, tmp_path):
    before, after = changed(tmp_path, change)
    assert after == before - 1


def test_a_model_without_such_a_product_is_refused(tmp_path):
    (reason,) = refused(prepared(tmp_path, "convnet"), "fuse_products")
    assert "no MatMul of 8-bit tensors" in reason.why
    assert reason.fix
