"""TensorRT-RTX as a compiler; tests marked `rtx` need its wheel (`make test-rtx`), none a GPU."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from exporters import _rtx_compile
from exporters._onnx_graph import specs
from exporters._rtx_check import Row, counts, problems, proxy_check, rows
from exporters._rtx_compile import (
    Outcome,
    compile_plan,
    missing,
    plan_version,
)
from exporters._rtx_layers import parse_table
from exporters._trt_profiles import profile
from runtimes.errors import BadArtifact
from tests.exporters import rtx_models

wheel = [pytest.mark.rtx, pytest.mark.skipif(bool(missing()), reason=missing() or "it is here")]
SIZES = {"batch": (1, 4, 8), "time": (1, 6, 16)}


def tensor(dims: str, kind: str) -> str:
    return (
        f"{{ Name: t, Dimensions: [{dims}], Strides: [9,3,1], StrideOrder: [3,2,1,0], "
        f"Datatype: {kind}, Format: (NHWC) Channel major format }}"
    )


def line(kind: str, inputs: str, constants: str, *nodes: str) -> str:
    """As the builder prints a layer of an engine."""
    names = "\x1f".join(f"[ONNX Layer: {node}]" for node in nodes)
    return (
        f"Name: {nodes[0]}_myl0_2, LayerType: {kind}, Inputs: [ {inputs}], Constants: "
        f"[ {constants}], Outputs: [], TacticName: __myelin_CASK_STUB, StreamId: 0, "
        f"Metadata: {names}"
    )


# What does not come of the graph's compiler has no constants, and says where it lies.
COPY = (
    "Name: [ShapeHostToDeviceCopy 0], LayerType: ShapeHostToDevice, Inputs: [], Outputs: "
    "[ { Name: s, Location: Device, Dimensions: [], Datatype: Int32, Format: x }], TacticName: , "
    "StreamId: 0, Metadata: "
)


def compiled(
    model: onnx.ModelProto, folder: Path, sms: Sequence[int] = (86,)
) -> tuple[Outcome, list[Row]]:
    path = folder / "model.onnx"
    onnx.save(model, path)
    outcome = compile_plan(path, folder / "m.rtx.plan", sms, inputs_of(model), limit_s=60)
    return outcome, rows(model, outcome.layers, {})


def inputs_of(model: onnx.ModelProto) -> list[dict[str, Any]]:
    found, _ = specs(model)
    return [profile(spec, {"": SIZES}, found) for spec in found]


def test_a_table_is_read_with_the_nodes_that_were_fused():
    constants = ", ".join([tensor("16,4,3,3", "Int8"), tensor("1,16,1,1", "Float")])
    stem = line("correlation", tensor("-1,4,28,28", "Int8"), constants, "stem", "stem.dq")
    copy, found = parse_table([COPY, stem, "", "Engine Metadata:"])
    assert (copy.kind, copy.nodes) == ("ShapeHostToDevice", ())
    assert (found.kind, found.nodes) == ("correlation", ("stem", "stem.dq"))
    seen = [(t.dtype, t.values) for t in (*found.inputs, *found.constants)]
    assert seen == [("int8", 4 * 28 * 28), ("int8", 576), ("float32", 16)]


def test_integer_weights_beside_float_activations_are_multiplied_in_float():
    layer = line("gemm", tensor("-1,784", "Half"), tensor("784,64", "Int8"), "fc1")
    made = rows(rtx_models.int8("mlp"), parse_table([layer]), {"fc1": 3, "fc2": 1})
    found = {row.node: row for row in made}
    assert (found["fc1"].got, found["fc1"].wanted) == ("float16", "int8")
    assert found["fc1"].fell_back
    assert (found["fc2"].got, found["fc2"].fell_back) == ("", True)  # no layer is it
    assert counts(made)["int8_mac_share"] == 0


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "died of SIGSEGV"),
        ("import time; time.sleep(60)", "stopped after 1 s"),
        ("raise ImportError('libnvinfer: no such file')", "did not start: ImportError: libnv"),
    ],
)
def test_a_compiler_that_dies_or_hangs_leaves_nothing(script, why, tmp_path, monkeypatch):
    child = tmp_path / "child.py"
    child.write_text(script)
    monkeypatch.setattr(_rtx_compile, "_COMMAND", (sys.executable, str(child)))
    monkeypatch.setattr(_rtx_compile, "missing", str)
    outcome = compile_plan(tmp_path / "m.onnx", tmp_path / "m.plan", [86], [], limit_s=1)
    assert why in outcome.why_not
    assert not outcome.compiled
    assert list(tmp_path.iterdir()) == [child]


def test_without_the_wheel_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(_rtx_compile.util, "find_spec", lambda name: None)
    onnx.save(rtx_models.plain("mlp"), tmp_path / "m.onnx")
    found = proxy_check(tmp_path / "m.onnx", [86], [], {})
    assert not found["compiled"]
    assert "edge-compressor[tensorrt-rtx]" in found["why_not"]
    assert found["text"] == "not compiled with TensorRT-RTX; Orin/Thor engine not built"


def test_the_version_of_a_plan_is_in_its_header(tmp_path):
    plan = tmp_path / "m.rtx.plan"
    plan.write_bytes(b"vtrt" + bytes(20) + bytes([1, 7, 1, 116]) + bytes(36))
    assert plan_version(plan) == "1.7.1.116"
    plan.write_bytes(b"ftrt" + bytes(60))
    with pytest.raises(BadArtifact, match="not a plan of TensorRT-RTX"):
        plan_version(plan)


class TestWithTheWheel:
    pytestmark = wheel

    @pytest.mark.parametrize(
        ("name", "layers"),
        [
            ("convnet", 5),
            ("depthwise", 6),
            ("unet", 4),
            ("hardswish_net", 5),
            ("transformer_block", 7),
        ],
    )
    def test_every_layer_with_pairs_computes_in_int8(self, name, layers, tmp_path):
        model = rtx_models.int8(name)
        outcome, found = compiled(model, tmp_path, (86, 89))
        assert outcome.why_not == ""
        assert [row.wanted for row in found] == ["int8"] * layers
        assert problems(model, outcome, found) == []
        assert plan_version(tmp_path / "m.rtx.plan") == outcome.version
        assert (tmp_path / "m.rtx.plan").stat().st_size == outcome.plan_bytes

    @pytest.mark.parametrize("name", ["convnet", "transformer_block"])
    @pytest.mark.parametrize(("make", "kind"), [("plain", "float32"), ("half", "float16")])
    def test_float_models_compute_in_their_type(self, make, kind, name, tmp_path):
        outcome, found = compiled(getattr(rtx_models, make)(name), tmp_path)
        assert outcome.why_not == ""
        assert Counter(row.got for row in found) == {kind: len(found)}
        assert not any(row.fell_back for row in found)

    @pytest.mark.parametrize("make", ["half", "int8"])
    def test_two_builds_have_the_same_bytes(self, make, tmp_path):
        model, plans = getattr(rtx_models, make)("convnet"), set()
        for number in range(2):
            folder = tmp_path / str(number)
            folder.mkdir()
            outcome, _ = compiled(model, folder)
            plans.add((folder / "m.rtx.plan").read_bytes())
        assert len(plans) == 1 or (make == "int8" and not outcome.reproducible)

    @pytest.mark.parametrize(
        ("kind", "value", "text"),
        [
            (np.int8, 3, "Non-zero zero point"),
            (np.uint8, 0, "UINT8 integers are read as INT8"),
        ],
    )
    def test_zero_points_and_unsigned_integers_are_named(self, kind, value, text, tmp_path):
        model = rtx_models.with_zero_points(kind, value)
        ops = {n.name: n.op_type for n in model.graph.node}
        outcome, found = compiled(model, tmp_path)
        first = problems(model, outcome, found)[0]
        assert text in first.text
        assert ops[first.node] in {"QuantizeLinear", "DequantizeLinear"}
        assert outcome.compiled == (kind is np.uint8)  # it builds, with other numbers

    def test_an_integer_bias_is_named(self, tmp_path):
        outcome, _ = compiled(rtx_models.with_integer_bias(), tmp_path)
        assert not outcome.compiled
        assert outcome.problems[0].node == "bias.dq"
        assert not (tmp_path / "m.rtx.plan").exists()

    def test_layers_that_came_out_float_are_named(self, tmp_path):
        outcome, found = compiled(rtx_models.with_scales_of_shape_1(), tmp_path)
        assert outcome.compiled
        wide = {row.node for row in found if row.fell_back}
        assert wide == {"stem", "block.conv1", "block.conv2", "conv3"}

    def test_a_product_with_zeros_is_no_layer_in_float(self, tmp_path):
        model = rtx_models.with_zero_state()
        outcome, found = compiled(model, tmp_path)
        assert {row.node: row.got for row in found} == {
            "first": "int8", "state": "folded", "head": "int8"
        }  # fmt: skip
        assert problems(model, outcome, found) == []

    def test_fp8_is_refused_for_ampere_and_compiled_for_ada(self, tmp_path):
        outcome, _ = compiled(rtx_models.fp8(), tmp_path, (86, 89))
        assert "fp8" in outcome.why_not
        assert "sm86" in outcome.why_not
        outcome, found = compiled(rtx_models.fp8(), tmp_path, (89,))
        assert [(row.wanted, row.got) for row in found] == [("fp8", "fp8")]

    def test_a_proxy_says_that_it_is_one(self, tmp_path):
        model = rtx_models.int8("mlp")
        onnx.save(model, tmp_path / "m.onnx")
        made = proxy_check(
            tmp_path / "m.onnx", [86], inputs_of(model), {"fc1": 50_176, "fc2": 4_096}
        )
        assert (
            made["text"] == "compiled for SM86 with TensorRT-RTX 1.7.1; Orin/Thor engine not built"
        )
        assert made["layers"] == {"by_type": {"int8": 3}, "int8_mac_share": 1.0, "fell_back": []}
        assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx"]
