"""Large embeddings: looked up in integers, so that the table stays small in memory too."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests import models
from tests.compressor.quantization.helpers import apply, executed, prepared, sqnr_db
from tests.net import Net


def embedding(tokens: int, *, tied: bool = False):
    """Ids in, a classifier of their mean out; `tied` multiplies with the table as well."""
    net = Net(0)
    table = net.weight("embedding.weight", tokens, 128)
    x = net.op("Gather", table, "ids", name="embedding")
    x = net.op("ReduceMean", x, net.constant("time", [1], np.int64), name="mean", keepdims=0)
    if tied:
        turned = net.op("Transpose", table, name="turned", perm=[1, 0])
        x = net.op("MatMul", x, turned, name="head")
        return net.model({"ids": ["batch", "time"]}, {"y": (x, ["batch", tokens])}, ["ids"])
    x = net.gemm(x, "head", 128, 10)
    return net.model({"ids": ["batch", "time"]}, {"y": (x, ["batch", 10])}, ["ids"])


def made(tmp_path, monkeypatch, model, **options):
    monkeypatch.setitem(models.ALL, "embedding", lambda: model)
    given = prepared(tmp_path, "embedding")
    return given, apply(tmp_path, given, "quantize_weights", **options)


@pytest.mark.parametrize(("bits", "least"), [(8, 38), (4, 14)])
def test_rows_are_looked_up_in_integers(bits, least, tmp_path, monkeypatch):
    given, quantized = made(tmp_path, monkeypatch, embedding(9000), bits=bits, share=1.0)
    graph = onnx.load(str(quantized.path)).graph
    read = {node.input[0] for node in graph.node if node.op_type == "Gather"}
    stored = {t.name: t.data_type for t in graph.initializer}
    cast = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Cast"}
    kinds = {stored[cast.get(name, name)] for name in read}
    wanted = onnx.TensorProto.INT8 if bits == 8 else onnx.TensorProto.INT4
    assert kinds == {wanted, onnx.TensorProto.FLOAT}
    assert executed(quantized)["Gather"] == 2
    assert sqnr_db(given, quantized) > least


def test_the_values_are_those_of_the_folded_form(tmp_path, monkeypatch):
    _, quantized = made(tmp_path, monkeypatch, embedding(9000), bits=8)
    graph = onnx.load(str(quantized.path)).graph
    arrays = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    table = next(a for a in arrays.values() if a.dtype == np.int8 and a.shape == (9000, 128))
    scale = next(a for a in arrays.values() if a.shape == (9000, 1))
    want = numpy_helper.to_array(embedding(9000).graph.initializer[0])
    assert np.abs(table * scale - want).max() <= 0.51 * scale.max()


@pytest.mark.parametrize("model", [embedding(500), embedding(9000, tied=True)])
def test_small_and_tied_tables_are_expanded_at_load(model, tmp_path, monkeypatch):
    given, quantized = made(tmp_path, monkeypatch, model, bits=8)
    assert executed(quantized) == executed(given)
    kinds = Counter(node.op_type for node in onnx.load(str(quantized.path)).graph.node)
    assert kinds["Gather"] == 1
