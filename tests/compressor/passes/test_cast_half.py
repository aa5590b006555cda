from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from compressor.quantization.half import castable
from compressor.quantization.ledger import ledger
from exporters._schemes import TENSORRT
from exporters.base import Keep
from runtimes.errors import Unsupported, UsageError
from tests import models
from tests.compressor.quantization.helpers import (
    apply,
    executed,
    precisions,
    prepared,
    sqnr_db,
)
from tests.runtimes.artifacts import artifact_of

FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
BOTH = pytest.mark.parametrize("target", ["onnxruntime", "openvino"])


@BOTH
@pytest.mark.parametrize("model", ["convnet", "gru", "transformer_block"])
def test_half_the_bytes_and_the_same_kernels(target, model, tmp_path):
    given = prepared(tmp_path, model, target)
    made = apply(tmp_path, given, "cast_half")
    kinds = {row.kind: row.size_bytes for row in ledger(made)}
    before = {row.kind: row.size_bytes for row in ledger(given)}
    assert kinds["weights half"] * 2 == before["weights float"]
    assert executed(made) == executed(given)
    assert sqnr_db(given, made) > 40


@BOTH
def test_kept_layers_stay(target, tmp_path):
    keep = Keep(float=("fc1",))
    made = apply(tmp_path, prepared(tmp_path, "mlp", target), "cast_half", keep=keep)
    kinds = {row.kind: row.size_bytes for row in ledger(made)}
    assert kinds["weights float"] == 4 * 28 * 28 * 64


@BOTH
def test_a_second_time_has_nothing_left(target, tmp_path):
    made = apply(tmp_path, prepared(tmp_path, "mlp", target), "cast_half", least=1)
    with pytest.raises(Unsupported, match="no float32 weight"):
        apply(tmp_path, made, "cast_half")


def test_values_beyond_the_range_stay_and_are_said(tmp_path):
    given = onnx.load(str(prepared(tmp_path, "mlp").path))
    (weight,) = [t for t in given.graph.initializer if t.name == "fc2.weight"]
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0, 0] = 70000.0
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    artifact = artifact_of(given, tmp_path / "wide")
    assert "fc2.weight" not in castable(artifact, 64, Keep())
    made = apply(tmp_path, artifact, "cast_half")
    assert "kept float32, beyond float16's range: fc2.weight" in made.facts["notes"]
    left = {t.name: t for t in onnx.load(str(made.path)).graph.initializer}
    assert onnx.numpy_helper.to_array(left["fc2.weight"]).dtype == np.float32


# ------------------------------------------------------------------------------ compute: half


def typed(tmp_path, given, **options):
    made = apply(tmp_path, given, "cast_half", compute="half", **options)
    return made, onnx.load(str(made.path))


def types_of(model):
    """Element type of every tensor, as shape inference finds it."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = [*inferred.input, *inferred.value_info, *inferred.output]
    return {v.name: v.type.tensor_type.elem_type for v in values}


def requested(made):
    return {row["layer"]: row for row in made.facts["requested"]}


@pytest.mark.parametrize(
    "model", ["convnet", "hardswish_net", "unet", "lstm", "transformer_block", "int_embedding"]
)
def test_tensors_are_half_and_the_border_is_not(model, tmp_path):
    given = prepared(tmp_path, model)
    made, proto = typed(tmp_path, given)
    kinds = types_of(proto)
    border = [v.name for v in (*proto.graph.input, *proto.graph.output)]
    inside = {kinds[name] for node in proto.graph.node for name in node.output if name in kinds}
    floats = [v for v in proto.graph.input if v.type.tensor_type.elem_type == FLOAT]
    assert all(kinds[name] != HALF for name in border)
    assert HALF in inside
    casts = [n for n in proto.graph.node if n.op_type == "Cast" and n.input[0] in border]
    assert len(casts) == len(floats)
    left = {t.name for t in proto.graph.initializer if t.data_type == FLOAT}
    assert left <= {"scales"}  # of Resize, which takes float32 alone
    assert sqnr_db(given, made) > 55
    assert made.size_bytes < 0.62 * given.size_bytes


def test_bfloat16_is_typed_and_computes_the_same(tmp_path):
    """onnx's own evaluator runs it; the note's figure is from rounding in float32."""
    given = prepared(tmp_path, "mlp")
    _, proto = typed(tmp_path, given, dtype="bfloat16")
    assert onnx.TensorProto.BFLOAT16 in {t.data_type for t in proto.graph.initializer}
    feeds = {"image": models.fashion_like(16, seed=3)["image"]}
    want = models.run(onnx.load(str(given.path)), feeds)
    got = ReferenceEvaluator(proto).run(None, feeds)
    for value, found in zip(want.values(), got, strict=True):
        assert found.dtype == np.float32
        # Six roundings to 2^-9 in a row, of which the largest value sees no more than their sum.
        np.testing.assert_allclose(found, value, atol=6 * 2**-9 * np.abs(value).max(), rtol=0)


def chain(nodes, constants, shape=("batch", 8)):
    """A model of `nodes` from `x` to `y`, with a MatMul in front that computes in half."""
    first = onnx.helper.make_node("MatMul", ["x", "w"], ["m"], "matmul")
    kinds = {"w": np.eye(8, dtype=np.float32), **constants}
    graph = onnx.helper.make_graph(
        [first, *nodes],
        "model",
        [onnx.helper.make_tensor_value_info("x", FLOAT, shape)],
        [onnx.helper.make_tensor_value_info("y", FLOAT, None)],
        [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in kinds.items()],
    )
    opsets = [onnx.helper.make_opsetid("", 21)]
    made = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return onnx.shape_inference.infer_shapes(made)


def node(op, inputs, outputs, name, **attributes):
    return onnx.helper.make_node(op, inputs, outputs, name, **attributes)


@pytest.mark.parametrize(
    ("nodes", "constants", "kept", "why"),
    [
        (
            [node("Add", ["m", "mask"], ["a"], "add"), node("Softmax", ["a"], ["y"], "softmax")],
            {"mask": np.float32([0, 0, 0, 0, -1e9, -1e9, -3.4e38, 0])},
            {"add", "softmax"},
            "beyond float16",
        ),
        (
            [node("Mul", ["m", "big"], ["b"], "mul"), node("Tanh", ["b"], ["y"], "tanh")],
            {"big": np.float32([3e5] * 8)},
            {"mul", "tanh"},
            "beyond float16",
        ),
        (
            [node("Add", ["m", "tiny"], ["a"], "add"), node("Sqrt", ["a"], ["y"], "sqrt")],
            {"tiny": np.float32([1e-9] * 8)},
            {"add", "sqrt"},
            "fewer digits",
        ),
        (
            [
                node("Mul", ["m", "large"], ["b"], "mul"),
                node("LayerNormalization", ["b", "one"], ["y"], "norm"),
            ],
            {"large": np.float32([2000] * 8), "one": np.ones(8, np.float32)},
            {"norm"},
            "when squared",
        ),
    ],
    ids=["mask", "overflow", "epsilon", "variance"],
)
def test_what_leaves_the_range_stays_float32(nodes, constants, kept, why, tmp_path):
    given = artifact_of(chain(nodes, constants), tmp_path / "in")
    made, _ = typed(tmp_path, given)
    rows = requested(made)
    assert {name for name, row in rows.items() if row["requested"] == "float32"} == kept
    assert any(why in row["reason"] for row in rows.values())
    assert why in " ".join(made.facts["notes"])
    assert sqnr_db(given, made) > 40


def test_layers_go_back_to_float32_until_the_loss_is_small_enough(tmp_path):
    given = prepared(tmp_path, "transformer_block")
    few, _ = typed(tmp_path / "a", given, dtype="bfloat16")
    more, _ = typed(tmp_path / "b", given, dtype="bfloat16", least_db=52)
    left = [r for r in requested(more).values() if r["requested"] == "float32"]
    assert all(r["requested"] == "bfloat16" for r in requested(few).values())
    assert left
    assert any("it cost most" in r["reason"] for r in left)


def test_without_data_what_reaches_far_stays_and_nothing_is_claimed(tmp_path):
    given = prepared(tmp_path, "transformer_block")
    made = apply(tmp_path, given, "cast_half", calibrated=False, compute="half")
    rows = requested(made)
    kept = {row["op"] for row in rows.values() if row["requested"] == "float32"}
    assert {"Softmax", "LayerNormalization"} <= kept
    assert "not judged: no calibration data" in made.facts["notes"]


def test_the_users_layers_stay_float32_and_lone_light_nodes_with_them(tmp_path):
    given = prepared(tmp_path, "mlp")
    keep = Keep(float_ops=("Gemm",))
    with pytest.raises(Unsupported, match="no layer with weights can compute"):
        apply(tmp_path, given, "cast_half", compute="half", keep=keep)
    made = apply(tmp_path, given, "cast_half", compute="half", keep=Keep(float=("fc1",)))
    rows = requested(made)
    assert rows["fc1"]["requested"] == "float32"
    assert rows["fc2"]["requested"] == "float16"


def test_integers_stay_integers(tmp_path):
    given = apply(tmp_path, prepared(tmp_path, "transformer_block"), "quantize_static")
    made, proto = typed(tmp_path, given)
    assert "int8" in {row["requested"] for row in requested(made).values()}
    kinds = types_of(proto) | {t.name: t.data_type for t in proto.graph.initializer}
    quantize = [n for n in proto.graph.node if n.op_type == "QuantizeLinear"]
    assert all(kinds[n.input[0]] == kinds[n.input[1]] for n in quantize)
    assert {kinds[n.input[0]] for n in quantize} == {FLOAT, HALF}
    assert sqnr_db(given, made) > 30


def test_no_cast_stands_between_integers_and_the_product_that_reads_them(tmp_path):
    scheme = {"scheme": TENSORRT}
    given = apply(tmp_path, prepared(tmp_path, "convnet"), "quantize_static", **scheme)
    made, proto = typed(tmp_path, given)
    makers = {name: n for n in proto.graph.node for name in n.output}
    for layer in (n for n in proto.graph.node if n.op_type in {"Conv", "Gemm"}):
        assert [makers[name].op_type for name in layer.input[:2]] == ["DequantizeLinear"] * 2
        assert types_of(proto)[layer.output[0]] == HALF
    assert sqnr_db(given, made) > 35


def test_a_branch_reads_float32(tmp_path):
    """An If between layers takes float32 from outside and gives it back."""
    yes = onnx.helper.make_graph(
        [node("Relu", ["m"], ["r1"], "relu")],
        "yes", [], [onnx.helper.make_tensor_value_info("r1", FLOAT, None)],
    )  # fmt: skip
    no = onnx.helper.make_graph(
        [node("Neg", ["m"], ["r2"], "neg")],
        "no", [], [onnx.helper.make_tensor_value_info("r2", FLOAT, None)],
    )  # fmt: skip
    branch = node("If", ["yes"], ["i"], "if", then_branch=yes, else_branch=no)
    model = chain(
        [branch, node("MatMul", ["i", "w2"], ["y"], "last")],
        {"yes": np.bool_(True), "w2": np.eye(8, dtype=np.float32)},
    )
    given = artifact_of(model, tmp_path / "in")
    made, _ = typed(tmp_path, given)
    assert requested(made)["if"]["requested"] == "float32"
    assert requested(made)["last"]["requested"] == "float16"
    assert sqnr_db(given, made) > 40


def test_weights_stored_as_bfloat16_cost_no_kernel(tmp_path):
    given = prepared(tmp_path, "convnet")
    made = apply(tmp_path, given, "cast_half", dtype="bfloat16")
    assert executed(made) == executed(given)
    assert made.size_bytes < 0.62 * given.size_bytes
    assert sqnr_db(given, made) > 35


def test_openvino_keeps_what_loses_in_the_devices_precision(tmp_path):
    openvino = pytest.importorskip("openvino", reason="needs the openvino extra")
    given = prepared(tmp_path, "lstm", "openvino")
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(str(given.path)), "CPU")
    if compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32":
        with pytest.raises(UsageError, match="computes in float32"):
            apply(tmp_path, given, "cast_half", compute="half")
        return
    made = apply(tmp_path, given, "cast_half", compute="half", least_db=60)
    assert 'name="precise"' in made.path.read_text(encoding="utf-8")
    assert precisions(made)["float32"] > precisions(given)["float32"]
    plain = apply(tmp_path / "plain", given, "cast_half")
    assert sqnr_db(given, made) != sqnr_db(given, plain)
    with pytest.raises(UsageError, match="calibration"):
        apply(tmp_path, given, "cast_half", calibrated=False, compute="half")


def test_openvino_has_no_bfloat16_files(tmp_path):
    given = prepared(tmp_path, "mlp", "openvino")
    with pytest.raises(Unsupported, match="float16"):
        apply(tmp_path, given, "cast_half", dtype="bfloat16")
