"""Large GRUs and RNNs in dynamic INT8: loops over integer products, and when there is none."""

from __future__ import annotations

import numpy as np
import pytest

from compressor.quantization.ledger import ledger
from compressor.quantization.precision import layer_table
from runtimes.base import load_runtime
from tests.compressor.passes.test_quantize_dynamic import (
    STORES,
    artifact_of,
    executed_fixed,
    fixed_feeds,
    fixed_sqnr,
)
from tests.compressor.quantization.helpers import apply, prepared, refused
from tests.net import Net


def looped_net(kind, **changes):
    """A GRU or RNN with what the operator offers, as `changes` say; its gates are not tied."""
    hidden, features, batch = 24, 20, 3
    both, steps = changes.pop("both", False), changes.pop("steps", 9)
    given, outputs = set(changes.pop("given", ())), changes.pop("outputs", ("y", "y_h"))
    net, d, g = Net(0), 2 if both else 1, {"GRU": 3, "RNN": 1}[kind]

    def values(name, *shape):
        return net.constant(name, net.rng.uniform(-0.3, 0.3, shape))

    w, r = values("W", d, g * hidden, features), values("R", d, g * hidden, hidden)
    optional = [
        values("B", d, 2 * g * hidden) if "bias" in given else "",
        net.constant("lengths", [9, 4, 7], np.int32) if "lengths" in given else "",
        values("h0", d, batch, hidden) if "state" in given else "",
    ]
    while optional and not optional[-1]:
        optional.pop()
    if both:
        changes["direction"] = "bidirectional"
    if kind == "GRU":
        changes.setdefault("linear_before_reset", 1)
    net.op(kind, "x", w, r, *optional, name="rnn", outputs=2, hidden_size=hidden, **changes)
    known = {
        "y": ("rnn.out", [steps, d, batch, hidden]),
        "y_h": ("rnn.out1", [d, batch, hidden]),
    }
    return net.model({"x": [steps, batch, features]}, {name: known[name] for name in outputs})


LOOPS = {
    "gru": ("GRU", {"given": ["bias", "state"]}),
    "gru, bare": ("GRU", {}),
    "gru, both ways": ("GRU", {"both": True, "given": ["bias", "state"]}),
    "gru, backwards": ("GRU", {"direction": "reverse", "given": ["bias"]}),
    "gru, last state": ("GRU", {"outputs": ["y_h"], "given": ["bias"]}),
    "rnn": ("RNN", {"given": ["bias", "state"]}),
    "rnn, both ways": ("RNN", {"both": True, "given": ["bias"]}),
    "rnn, relu": ("RNN", {"activations": ["Relu"], "outputs": ["y"]}),
}


@STORES
@pytest.mark.parametrize("name", LOOPS)
def test_every_form_of_a_loop(name, store, least_db, tmp_path, monkeypatch):
    kind, changes = LOOPS[name]
    given = artifact_of(tmp_path, monkeypatch, lambda: looped_net(kind, **changes))
    made = apply(
        tmp_path, given, "quantize_dynamic", store=store, least=1, share=1.0, calibrated=False
    )
    both = 2 if changes.get("both") else 1
    ran = executed_fixed(made)
    assert ran["Scan"] == both
    assert ran["DynamicQuantizeMatMul"] == 1  # of the inputs; the others run inside the loop
    assert fixed_sqnr(given, made) >= least_db - 2
    size = {"GRU": 3, "RNN": 1}[kind] * 24 * (20 + 24) * both
    rows = {row.kind: row.size_bytes for row in ledger(made)}
    assert rows[f"weights int{store}"] == size * store // 8
    engine = load_runtime("onnxruntime")
    table = layer_table(made, engine.layer_precisions(made, feeds=fixed_feeds(made)))
    layers = {row.layer: row for row in table}
    assert layers["rnn"].requested == layers["rnn"].achieved == "int8"
    assert layers["rnn/W"].achieved == "int8"
    assert sum(row.weight_bytes for row in table) > size * store // 8


@pytest.mark.parametrize("kind", ["GRU", "RNN"])
@pytest.mark.parametrize("both", [False, True])
def test_one_step_needs_no_loop(kind, both, tmp_path, monkeypatch):
    given = artifact_of(
        tmp_path, monkeypatch, lambda: looped_net(kind, steps=1, both=both, given=["bias", "state"])
    )
    made = apply(tmp_path, given, "quantize_dynamic", least=1, calibrated=False)
    ran = executed_fixed(made)
    assert "Scan" not in ran
    assert ran["DynamicQuantizeMatMul"] == (3 if both else 2)
    assert fixed_sqnr(given, made) >= 32
    table = layer_table(
        made, load_runtime("onnxruntime").layer_precisions(made, feeds=fixed_feeds(made))
    )
    assert next(row for row in table if row.layer == "rnn").achieved == "int8"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"given": ["bias", "lengths"]}, "lengths of their own"),
        ({"linear_before_reset": 0}, "reset gate"),
        ({"clip": 1.0}, "clips"),
        ({"activations": ["HardSigmoid", "Tanh"]}, "activations"),
    ],
)
def test_a_gru_that_is_no_such_loop_is_refused(changes, why, tmp_path, monkeypatch):
    given = artifact_of(tmp_path, monkeypatch, lambda: looped_net("GRU", **changes))
    found = refused(given, "quantize_dynamic", least=1)
    assert why in next(r.why for r in found if r.where == "rnn")


def test_a_loop_takes_any_batch_and_length(tmp_path):
    given = prepared(tmp_path, "gru")
    made = apply(tmp_path, given, "quantize_dynamic", least=1)
    engine = load_runtime("onnxruntime")
    rng = np.random.default_rng(0)
    with engine.open_session(given) as a, engine.open_session(made) as b:
        for batch, time in ((1, 1), (4, 28), (2, 3)):
            feeds = {"sequence": rng.random((batch, time, 28), dtype=np.float32)}
            want, got = a.run(feeds)["logits"], b.run(feeds)["logits"]
            assert ((want - got) ** 2).sum() < 1e-3 * (want**2).sum()
