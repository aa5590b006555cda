"""Bundles in FP8, BF16 and with INT4 weights: what they hold, say and answer, and who lacks them.

Tests marked `rtx` need TensorRT-RTX's wheel (`make test-rtx`), none a GPU.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compressor.quantization.half_typed import emulated
from exporters import to_tensorrt, to_tensorrt_rtx
from exporters._check import onnx_session, run_onnx
from exporters._rtx_check import rows
from exporters._rtx_compile import compile_plan, missing
from exporters._schemes import TENSORRT
from exporters._trt_normalise import normalised
from exporters._trt_rules import findings
from runtimes.errors import Unsupported
from runtimes.rt_onnxruntime import open_session
from runtimes.types import Artifact
from tests import models
from tests.compressor.quantization.helpers import apply, prepared, refused
from tests.exporters.helpers import artifact_of, step

SHAPES = {"tokens": {"time": (1, 6, 16)}}
HALF = ("cast_half", {"compute": "half", "least_db": 20.0})
VARIANTS: dict[str, tuple[str, list[tuple[str, dict[str, Any]]]]] = {
    "fp8": ("convnet", [("quantize_static", {"dtype": "float8"}), HALF]),
    "int4": ("transformer_block", [("quantize_weights", {"form": "computed"}), HALF]),
    "bf16": ("convnet", [("cast_half", {"compute": "half", "dtype": "bfloat16"})]),
}
Made = Callable[[str], tuple[Artifact, Artifact]]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    """Variant → the float artifact, and the typed one that a bundle is made of."""
    done: dict[str, tuple[Artifact, Artifact]] = {}

    def variant(name: str) -> tuple[Artifact, Artifact]:
        if name not in done:
            folder, (model, steps) = tmp_path_factory.mktemp(name), VARIANTS[name]
            source = given = prepared(folder, model)
            for each, options in steps:
                given = apply(folder, given, each, scheme=TENSORRT, **options)
            done[name] = source, given
        return done[name]

    return variant


def bundle_of(made: Artifact, folder: Path, **options: Any) -> tuple[Artifact, dict[str, Any]]:
    shapes = {k: v for k, v in SHAPES.items() if k in {s.name for s in made.inputs}}
    found = step(to_tensorrt, made, folder, shapes=shapes, **options)
    return found, json.loads((found.root / "trt.json").read_text())


@pytest.mark.parametrize(
    ("name", "first", "least", "jetpack", "layer"),
    [
        ("fp8", 89, "10.3", "7.0 or later, on Thor", ("float8", None)),
        ("int4", 80, "10.15", "7.2 or later", ("float16", "int4")),
        ("bf16", 80, "10.15", "7.2 or later", ("bfloat16", None)),
    ],
)
def test_a_variant_says_what_it_is_and_what_it_needs(
    name, first, least, jetpack, layer, made, tmp_path
):
    source, given = made(name)
    bundle, told = bundle_of(given, tmp_path, proxy=())
    needs = told["requires"]
    assert told["precision"] == name
    assert (needs["sm_min"], min(needs["sm"]), needs["jetpack"]) == (first, first, jetpack)
    assert needs["tensorrt"]["min"] == least
    rows = [(row["precision"], row.get("weights")) for row in told["layers"]]
    assert set(rows) - {("float16", None)} == {layer}
    feeds = models.feeds(onnx.load(source.path), 32, seed=7)
    with open_session(source) as plain, open_session(bundle) as typed:
        want, got = plain.run(feeds), typed.run(feeds)
    for key, value in want.items():
        noise = ((got[key].astype(np.float64) - value) ** 2).sum()
        # Rounding to nearest leaves a layer about 20 dB in 4 bits, 30 in FP8, 40 in BF16.
        assert 10 * np.log10((value.astype(np.float64) ** 2).sum() / noise) > 15


@pytest.mark.parametrize(
    ("name", "sm", "why"),
    [
        ("fp8", 87, r"compute capability 87 \(Orin\): it has no FP8, which begins with 89"),
        ("int4", 75, r"compute capability 75 \(Turing\): it has no INT4, which begins with 80"),
    ],
)
def test_a_gpu_without_the_type_is_refused_by_name(name, sm, why, made, tmp_path):
    _, given = made(name)
    with pytest.raises(Unsupported, match=why):
        bundle_of(given, tmp_path, sms=(sm, 120))
    bundle, _ = bundle_of(given, tmp_path, proxy=())
    with pytest.raises(Unsupported, match=f"no {name.upper()}"):
        step(to_tensorrt_rtx, bundle, tmp_path, compute_capabilities=(sm, 120))


def test_fp8_is_refused_where_it_is_no_use(tmp_path):
    source = prepared(tmp_path, "mlp")
    (found,) = refused(source, "quantize_static", dtype="float8")
    assert "onnxruntime multiplies in no FP8" in found.why
    with pytest.raises(Unsupported, match="FP8 is no such grid"):
        apply(tmp_path, source, "quantize_static", scheme=TENSORRT, dtype="float8", method="mse")


def test_int4_in_any_form_becomes_blocks_with_the_same_values():
    """A scale for each channel, UINT4 around 8, a turned matrix; what does not divide, floats."""
    rng, make = np.random.default_rng(0), helper.make_node
    values = rng.integers(-7, 8, (64, 64))
    scale = numpy_helper.from_array(rng.uniform(0.01, 0.02, 64).astype(np.float32), "s")
    weights = [
        scale,
        helper.make_tensor("w", TensorProto.INT4, (64, 64), values.ravel()),
        helper.make_tensor("u", TensorProto.UINT4, (64, 64), values.ravel() + 8),
        helper.make_tensor("z", TensorProto.UINT4, (64,), [8] * 64),
        helper.make_tensor("odd", TensorProto.INT4, (64, 9), values[:, :9].ravel()),
        helper.make_tensor("last", TensorProto.INT4, (9, 64), values[:9].ravel()),
    ]
    nodes = [
        make("DequantizeLinear", ["w", "s"], ["wd"], name="w.dq", axis=1),
        make("MatMul", ["x", "wd"], ["a"], name="plain"),
        make("DequantizeLinear", ["u", "s", "z"], ["ud"], name="u.dq", axis=0),
        make("Gemm", ["a", "ud"], ["b"], name="turned", transB=1),
        make("DequantizeLinear", ["odd", "one"], ["od"], name="odd.dq"),
        make("MatMul", ["b", "od"], ["c"], name="narrow"),
        make("DequantizeLinear", ["last", "one"], ["ld"], name="last.dq"),
        make("MatMul", ["c", "ld"], ["y"], name="nine"),
    ]
    weights.append(numpy_helper.from_array(np.float32(0.05), "one"))
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [5, 64]) for n in "xy")
    graph = helper.make_graph(nodes, "int4", [x], [y], weights)
    opset = [helper.make_opsetid("", 21)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    feeds = {"x": rng.standard_normal((5, 64)).astype(np.float32)}
    want = run_onnx(onnx_session(model.SerializeToString(), optimize=False), feeds)["y"]
    changed, notes = normalised(onnx.ModelProto.FromString(model.SerializeToString()))
    got = run_onnx(onnx_session(changed.SerializeToString(), optimize=False), feeds)["y"]
    np.testing.assert_allclose(got, want, rtol=1e-5)
    kinds = {tensor.name: tensor for tensor in changed.graph.initializer}
    blocks = {
        node.output[0]: {a.name: a.i for a in node.attribute}
        for node in changed.graph.node
        if node.op_type == "DequantizeLinear" and kinds[node.input[0]].data_type == TensorProto.INT4
    }
    assert blocks == {
        "wd": {"axis": 0, "block_size": 32},
        "ud": {"axis": 1, "block_size": 32},
        "od": {"axis": 0, "block_size": 32},
    }
    assert "3 INT4 weights given scales by block" in notes


def test_fp8_of_others_is_taken_with_its_weights_rounded_once():
    """Quantizers leave weights in float in front of Q and DQ, with a scale for each channel."""
    rng, make = np.random.default_rng(0), helper.make_node
    kind = TensorProto.FLOAT8E4M3FN
    weights = [
        numpy_helper.from_array(rng.standard_normal((8, 8)).astype(np.float32), "w"),
        numpy_helper.from_array(rng.uniform(0.005, 0.01, 8).astype(np.float32), "ws"),
        helper.make_tensor("wz", kind, [8], bytes(8), raw=True),
        numpy_helper.from_array(np.array([0.01], np.float32), "s"),
        helper.make_tensor("z", kind, [1], bytes(1), raw=True),
    ]
    nodes = [
        make("QuantizeLinear", ["x", "s", "z"], ["q"], name="q", axis=0),
        make("DequantizeLinear", ["q", "s", "z"], ["d"], name="dq", axis=0),
        make("QuantizeLinear", ["w", "ws", "wz"], ["wq"], name="w.q", axis=1),
        make("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], name="w.dq", axis=1),
        make("MatMul", ["d", "wd"], ["y"], name="product"),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [4, 8]) for n in "xy")
    graph = helper.make_graph(nodes, "fp8", [x], [y], weights)
    opset = [helper.make_opsetid("", 19)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=9)
    feeds = {"x": rng.standard_normal((4, 8)).astype(np.float32)}
    want = run_onnx(onnx_session(model.SerializeToString(), optimize=False), feeds)["y"]
    changed, _ = normalised(onnx.ModelProto.FromString(model.SerializeToString()))
    assert findings(changed) == []
    assert "w" not in {tensor.name for tensor in changed.graph.initializer}
    got = run_onnx(onnx_session(changed.SerializeToString(), optimize=False), feeds)["y"]
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_bf16_is_rounded_as_the_float_model_would_be(made, tmp_path):
    """By the types of the file, and by the names of the source's layers: two ways to one number."""
    source, given = made("bf16")
    bundle, _ = bundle_of(given, tmp_path, proxy=())
    model = onnx.load(source.path)
    layers = {r["layer"] for r in given.facts["requested"] if r["requested"] == "bfloat16"}
    rounded = emulated(model, layers, "bfloat16")
    feeds = models.feeds(model, 4, seed=3)
    want = run_onnx(onnx_session(rounded.SerializeToString(), optimize=False), feeds)
    with open_session(bundle) as session:
        got = session.run(feeds)["logits"]
    assert (bundle.root / "model.onnx").stat().st_size == bundle.size_bytes
    assert "emulated.onnx" in (bundle.root / "README.md").read_text()
    np.testing.assert_array_equal(got, got.astype(ml_dtypes.bfloat16).astype(np.float32))
    np.testing.assert_allclose(got, want["logits"], rtol=2**-7, atol=2**-8)  # a step of BF16


def half_pairs() -> onnx.ModelProto:
    """A convolution between pairs in FP16 whose bias is 250,000 steps of its products."""
    make, f16 = helper.make_node, np.float16
    weights = [
        numpy_helper.from_array(np.asarray(value, dtype), name)
        for name, value, dtype in (
            ("s", 0.02, f16), ("z", 0, np.int8), ("t", 0.05, f16), ("v", [0.0002], f16),
            ("w", np.full((1, 1, 1, 1), 100), np.int8), ("b", [1.0], f16),
        )
    ]  # fmt: skip
    nodes = [
        make("QuantizeLinear", ["x", "s", "z"], ["q"], name="q"),
        make("DequantizeLinear", ["q", "s", "z"], ["d"], name="dq"),
        make("DequantizeLinear", ["w", "v"], ["wd"], name="w.dq", axis=0),
        make("Conv", ["d", "wd", "b"], ["c"], name="conv"),
        make("Relu", ["c"], ["r"], name="relu"),
        make("QuantizeLinear", ["r", "t", "z"], ["rq"], name="r.q"),
        make("DequantizeLinear", ["rq", "t", "z"], ["y"], name="r.dq"),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT16, ["batch", 1, 4, 4]) for n in "xy")
    graph = helper.make_graph(nodes, "pairs", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def test_pairs_in_half_precision_are_answered_as_the_file_says(tmp_path):
    """ONNX Runtime 1.31 by itself counts such a bias in steps that half precision cannot hold."""
    bundle, _ = bundle_of(artifact_of(half_pairs(), tmp_path), tmp_path, proxy=())
    feeds = {"x": np.linspace(-2, 2, 32, dtype=np.float16).reshape(2, 1, 4, 4)}
    whole = np.rint(feeds["x"].astype(np.float64) / np.float16(0.02)) * np.float64(np.float16(0.02))
    want = np.rint((whole * 100 * np.float64(np.float16(0.0002)) + 1) / 0.05) * 0.05
    with open_session(bundle) as session:
        np.testing.assert_allclose(session.run(feeds)["y"], want, atol=2e-3)


@pytest.mark.rtx
@pytest.mark.skipif(bool(missing()), reason=missing() or "it is here")
@pytest.mark.parametrize(
    ("name", "sms", "kind"),
    [("fp8", (89, 120), "fp8"), ("int4", (86, 89), "int4"), ("bf16", (86, 89), "bfloat16")],
)
def test_a_variant_compiles_and_computes_in_its_type(name, sms, kind, made, tmp_path):
    bundle, told = bundle_of(made(name)[1], tmp_path)
    outcome = compile_plan(bundle.path, tmp_path / "p", sms, told["inputs"], limit_s=60)
    assert outcome.why_not == ""
    found = rows(onnx.load(bundle.path), outcome.layers, {})
    assert kind in {row.got for row in found}
    assert {row.wanted for row in found} - {""} == {kind} - {"bfloat16"}
    assert not [row for row in found if row.fell_back]
    assert told["rtx"]["compiled"]
    assert ("SM86 left out, which has no FP8" in told["rtx"]["text"]) == (name == "fp8")
