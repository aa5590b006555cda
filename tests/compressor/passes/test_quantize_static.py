"""INT8: what the engine executes, how close the outputs stay, what is refused."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import pytest

from compressor.quantization.conformance import violations
from compressor.quantization.onnx_pass import integers, model_refusals
from compressor.result import UNCONVERGED
from exporters._schemes import ONNXRUNTIME_ARM, ONNXRUNTIME_X86
from exporters.base import Keep
from exporters.to_openvino import scheme_for
from runtimes.errors import BuildFailed, Unsupported, UsageError
from tests import models
from tests.compressor.quantization.helpers import (
    apply,
    executed,
    precisions,
    prepared,
    refused,
    sqnr_db,
)
from tests.layers.tree import ROOT
from tests.step_env import ArraySamples

BOTH = pytest.mark.parametrize("target", ["onnxruntime", "openvino"])


@pytest.mark.parametrize(
    ("model", "kernels"),
    [
        ("convnet", {"QLinearConv": 4, "QLinearAdd": 1, "QGemm": 1}),
        ("depthwise", {"QLinearConv": 5, "QLinearAdd": 1, "QGemm": 1}),
        ("mlp", {"QGemm": 3}),
        ("hardswish_net", {"QLinearConv": 4, "QLinearMul": 3, "QGemm": 1}),
    ],
)
def test_onnxruntime_runs_integer_kernels_only(model, kernels, tmp_path):
    made = apply(tmp_path, prepared(tmp_path, model), "quantize_static")
    ran = executed(made)
    assert {op: ran[op] for op in kernels} == kernels
    assert not {"Conv", "Gemm", "FusedGemm", "FusedConv", "Add", "Mul", "HardSigmoid"} & set(ran)


def test_onnxruntime_runs_a_transformers_products_in_integers(tmp_path):
    made = apply(tmp_path, prepared(tmp_path, "transformer_block"), "quantize_static")
    ran = executed(made)
    assert ran["MatMulIntegerToFloat"] + ran["QLinearMatMul"] >= 6


def test_openvino_runs_convolutions_in_integers(tmp_path):
    made = apply(tmp_path, prepared(tmp_path, "convnet", "openvino"), "quantize_static")
    assert precisions(made)["int8"] >= 5


def test_a_custom_operator_in_a_branch_is_found():
    model = models.if_subgraph()
    assert model_refusals(model) == []
    (choice,) = [node for node in model.graph.node if node.op_type == "If"]
    inner = choice.attribute[0].g.node[0]
    inner.domain, inner.op_type = "acme", "Fold"
    (found,) = model_refusals(model)
    assert found.where == inner.name
    assert "acme::Fold is custom" in found.why


def test_what_the_layers_compute_in_is_said(tmp_path):
    made = apply(tmp_path, prepared(tmp_path, "mlp"), "quantize_static")
    vnni = "INT8: weights s8 per channel, activations u8, full range"
    assert vnni in made.facts["notes"]
    assert integers(ONNXRUNTIME_X86) == vnni.replace("full range", "7-bit weights: no VNNI")
    assert integers(ONNXRUNTIME_ARM) == vnni.replace("u8", "s8")


@pytest.mark.parametrize("model", ["convnet", "depthwise", "transformer_block"])
@pytest.mark.parametrize(
    ("flags", "peaks", "said"),
    [
        ({"avx2", "avx512f"}, {63, 64}, "7-bit weights: no VNNI"),
        ({"avx2", "avx_vnni"}, {127}, "full range"),
    ],
)
def test_openvinos_weights_are_narrow_without_vnni_and_it_is_said(
    model, flags, peaks, said, tmp_path
):
    import openvino

    scheme = scheme_for(flags)
    given = prepared(tmp_path, model, "openvino")
    made = apply(tmp_path, given, "quantize_static", scheme=scheme)
    ops = openvino.Core().read_model(str(made.path)).get_ordered_ops()
    kept = {
        op.get_data().shape: op.get_data().astype(int)
        for op in ops
        if op.get_type_name() == "Constant" and op.get_element_type() == openvino.Type.i8
    }
    depthwise = kept.pop((32, 1, 1, 3, 3), None)
    assert {int(abs(values).max()) for values in kept.values()} <= peaks
    if depthwise is not None:  # no two of its products are summed
        assert abs(depthwise).max() == 127
    assert violations(made, scheme) == []
    assert f"INT8: weights s8 per channel, activations s8 and u8, {said}" in made.facts["notes"]
    assert made.facts["quantization"]["reduce_range"] == (64 in peaks)


def test_openvino_says_that_it_has_no_entropy(tmp_path):
    said = "entropy is not there in NNCF: mse is used"
    given = prepared(tmp_path, "mlp", "openvino")
    made = apply(tmp_path, given, "quantize_static", method="entropy")
    assert said in made.facts["notes"]
    assert "7-bit" not in " ".join(made.facts["notes"])
    other = apply(tmp_path / "mse", given, "quantize_static", method="mse")
    assert said not in other.facts["notes"]
    assert made.path.with_suffix(".bin").read_bytes() == other.path.with_suffix(".bin").read_bytes()


def test_a_file_that_does_not_shrink_is_said(tmp_path):
    made = apply(tmp_path, prepared(tmp_path, "depthwise", "openvino"), "quantize_static")
    assert "the INT8 file is no smaller" in made.facts["notes"][-1]


@BOTH
@pytest.mark.parametrize(
    ("model", "least"),
    [
        ("convnet", 30),
        ("mlp", 30),
        ("transformer_block", 25),
        ("hardswish_net", 20),
        ("gru", 30),
        ("lstm", 30),
    ],
)
def test_outputs_stay_close(target, model, least, tmp_path):
    given = prepared(tmp_path, model, target)
    assert sqnr_db(given, apply(tmp_path, given, "quantize_static")) >= least


@BOTH
def test_weights_are_integers_in_the_file(target, tmp_path):
    given = prepared(tmp_path, "mlp", target)
    made = apply(tmp_path, given, "quantize_static")
    assert made.size_bytes < 0.32 * given.size_bytes


@BOTH
def test_kept_layers_stay_float(target, tmp_path):
    keep = Keep(float=("block.conv2",), float_ops=("Gemm",))
    made = apply(tmp_path, prepared(tmp_path, "convnet", target), "quantize_static", keep=keep)
    rows = {row["layer"]: row for row in made.facts["requested"]}
    assert rows["block.conv2"]["requested"] == "float32"
    assert rows["block.conv2"]["reason"] == "keep.float block.conv2"
    assert rows["head"]["reason"] == "keep.float op Gemm"
    assert rows["block.conv1"]["requested"] == "int8"


@BOTH
def test_a_pattern_that_matches_nothing_is_an_error(target, tmp_path):
    given = prepared(tmp_path, "convnet", target)
    with pytest.raises(UsageError, match=r"block\.conv7[\s\S]*did you mean"):
        apply(tmp_path, given, "quantize_static", keep=Keep(float=("block.conv7",)))


@BOTH
def test_an_already_quantized_model_is_refused(target, tmp_path):
    made = apply(tmp_path, prepared(tmp_path, "mlp", target), "quantize_static")
    (reason,) = refused(made, "quantize_static")
    assert "already quantized" in reason.why
    with pytest.raises(Unsupported, match="already quantized"):
        apply(tmp_path, made, "quantize_static")


def test_everything_kept_is_refused_with_a_reason_per_node(tmp_path):
    given = prepared(tmp_path, "mlp")
    with pytest.raises(Unsupported, match="no layer can run in INT8") as caught:
        apply(tmp_path, given, "quantize_static", exclude=["*"])
    assert any(r.where == "fc1" for r in caught.value.refusals)


def test_clipping_ranges_helps_where_an_outlier_stretches_them(tmp_path):
    given = prepared(tmp_path, "convnet")
    plain = apply(tmp_path / "a", given, "quantize_static", method="minmax")
    clipped = apply(tmp_path / "b", given, "quantize_static", method="mse")
    assert plain.files != clipped.files
    assert sqnr_db(given, clipped) > 25


def test_biases_are_corrected(tmp_path):
    given = prepared(tmp_path, "convnet")
    with_ = apply(tmp_path / "a", given, "quantize_static")
    without = apply(tmp_path / "b", given, "quantize_static", bias_correction="off")
    assert sqnr_db(given, with_) > sqnr_db(given, without) - 1.0
    assert with_.files != without.files


def test_seven_bit_weights_without_vnni(tmp_path):
    from dataclasses import replace

    from compressor.quantization.onnx_static import quantize
    from exporters._onnx_graph import load_model
    from exporters._schemes import ONNXRUNTIME
    from tests import models

    model = load_model(prepared(tmp_path, "mlp").path)
    data = lambda: iter([models.feeds(model, 8)])  # noqa: E731
    made = quantize(model, replace(ONNXRUNTIME, reduce_range=True), Keep(), data).model
    weights = [t for t in made.graph.initializer if t.data_type == onnx.TensorProto.INT8]
    assert max(np.abs(onnx.numpy_helper.to_array(t).astype(int)).max() for t in weights) == 63


def test_facts_say_what_was_done(tmp_path):
    facts = apply(tmp_path, prepared(tmp_path, "gru"), "quantize_static").facts
    assert facts["quantization"]["samples"] == 64
    assert "GRU" in " ".join(facts["notes"])
    assert {row["layer"]: row["requested"] for row in facts["requested"]}["rnn"] == "float32"


@BOTH
def test_how_far_the_ranges_had_come_is_said(target, tmp_path):
    given = prepared(tmp_path, "convnet", target)
    facts = apply(tmp_path, given, "quantize_static").facts
    (said,) = [n for n in facts["notes"] if n.startswith("calibration: the median range grew by")]
    assert "over the last half of 64 samples" in said
    assert "after 16, " in said
    widths = facts["quantization"]["range_widths"]
    assert [samples for samples, *_ in widths] == [16, 32]
    assert all(0 < least <= median <= 1 for _, median, least in widths)
    assert facts["quantization"]["range_growth"] == pytest.approx(1 - widths[-1][1])


@BOTH
def test_ranges_that_still_grow_are_a_warning(target, tmp_path):
    given = prepared(tmp_path, "convnet", target)
    images = models.fashion_like(48)["image"]
    brighter = images * np.linspace(0.1, 3, 48, dtype=np.float32)[:, None, None, None]
    data = {"calibration": ArraySamples({"image": brighter})}
    notes = apply(tmp_path, given, "quantize_static", data=data).facts["notes"]
    (said,) = [note for note in notes if note.startswith(UNCONVERGED)]
    assert said.endswith("at most 20% was expected: hand in 48 more, drawn at random")


def test_both_engines_tell_the_same_series(tmp_path):
    found = [
        apply(tmp_path, prepared(tmp_path, "convnet", target), "quantize_static").facts
        for target in ("onnxruntime", "openvino")
    ]
    a, b = (facts["quantization"]["range_widths"] for facts in found)
    # They do not quantize quite the same tensors: OpenVINO the sum before its Relu too.
    np.testing.assert_allclose(a, b, atol=0.05)


def test_the_bare_core_is_enough(tmp_path):
    """No torch, NNCF, OpenVINO, scipy or sympy on the way from an ONNX file to INT8 in 4 bits."""
    code = f"""
import sys
for name in ("torch", "nncf", "openvino", "scipy", "sympy", "onnxslim", "onnxscript"):
    sys.modules[name] = None
from pathlib import Path
from tests.compressor.quantization.helpers import apply, prepared
place = Path({str(tmp_path)!r})
made = apply(place, prepared(place, "convnet"), "quantize_static")
print("BYTES", apply(place, made, "quantize_weights").size_bytes)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert 0 < int(done.stdout.split()[-1]) < 10_000


def test_a_model_that_nncf_cannot_place_quantizers_in_fails_as_a_candidate(tmp_path, monkeypatch):
    given = prepared(tmp_path, "convnet", "openvino")
    import nncf
    import nncf.errors

    def broken(*_, **__):
        raise nncf.errors.InternalError("QConfigs for unified scale group [a, b] are not equal")

    monkeypatch.setattr(nncf, "quantize", broken)
    with pytest.raises(BuildFailed, match=r"NNCF cannot quantize .* QConfigs for unified scale"):
        apply(tmp_path, given, "quantize_static")
