"""Constants that are only moved about become initializers, which other steps look for."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper

from exporters._onnx_fold import fold_moves
from exporters._onnx_graph import normalise
from tests import models
from tests.net import Net


def gates_in_pieces(seed=0, hidden=40):
    """A GRU as torch exports it: its gates sliced out of the module's tensors, joined anew."""
    net = Net(seed)
    axis = net.constant("axis", [0], np.int64)
    x = net.op("Transpose", "sequence", name="time_first", perm=[1, 0, 2])
    names = {}
    for name, width in (("W", 28), ("R", hidden)):
        whole = net.constant(name, net.rng.uniform(-0.2, 0.2, (3 * hidden, width)))
        parts = []
        for gate in (1, 0, 2):
            cut = [
                net.constant(f"{name}{gate}{end}", [(gate + end) * hidden], np.int64)
                for end in (0, 1)
            ]
            parts.append(net.op("Slice", whole, *cut, axis, name=f"{name}.{gate}"))
        joined = net.op("Concat", *parts, name=f"{name}.joined", axis=0)
        names[name] = net.op("Unsqueeze", joined, axis, name=f"{name}.raised")
    more = {"hidden_size": hidden, "linear_before_reset": 1}
    net.op("GRU", x, names["W"], names["R"], name="rnn", outputs=2, **more)
    last = net.op("Squeeze", "rnn.out1", axis, name="last")
    return net.classifier(net.gemm(last, "head", hidden, 10), sequence=["batch", "time", 28])


def tied(seed=0):
    """An embedding whose transpose is the output layer: folding that would store it twice."""
    net = Net(seed)
    table = net.weight("table", 100, 32)
    x = net.op("Gather", table, "ids", name="embedding")
    turned = net.op("Transpose", table, name="turn", perm=[1, 0])
    y = net.op("MatMul", x, turned, name="head")
    shape = ["batch", "time"]
    return net.model({"ids": shape}, {"y": (y, [*shape, 100])}, integers=["ids"])


def test_gates_in_pieces_become_weights():
    model, _ = normalise(gates_in_pieces())
    feeds = models.feeds(model)
    want, before = models.run(model, feeds), model.ByteSize()
    assert fold_moves(model) == 10
    (gru,) = [node for node in model.graph.node if node.op_type == "GRU"]
    assert set(gru.input[1:3]) <= {tensor.name for tensor in model.graph.initializer}
    assert model.ByteSize() < before
    np.testing.assert_array_equal(models.run(model, feeds)["logits"], want["logits"])
    assert fold_moves(model) == 0


def test_nothing_is_stored_twice():
    model, _ = normalise(tied())
    assert fold_moves(model) == 0


@pytest.mark.parametrize("name", models.ALL)
def test_models_stay_what_they_are(name):
    model, _ = normalise(models.ALL[name]())
    feeds = models.feeds(model)
    want, before = models.run(model, feeds), model.ByteSize()
    fold_moves(model)
    assert model.ByteSize() <= before
    for output, values in models.run(model, feeds).items():
        np.testing.assert_array_equal(values, want[output])


def test_both_engines_then_store_the_gates_in_fewer_bits(tmp_path, monkeypatch):
    from tests.compressor.quantization.helpers import apply, prepared

    monkeypatch.setitem(models.ALL, "pieces", gates_in_pieces)
    size = sum(
        numpy_helper.to_array(t).nbytes for t in gates_in_pieces().graph.initializer if t.dims
    )
    for target in ("onnxruntime", "openvino"):
        given = prepared(tmp_path, "pieces", target)
        made = apply(tmp_path, given, "quantize_weights")
        assert given.size_bytes - made.size_bytes > 0.7 * size
