"""Stored bits: bytes on disk, and kernels that are those of the model before."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from compressor.quantization.ledger import ledger
from exporters.base import Keep
from runtimes.errors import Unsupported
from tests import models
from tests.compressor.quantization.helpers import (
    apply,
    executed,
    precisions,
    prepared,
    refused,
    sqnr_db,
)
from tests.net import Net

BOTH = pytest.mark.parametrize("target", ["onnxruntime", "openvino"])


def stored(artifact, kind):
    return next((row.size_bytes for row in ledger(artifact) if row.kind == f"weights {kind}"), 0)


@BOTH
@pytest.mark.parametrize("model", ["convnet", "mlp", "transformer_block"])
def test_four_bits_under_int8_leave_the_kernels_alone(target, model, tmp_path):
    """Not fused, each convolution would be a DequantizeLinear and a float kernel, 5x slower."""
    int8 = apply(tmp_path, prepared(tmp_path, model, target), "quantize_static")
    made = apply(tmp_path, int8, "quantize_weights")
    assert executed(made) == executed(int8)
    assert precisions(made) == precisions(int8)
    assert made.size_bytes < int8.size_bytes


@BOTH
@pytest.mark.parametrize("model", ["convnet", "gru", "lstm", "transformer_block"])
@pytest.mark.parametrize("bits", [8, 4])
def test_float_layers_fold_their_weights_at_load(target, model, bits, tmp_path):
    given = prepared(tmp_path, model, target)
    made = apply(tmp_path, given, "quantize_weights", bits=bits)
    assert executed(made) == executed(given)
    assert made.size_bytes < given.size_bytes


@BOTH
@pytest.mark.parametrize("model", ["convnet", "gru", "mlp"])
def test_97_percent_of_the_weights_take_half_a_byte(target, model, tmp_path):
    made = apply(tmp_path, prepared(tmp_path, model, target), "quantize_static")
    made = apply(tmp_path, made, "quantize_weights")
    assert made.facts["storage"]["share_4_bits"] >= 0.97
    four = stored(made, "int4")
    assert four >= 0.97 / 2 * (2 * four + stored(made, "int8"))
    assert stored(made, "float") == 0


@BOTH
@pytest.mark.parametrize(("bits", "least"), [(8, 38), (4, 14)])
def test_outputs_stay_close(target, bits, least, tmp_path):
    given = prepared(tmp_path, "convnet", target)
    made = apply(tmp_path, given, "quantize_weights", bits=bits)
    assert sqnr_db(given, made) >= least


@BOTH
def test_int4_again_is_refused(target, tmp_path):
    given = prepared(tmp_path, "mlp", target)
    made = apply(tmp_path, given, "quantize_weights", share=1.0)
    (reason,) = refused(made, "quantize_weights")
    assert "no float or INT8 weight" in reason.why


@BOTH
def test_eight_bits_of_an_int8_model_are_refused(target, tmp_path):
    made = apply(tmp_path, prepared(tmp_path, "mlp", target), "quantize_static")
    with pytest.raises(Unsupported, match="no float weight"):
        apply(tmp_path, made, "quantize_weights", bits=8)


@BOTH
def test_kept_layers_keep_their_weights(target, tmp_path):
    keep = Keep(float=("fc1",))
    given = prepared(tmp_path, "mlp", target)
    made = apply(tmp_path, given, "quantize_weights", keep=keep, share=1.0)
    assert stored(made, "float") == 4 * 28 * 28 * 64
    assert stored(made, "int4") == (64 * 64 + 64 * 10) // 2


def test_biases_make_up_for_the_rounding(tmp_path):
    given = prepared(tmp_path, "convnet")
    int8 = apply(tmp_path, given, "quantize_static")
    with_ = apply(tmp_path / "a", int8, "quantize_weights")
    without = apply(tmp_path / "b", int8, "quantize_weights", calibrated=False)
    assert sqnr_db(given, with_) > sqnr_db(given, without)


def test_it_needs_no_data(tmp_path):
    given = prepared(tmp_path, "gru")
    assert (
        apply(tmp_path, given, "quantize_weights", calibrated=False).size_bytes < given.size_bytes
    )


def test_integer_biases_follow_the_new_scales(tmp_path):
    """QGemm takes a bias to be in units of input scale times weight scale, whatever it says."""
    given = prepared(tmp_path, "mlp")
    made = apply(tmp_path, apply(tmp_path, given, "quantize_static"), "quantize_weights", share=1.0)
    assert executed(made)["QGemm"] == 3
    assert sqnr_db(given, made) > 14


def test_weights_keep_their_names(tmp_path):
    made = apply(tmp_path, prepared(tmp_path, "mlp"), "quantize_static")
    made = apply(tmp_path, made, "quantize_weights")
    names = {t.name for t in onnx.load(str(made.path)).graph.initializer}
    assert {"fc1.weight", "fc2.weight", "head.weight"} <= names


@BOTH
def test_the_two_weights_of_a_recurrent_layer_may_have_different_bits(target, tmp_path):
    """The smaller one stayed at 8 bits and was written in 4: outputs of an LSTM were noise."""
    given = prepared(tmp_path, "lstm", target)
    made = apply(tmp_path, given, "quantize_weights", share=0.5)
    assert {4, 8} == set(made.facts["storage"]["bits"].values())
    assert stored(made, "int4") > 0 < stored(made, "int8")
    assert sqnr_db(given, made) > 14


def scanned():
    """A recurrent cell written as a Scan, as some exporters do; its weights lie in the body."""
    net, body = Net(0), Net(1)
    x = body.op("MatMul", "frame", body.constant("W", body.weight_values(64, 64)), name="input")
    h = body.op("MatMul", "state", body.constant("R", body.weight_values(64, 64)), name="again")
    x = body.op("Tanh", body.op("Add", x, h, name="add"), name="next")
    y = body.op("Identity", x, name="copy")
    values = [helper.make_tensor_value_info(n, 1, [1, 64]) for n in ("state", "frame", x, y)]
    graph = helper.make_graph(body.nodes, "body", values[:2], values[2:], body.weights)
    start = net.constant("start", np.zeros((1, 64)))
    net.op("Scan", start, "x", name="scan", outputs=2, body=graph, num_scan_inputs=1)
    shape = ["batch", 1, 64]  # the steps: the helpers give each first axis their samples
    return net.model({"x": shape}, {"y": ("scan.out1", shape)})


@pytest.mark.parametrize("bits", [8, 4])
def test_openvino_folds_weights_in_the_bodies_of_loops(bits, tmp_path, monkeypatch):
    monkeypatch.setitem(models.ALL, "scanned", scanned)
    given = prepared(tmp_path, "scanned", "openvino")
    made = apply(tmp_path, given, "quantize_weights", bits=bits, share=1.0, calibrated=False)
    assert stored(made, f"int{bits}") == 2 * 64 * 64 * bits // 8
    assert stored(made, "float") == 0
    assert sqnr_db(given, made) > (38 if bits == 8 else 15)
