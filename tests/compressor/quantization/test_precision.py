from __future__ import annotations

import dataclasses

import pytest

from compressor.quantization.coverage import coverage
from compressor.quantization.ledger import ledger
from compressor.quantization.precision import layer_table
from exporters._schemes import ONNXRUNTIME
from exporters.base import Keep
from runtimes.base import LayerPrecision
from tests.compressor.quantization.helpers import apply, engine, feeds_for, prepared
from tests.contract.subjects import onnx_artifact


def table(artifact):
    return layer_table(
        artifact, engine(artifact).layer_precisions(artifact, feeds=feeds_for(artifact))
    )


def kinds(artifact, *names):
    return sum(row.size_bytes for row in ledger(artifact) if row.kind.startswith(names))


def held(rows):
    return {row.layer: row.weight_bytes for row in rows if row.weight_bytes}


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_asked_int8_ran_int8(target, tmp_path):
    rows = table(apply(tmp_path, prepared(tmp_path, "convnet", target), "quantize_static"))
    asked = [row for row in rows if row.requested == "int8"]
    assert len(asked) >= 5
    assert {row.achieved for row in asked} <= {"int8", "fused"}


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(("layer", "values"), [("block.conv2", 16 * 16 * 9), ("head", 32 * 10)])
def test_a_kept_layer_ran_float_for_the_users_reason(target, layer, values, tmp_path):
    keep = Keep(float=(layer,))
    made = apply(tmp_path, prepared(tmp_path, "convnet", target), "quantize_static", keep=keep)
    (row,) = [row for row in table(made) if row.layer == layer]
    assert row.requested == "float32"
    assert row.achieved in {"float32", "bfloat16", "float16"}
    assert row.reason == f"kept float by the recipe (keep.float {layer})"
    assert row.weight_bytes == 4 * values
    assert row.time_ns is not None


def test_a_fallback_is_said(tmp_path):
    made = prepared(tmp_path, "mlp")
    asked = [{"layer": "head", "op": "Gemm", "requested": "int8", "reason": ""}]
    made = dataclasses.replace(made, facts={"requested": asked})
    (row,) = layer_table(made, [LayerPrecision("head", "Gemm", "float32", ("head",), 5)])
    assert row.achieved == "float32"
    assert "the engine ran float32" in row.reason


def test_layers_nobody_asked_about_are_listed_too(tmp_path):
    rows = layer_table(prepared(tmp_path, "mlp"), [LayerPrecision("x", "Reorder", "float32")])
    assert [(row.layer, row.requested) for row in rows] == [("x", "")]


STORED = {
    "float": (),
    "half": [("cast_half", {})],
    "w8": [("quantize_weights", {"bits": 8})],
    "w4": [("quantize_weights", {"bits": 4})],
}


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("rung", STORED)
def test_every_stored_weight_belongs_to_a_layer(target, rung, tmp_path):
    made = prepared(tmp_path, "convnet", target)
    for step, options in STORED[rung]:
        made = apply(tmp_path / "made", made, step, **options)
    found = held(table(made))
    assert set(found) == {"stem", "block.conv1", "block.conv2", "conv3", "head"}
    assert sum(found.values()) == kinds(made, "weights", "scales", "zero points")


@pytest.mark.parametrize(("target", "zeros"), [("onnxruntime", 10), ("openvino", 0)])
def test_scales_of_activations_and_biases_belong_to_no_layer(target, zeros, tmp_path):
    made = apply(tmp_path, prepared(tmp_path, "convnet", target), "quantize_static")
    scales = 4 * (16 + 16 + 16 + 32 + 10)
    assert sum(held(table(made)).values()) == kinds(made, "weights") + scales + zeros
    assert kinds(made, "scales") > scales


@pytest.mark.parametrize("model", ["shared_weight", "if_subgraph", "transformer_block", "lstm"])
@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_a_weight_counts_once(target, model, tmp_path):
    made = prepared(tmp_path, model, target)
    assert sum(held(table(made)).values()) == kinds(made, "weights") > 0


def test_only_what_ran_or_is_a_layer_is_listed(tmp_path):
    made = prepared(tmp_path, "mlp")
    layers = [
        LayerPrecision("head", "Gemm", "float32", ("head",), 5),
        LayerPrecision("flatten", "Reshape", "float32", ("flatten",)),
        LayerPrecision("3_flatten_reshape", "Reshape", "float32", ("3_flatten_reshape",)),
        LayerPrecision("x_abcd_acdb", "Reorder", "float32", (), 0),
        LayerPrecision("y_abcd_acdb", "Reorder", "float32"),
    ]
    assert [row.layer for row in layer_table(made, layers)] == ["head", "flatten", "x_abcd_acdb"]


def test_no_view_of_a_constant_is_listed(tmp_path):
    rows = table(prepared(tmp_path, "convnet", "openvino"))
    assert [row.layer for row in rows if row.time_ns is None] == ["flatten"]


def test_coverage_has_a_row_and_a_reason_per_node(tmp_path):
    rows = coverage(onnx_artifact(tmp_path / "in", "gru"), ONNXRUNTIME, Keep())
    by_op = {row.op: row for row in rows}
    assert by_op["Gemm"].requested == "int8"
    assert by_op["GRU"].requested == "float32"
    assert "quantize_weights" in by_op["GRU"].reason
    assert all(row.reason for row in rows if row.requested != "int8" and row.op != "Shape")
