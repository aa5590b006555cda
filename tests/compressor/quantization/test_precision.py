from __future__ import annotations

import dataclasses

import pytest

from compressor.quantization.coverage import coverage
from compressor.quantization.precision import fallbacks, layer_table
from exporters._schemes import ONNXRUNTIME
from exporters.base import Keep
from runtimes.base import LayerPrecision
from tests.compressor.quantization.helpers import apply, engine, feeds_for, prepared
from tests.contract.subjects import onnx_artifact


def table(artifact):
    return layer_table(
        artifact, engine(artifact).layer_precisions(artifact, feeds=feeds_for(artifact))
    )


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_asked_int8_ran_int8(target, tmp_path):
    rows = table(apply(tmp_path, prepared(tmp_path, "convnet", target), "quantize_static"))
    asked = [row for row in rows if row.requested == "int8"]
    assert len(asked) >= 5
    assert fallbacks(rows) == []
    assert {row.achieved for row in asked} <= {"int8", "fused"}


def test_a_kept_layer_ran_float_for_the_users_reason(tmp_path):
    keep = Keep(float=("block.conv2",))
    made = apply(tmp_path, prepared(tmp_path, "convnet"), "quantize_static", keep=keep)
    (row,) = [row for row in table(made) if row.layer == "block.conv2"]
    assert (row.requested, row.achieved) == ("float32", "float32")
    assert row.reason == "keep.float block.conv2"


def test_a_fallback_is_said(tmp_path):
    made = prepared(tmp_path, "mlp")
    asked = [{"layer": "head", "op": "Gemm", "requested": "int8", "reason": ""}]
    made = dataclasses.replace(made, facts={"requested": asked})
    (row,) = layer_table(made, [LayerPrecision("head", "Gemm", "float32", ("head",), 5)])
    assert row.achieved == "float32"
    assert "the engine ran float32" in row.reason
    assert fallbacks([row]) == [row]


def test_layers_nobody_asked_about_are_listed_too(tmp_path):
    rows = layer_table(prepared(tmp_path, "mlp"), [LayerPrecision("x", "Reorder", "float32")])
    assert [(row.layer, row.requested) for row in rows] == [("x", "")]


def test_coverage_has_a_row_and_a_reason_per_node(tmp_path):
    rows = coverage(onnx_artifact(tmp_path / "in", "gru"), ONNXRUNTIME, Keep())
    by_op = {row.op: row for row in rows}
    assert by_op["Gemm"].requested == "int8"
    assert by_op["GRU"].requested == "float32"
    assert "quantize_weights" in by_op["GRU"].reason
    assert all(row.reason for row in rows if row.requested != "int8" and row.op != "Shape")
