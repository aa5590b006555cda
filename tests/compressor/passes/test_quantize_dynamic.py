"""Dynamic INT8: the kernels ONNX Runtime executes, their bytes, and outputs that stay close."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import helper

from compressor.passes.quantize_dynamic import Options
from compressor.quantization.ledger import ledger
from compressor.quantization.precision import layer_table
from compressor.quantization.recurrent_plan import recurrent_plan
from exporters.base import Context, Keep
from runtimes.base import load_runtime
from runtimes.errors import Unsupported, UsageError
from tests import models
from tests.compressor.quantization.helpers import (
    apply,
    executed,
    feeds_for,
    prepared,
    refused,
    sqnr_db,
)
from tests.contract import subjects
from tests.net import Net

STORES = pytest.mark.parametrize(("store", "least_db"), [(8, 34), (4, 17)])


def lstm_net(**changes):
    """An LSTM with everything the operator offers, as `changes` say, and a head on its outputs."""
    hidden, features = 24, 20
    both = changes.pop("both", False)
    given = set(changes.pop("given", ()))
    net, d = Net(0), 2 if both else 1

    def values(name, *shape):
        return net.constant(name, net.rng.uniform(-0.3, 0.3, shape))

    w, r = values("W", d, 4 * hidden, features), values("R", d, 4 * hidden, hidden)
    batch = 3
    optional = [
        values("B", d, 8 * hidden) if "bias" in given else "",
        net.constant("lengths", [9, 4, 7], np.int32) if "lengths" in given else "",
        values("h0", d, batch, hidden) if "state" in given else "",
        values("c0", d, batch, hidden) if "state" in given else "",
        values("P", d, 3 * hidden) if "peepholes" in given else "",
    ]
    while optional and not optional[-1]:
        optional.pop()
    if both:
        changes["direction"] = "bidirectional"
    net.op("LSTM", "x", w, r, *optional, name="lstm", outputs=3, hidden_size=hidden, **changes)
    shapes = {"x": [9, batch, features]}
    return net.model(
        shapes,
        {
            "y": ("lstm.out", [9, d, batch, hidden]),
            "y_h": ("lstm.out1", [d, batch, hidden]),
            "y_c": ("lstm.out2", [d, batch, hidden]),
        },
    )


VARIANTS = {
    "bare": {},
    "bias": {"given": ["bias"]},
    "everything": {"given": ["bias", "lengths", "state", "peepholes"]},
    "both ways": {"both": True, "given": ["bias", "state"]},
    "both ways, lengths": {"both": True, "given": ["bias", "lengths"]},
    "backwards": {"direction": "reverse", "given": ["bias"]},
    "clipped": {"clip": 0.4, "given": ["bias"]},
    "coupled": {"input_forget": 1, "given": ["bias"]},
    "other activations": {"activations": ["Sigmoid", "Tanh", "Relu"], "given": ["bias"]},
}


def artifact_of(tmp_path, monkeypatch, build):
    monkeypatch.setitem(models.ALL, "own", build)
    return prepared(tmp_path, "own")


@STORES
@pytest.mark.parametrize("name", VARIANTS)
def test_every_form_of_an_lstm(name, store, least_db, tmp_path, monkeypatch):
    given = artifact_of(tmp_path, monkeypatch, lambda: lstm_net(**VARIANTS[name]))
    made = apply(
        tmp_path, given, "quantize_dynamic", store=store, least=1, share=1.0, calibrated=False
    )
    assert executed_fixed(made)["DynamicQuantizeLSTM"] == 1
    assert fixed_sqnr(given, made) >= least_db
    size = 4 * 24 * (20 + 24) * (2 if VARIANTS[name].get("both") else 1)
    rows = {row.kind: row.size_bytes for row in ledger(made)}
    assert rows[f"weights int{store}"] == size * store // 8


def fixed_feeds(artifact):
    shape = artifact.inputs[0].shape
    return {"x": np.random.default_rng(3).normal(size=shape).astype(np.float32)}


def executed_fixed(artifact):
    engine = load_runtime("onnxruntime")
    layers = engine.layer_precisions(artifact, feeds=fixed_feeds(artifact))
    ops = [layer.op for layer in layers]
    return {op: ops.count(op) for op in ops}


def fixed_sqnr(want, got):
    engine = load_runtime("onnxruntime")
    with engine.open_session(want) as a, engine.open_session(got) as b:
        first, second = a.run(fixed_feeds(want)), b.run(fixed_feeds(want))
    signal = sum(float((x**2).sum()) for x in first.values())
    noise = sum(float(((second[name] - x) ** 2).sum()) for name, x in first.items())
    return 10 * np.log10(signal / noise)


@STORES
def test_products_take_their_biases_along(store, least_db, tmp_path):
    """Gemm with bias, MatMul with and without an Add behind it: one kernel each."""
    given = prepared(tmp_path, "transformer_block")
    made = apply(tmp_path, given, "quantize_dynamic", store=store, least=1, share=1.0)
    assert executed(made)["DynamicQuantizeMatMul"] == 7  # attention's own two products stay float
    assert sqnr_db(given, made) >= least_db


def test_weights_under_an_if_are_found(tmp_path):
    given = prepared(tmp_path, "if_subgraph")
    made = apply(tmp_path, given, "quantize_dynamic", store=4, least=1, share=1.0)
    assert made.size_bytes < 0.2 * given.size_bytes
    assert sqnr_db(given, made) > 15


def test_a_shared_weight_is_stored_once(tmp_path):
    given = prepared(tmp_path, "shared_weight")
    made = apply(tmp_path, given, "quantize_dynamic", least=1, calibrated=False)
    held = [t for t in onnx.load(str(made.path)).graph.initializer if list(t.dims) == [32, 32]]
    assert len(held) == 1
    assert executed(made)["DynamicQuantizeMatMul"] == 3


@pytest.mark.parametrize("store", [8, 4])
def test_the_table_shows_int8_under_the_layer_s_own_name(store, tmp_path):
    given = prepared(tmp_path, "lstm")
    made = apply(tmp_path, given, "quantize_dynamic", store=store, least=1)
    engine = load_runtime("onnxruntime")
    rows = layer_table(made, engine.layer_precisions(made, feeds=feeds_for(made)))
    row = next(row for row in rows if row.layer == "rnn")
    assert (row.requested, row.achieved, row.op) == ("int8", "int8", "DynamicQuantizeLSTM")
    assert row.weight_bytes > 0
    assert row.time_ns
    assert {r.achieved for r in rows if r.requested == "int8"} <= {"int8", "fused"}


def test_what_static_quantization_left_is_taken_and_the_rest_stays(tmp_path, monkeypatch):
    """A convolution before an LSTM: static INT8 there, dynamic here, 4 bits for both."""
    given = artifact_of(tmp_path, monkeypatch, conv_lstm)
    made = apply(tmp_path, given, "quantize_static")
    made = apply(tmp_path, made, "quantize_dynamic", least=1, store=4)
    made = apply(tmp_path, made, "quantize_weights")
    ran = executed(made)
    assert ran["QLinearConv"] == 2
    assert ran["DynamicQuantizeLSTM"] == 1
    assert not {"LSTM", "Conv"} & set(ran)
    asked = {row["layer"]: row["requested"] for row in made.facts["requested"]}
    assert asked["conv1"] == asked["rnn"] == "int8"
    assert sum(row["layer"] == "rnn" for row in made.facts["requested"]) == 1
    assert made.size_bytes < 0.25 * given.size_bytes
    assert sqnr_db(given, made) > 14


def conv_lstm():
    net = Net(0)
    x = net.op("Relu", net.conv("image", "conv1", (16, 1, 3, 3), strides=[2, 2]), name="relu1")
    x = net.op("Relu", net.conv(x, "conv2", (16, 16, 3, 3), strides=[2, 2]), name="relu2")
    x = net.op("Transpose", x, name="columns", perm=[3, 0, 1, 2])
    x = net.op("Reshape", x, net.constant("flat", [0, 0, -1], np.int64), name="features")
    w = net.constant("rnn.W", net.rng.uniform(-0.2, 0.2, (1, 128, 112)))
    r = net.constant("rnn.R", net.rng.uniform(-0.2, 0.2, (1, 128, 32)))
    b = net.constant("rnn.B", net.rng.uniform(-0.1, 0.1, (1, 256)))
    net.op("LSTM", x, w, r, b, name="rnn", outputs=2, hidden_size=32)
    x = net.op("Squeeze", "rnn.out1", net.constant("axis", [0], np.int64), name="last")
    return net.classifier(net.gemm(x, "head", 32, 10), image=["batch", 1, 28, 28])


@pytest.mark.parametrize("model", ["lstm", "gru", "transformer_block"])
def test_biases_make_up_for_the_rounding(model, tmp_path):
    given = prepared(tmp_path, model)
    options = {"store": 4, "least": 1, "share": 1.0, "reconstruct": False}
    with_ = apply(tmp_path / "a", given, "quantize_dynamic", **options)
    without = apply(tmp_path / "b", given, "quantize_dynamic", calibrated=False, **options)
    assert sqnr_db(given, with_) > sqnr_db(given, without)


@pytest.mark.parametrize("model", ["lstm", "gru", "transformer_block"])
def test_rounding_for_the_outputs_beats_rounding_to_nearest(model, tmp_path):
    given = prepared(tmp_path, model)
    options = {"store": 4, "least": 1, "share": 1.0}
    with_ = apply(tmp_path / "a", given, "quantize_dynamic", **options)
    without = apply(tmp_path / "b", given, "quantize_dynamic", reconstruct=False, **options)
    assert sqnr_db(given, with_) > sqnr_db(given, without) + 1
    assert with_.size_bytes == without.size_bytes


def both_ways(kind):
    """As `models.recurrent`, in both directions and with all states in the end."""
    net, hidden = Net(0), 32
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    x = net.op("Transpose", "sequence", name="time_first", perm=[1, 0, 2])
    w = net.constant("W", net.rng.uniform(-0.3, 0.3, (2, gates * hidden, 28)))
    r = net.constant("R", net.rng.uniform(-0.3, 0.3, (2, gates * hidden, hidden)))
    b = net.constant("B", net.rng.uniform(-0.1, 0.1, (2, 2 * gates * hidden)))
    more = {"linear_before_reset": 1} if kind == "GRU" else {}
    more["direction"] = "bidirectional"
    y = net.op(kind, x, w, r, b, name="rnn", hidden_size=hidden, **more)
    return net.model({"sequence": ["batch", "time", 28]}, {"y": (y, ["time", 2, "batch", hidden])})


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_each_direction_is_rounded_for_its_own_states(kind, tmp_path, monkeypatch):
    given = artifact_of(tmp_path, monkeypatch, lambda: both_ways(kind))
    options = {"store": 4, "least": 1, "share": 1.0}
    with_ = apply(tmp_path / "a", given, "quantize_dynamic", **options)
    without = apply(tmp_path / "b", given, "quantize_dynamic", calibrated=False, **options)
    assert sqnr_db(given, with_) > sqnr_db(given, without) + 3


def test_kept_and_excluded_layers_stay(tmp_path):
    given = prepared(tmp_path, "lstm")
    kept = apply(tmp_path, given, "quantize_dynamic", keep=Keep(float=("rnn",)), least=1)
    assert executed(kept)["LSTM"] == 1
    reasons = {row["layer"]: row["reason"] for row in kept.facts["requested"]}
    assert "rnn" not in reasons
    other = apply(tmp_path / "b", given, "quantize_dynamic", exclude=("head",), least=1)
    assert executed(other)["DynamicQuantizeLSTM"] == 1
    assert executed(other)["Gemm"] == 1


def test_small_layers_are_left_with_the_reason(tmp_path):
    found = refused(prepared(tmp_path, "lstm"), "quantize_dynamic")
    assert found[0].where == "model"
    assert "too few" in next(r.why for r in found if r.where == "rnn")


def test_gru_is_refused_and_an_unknown_kind_is_named(tmp_path):
    given = prepared(tmp_path, "gru")
    (reason,) = refused(given, "quantize_dynamic", ops=["LSTM"])
    assert "quantize_weights" in reason.fix
    with pytest.raises(UsageError, match="no dynamic kernel for Conv"):
        refused(given, "quantize_dynamic", ops=["Conv"])


def test_other_engines_do_not_get_onnx_runtime_s_operators(tmp_path):
    from compressor.steps import load_step, parse_options
    from exporters.base import StepSpec

    given = subjects.source(tmp_path, "onnx", "lstm")
    step, context = load_step("quantize_dynamic"), subjects.context("x", "openvino")
    options = parse_options(StepSpec("quantize_dynamic", {"least": 1}), "x")
    (reason,) = step.refusals(given, options, dataclasses.replace(context, target="openvino"))
    assert "openvino does not have" in reason.why


def test_twice_is_refused(tmp_path):
    made = apply(tmp_path, prepared(tmp_path, "lstm"), "quantize_dynamic", least=1)
    with pytest.raises(Unsupported, match="nothing to run in dynamic INT8"):
        apply(tmp_path, made, "quantize_dynamic", least=1)


def test_batch_first_lstms_stay_float():
    from compressor.quantization.onnx_dynamic import choose

    model = lstm_net()
    model.graph.node[0].attribute.append(helper.make_attribute("layout", 1))
    chosen, reasons = choose(model, Options(least=1), Context())
    assert not chosen
    assert "batch-first" in reasons["lstm"]


def test_the_plan_says_what_becomes_of_recurrent_layers(tmp_path):
    def told(model, target="onnxruntime", options=None, keep=()):
        (line,) = recurrent_plan(model, Context(target=target, keep=Keep(float=keep)), options)
        return line

    dynamic, large = Options(), models.recurrent("GRU", 0, hidden=400)
    assert told(models.recurrent("LSTM", 0, hidden=96), options=dynamic) == "LSTM rnn: dynamic INT8"
    line = "GRU rnn: dynamic INT8, as a loop over integer products"
    assert told(large, options=dynamic) == line
    assert "too few" in told(models.lstm(), options=dynamic)
    kept = told(large, options=dynamic, keep=("rnn",))
    assert kept == "GRU rnn: kept float (keep.float rnn)"
    stored = "GRU rnn: weights stored in 8 or 4 bits, computed in float"
    assert told(models.gru(), "openvino").startswith(stored)


def test_compress_plan_shows_it(tmp_path):
    from compressor.api import make_plan_for
    from compressor.recipe import load_recipe

    models.save(models.recurrent("LSTM", 0, hidden=96), tmp_path / "net.onnx")
    steps = ["to_onnxruntime", "quantize_dynamic"]
    targets = {"onnxruntime": {"steps": steps}}
    recipe = load_recipe({"model": {"source": "net.onnx"}, "targets": targets})
    assert make_plan_for(recipe, tmp_path).targets[0].recurrent == ("LSTM rnn: dynamic INT8",)


def lstm_scales(made):
    """Sizes of the weight scales of an LSTM's kernel, inputs' and states'."""
    model = onnx.load(made.path)
    sizes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    (node,) = [n for n in model.graph.node if n.op_type == "DynamicQuantizeLSTM"]
    return [sizes[node.input[port]] for port in (8, 10)]


@pytest.mark.parametrize(("large", "shape"), [(1, (1,)), (20, (1, 384))])
def test_lstms_in_4_bits_compute_with_one_scale_where_no_row_is_drowned_by_it(
    large, shape, tmp_path, monkeypatch
):
    def build():
        net, spread = Net(0), np.ones((1, 384, 1))
        spread[:, :4] = large
        w, r = (
            net.constant(name, net.rng.uniform(-0.1, 0.1, (1, 384, 96)) * spread)
            for name in ("W", "R")
        )
        net.op("LSTM", "x", w, r, name="lstm", outputs=3, hidden_size=96)
        return net.model({"x": [9, 2, 96]}, {"y": ("lstm.out", [9, 1, 2, 96])})

    given = artifact_of(tmp_path, monkeypatch, build)
    made = apply(tmp_path, given, "quantize_dynamic", store=4, share=1.0, calibrated=False)
    assert lstm_scales(made) == [shape, shape]
    assert executed_fixed(made)["DynamicQuantizeLSTM"] == 1
    assert fixed_sqnr(given, made) >= 17
