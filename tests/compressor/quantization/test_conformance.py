"""Each rule on a legal model written down by hand, and on the same model with one thing wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

from compressor.quantization.conformance import (
    onnx_violations,
    require_conforming,
    violations,
)
from exporters._schemes import ONNXRUNTIME, ONNXRUNTIME_ARM, ONNXRUNTIME_X86
from exporters.base import QuantScheme
from runtimes.errors import BuildFailed
from tests.compressor.quantization.helpers import apply, prepared
from tests.compressor.quantization.test_schemes import NETS, SCHEMES, quantized
from tests.net import Net


def legal(kind: type = np.uint8, limit: int = 127, opset: int = 21) -> ModelProto:
    """Conv, MaxPool and Gemm in integers, a scale a channel, a bias in 32 bits, a float Softmax."""
    net = Net(0)

    def pair(x: str, name: str, scale: str, zero: str) -> str:
        integers = net.op("QuantizeLinear", x, scale, zero, name=f"{name}.q")
        return net.op("DequantizeLinear", integers, scale, zero, name=f"{name}.dq")

    def weight(name: str, *shape: int) -> str:
        values = net.rng.integers(-limit, limit + 1, shape)
        net.constant(name, values, np.int8)
        net.constant(f"{name}.s", net.rng.uniform(0.001, 0.01, shape[0]))
        zero = net.constant(f"{name}.z", np.zeros(shape[0]), np.int8)
        return net.op("DequantizeLinear", name, f"{name}.s", zero, name=f"{name}.dq", axis=0)

    zero = net.constant("z", 0, kind)
    x = pair("image", "in", net.constant("s", 1 / 255), zero)
    x = net.op("Conv", x, weight("w", 4, 1, 3, 3), name="conv")
    x = pair(x, "mid", net.constant("s2", 0.02), zero)
    x = net.op("MaxPool", x, name="pool", kernel_shape=[26, 26])
    x = net.op("Flatten", pair(x, "pooled", "s2", zero), name="flatten")
    x, head = pair(x, "flat", "s2", zero), weight("v", 10, 4)
    scales = net.constant("b.s", 0.02 * numpy_helper.to_array(_tensor(net.weights, "v.s")))
    net.constant("b", np.arange(10), np.int32)
    bias = net.op("DequantizeLinear", "b", scales, name="b.dq", axis=0)
    x = net.op("Gemm", x, head, bias, name="head", transB=1)
    out = net.op("Softmax", x, name="softmax", axis=-1)
    model = net.model({"image": ["batch", 1, 28, 28]}, {"p": (out, ["batch", 10])}, opset=opset)
    assert model.opset_import[0].version == opset
    return model


def _tensor(tensors, name: str) -> onnx.TensorProto:
    return next(t for t in tensors if t.name == name)


def put(model: ModelProto, name: str, values: object, dtype: object = None) -> None:
    """Other values for an initializer."""
    tensor = _tensor(model.graph.initializer, name)
    kind = dtype or numpy_helper.to_array(tensor).dtype
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(values, kind), name))


def value(model: ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(_tensor(model.graph.initializer, name)).copy()


def node(model: ModelProto, name: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.name == name)


def add(model: ModelProto, name: str, values: object, dtype: object) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(values, dtype), name))
    return name


def signed_zero(model: ModelProto) -> None:
    put(model, "z", 0, np.int8)


def shifted_weight(model: ModelProto) -> None:
    put(model, "w.z", [0, 3, 0, 0])


def unsigned_weight(model: ModelProto) -> None:
    put(model, "w", np.abs(value(model, "w").astype(int)), np.uint8)
    put(model, "w.z", np.zeros(4), np.uint8)


def lowest_weight(model: ModelProto) -> None:
    put(model, "w", np.full((4, 1, 3, 3), -128))


def one_scale(model: ModelProto) -> None:
    put(model, "v.s", 0.01)
    put(model, "v.z", 0)
    put(model, "b.s", 0.0002)


def inner_axis(model: ModelProto) -> None:
    node(model, "v.dq").attribute[0].i = 1
    put(model, "v.s", np.full(4, 0.01))
    put(model, "v.z", np.zeros(4))
    put(model, "b.s", np.full(10, 0.0002))


def no_scale(model: ModelProto) -> None:
    put(model, "s", 0.0)


def infinite_scale(model: ModelProto) -> None:
    put(model, "s2", np.inf)


def other_half(model: ModelProto) -> None:
    node(model, "in.dq").input[1] = add(model, "s3", 0.5, np.float32)


def another_bias_scale(model: ModelProto) -> None:
    put(model, "b.s", 2 * value(model, "b.s"))


def float_input(model: ModelProto) -> None:
    node(model, "conv").input[0] = "image"


def float_weight_kept(model: ModelProto) -> None:
    add(model, "w.float", np.ones((4, 1, 3, 3)), np.float32)


def rescaled_by_a_pool(model: ModelProto) -> None:
    wider = add(model, "s4", 0.04, np.float32)
    for name in ("pooled.q", "pooled.dq", "flat.q", "flat.dq"):
        node(model, name).input[1] = wider
    put(model, "b.s", 2 * value(model, "b.s"))


def no_pair_behind(model: ModelProto) -> None:
    node(model, "flatten").input[0] = "pool.out"
    for name in ("pooled.q", "pooled.dq"):
        model.graph.node.remove(node(model, name))


def integer_gru(model: ModelProto) -> None:
    shape = (1, 12, 4)
    w = add(model, "g.w", np.ones(shape), np.int8)
    s = add(model, "g.s", 0.1, np.float32)
    r = add(model, "g.r", np.ones(shape), np.float32)
    at = list(model.graph.node).index(node(model, "softmax"))
    made = [
        helper.make_node("DequantizeLinear", [w, s], ["g.dq"], "g.dq"),
        helper.make_node("GRU", ["seq", "g.dq", r], ["g.y"], "gru", hidden_size=4),
    ]
    seq = helper.make_tensor_value_info("seq", 1, [3, 1, 4])
    model.graph.input.append(seq)
    for i, each in enumerate(made):
        model.graph.node.insert(at + i, each)


def softmax_between_pairs(model: ModelProto) -> None:
    x = node(model, "softmax")
    x.input[0] = "mid.dq.out"
    model.graph.node.append(helper.make_node("QuantizeLinear", ["p", "s", "z"], ["p.q"], "p.q"))


def relu_behind_a_gemm(model: ModelProto) -> None:
    gemm = node(model, "head")
    at = list(model.graph.node).index(gemm)
    model.graph.node.insert(at + 1, helper.make_node("Relu", ["before"], ["head.out"], "relu"))
    gemm.output[0] = "before"


def old_opset(model: ModelProto) -> None:
    model.opset_import[0].version = 12


ILLEGAL: list[tuple[Callable[[ModelProto], None], str, str, QuantScheme]] = [
    (signed_zero, "image", "activation type: expected uint8, found int8", ONNXRUNTIME),
    (shifted_weight, "conv", "weight zero point: expected 0", ONNXRUNTIME),
    (unsigned_weight, "conv", "weight type: expected signed, found uint8", ONNXRUNTIME),
    (lowest_weight, "conv", "weight range: expected ±127, found 128", ONNXRUNTIME),
    (one_scale, "head", "weight scales: expected 10, one per channel, found 1", ONNXRUNTIME),
    (inner_axis, "head", "weight axis: expected 0, found 1", ONNXRUNTIME),
    (no_scale, "in.q.out", "scale: expected positive, finite, normal", ONNXRUNTIME),
    (infinite_scale, "mid.q.out", "scale: expected positive, finite", ONNXRUNTIME),
    (other_half, "in.dq.out", "pair: expected the scale and zero point", ONNXRUNTIME),
    (another_bias_scale, "head", "bias scale: expected", ONNXRUNTIME),
    (float_input, "conv", "input: expected 8-bit, as its weight, found float", ONNXRUNTIME),
    (float_weight_kept, "w.float", "dead initializer: expected nothing", ONNXRUNTIME),
    (rescaled_by_a_pool, "pool", "passed on: expected the scale of its input", ONNXRUNTIME),
    (no_pair_behind, "pool", "passed on: expected the scale", ONNXRUNTIME),
    (integer_gru, "gru", "never in integers: expected ONNX Runtime has no integer", ONNXRUNTIME),
    (softmax_between_pairs, "softmax", "never in integers: expected 8-bit att", ONNXRUNTIME),
    (relu_behind_a_gemm, "relu", "merged with a Gemm: expected a pair behind it", ONNXRUNTIME),
    (old_opset, "w.dq.out", "scales per channel: expected operator set 13", ONNXRUNTIME),
    (lambda m: None, "conv", "weight range: expected ±63", ONNXRUNTIME_X86),
    (lambda m: None, "image", "activation type: expected int8", ONNXRUNTIME_ARM),
    (
        lambda m: None,
        "image",
        "activation zero point: expected 128, found 0",
        replace(ONNXRUNTIME, activation_symmetric=True),
    ),
    (
        lambda m: None,
        "conv",
        "weight scale: expected one for the tensor, found 4",
        replace(ONNXRUNTIME, weight_per_channel=False),
    ),
]


@pytest.mark.parametrize(
    ("model", "scheme"),
    [
        (legal(), ONNXRUNTIME),
        (legal(limit=63), ONNXRUNTIME_X86),
        (legal(np.int8), ONNXRUNTIME_ARM),
        (legal(opset=13), ONNXRUNTIME),
    ],
)
def test_a_legal_model_conforms(model: ModelProto, scheme: QuantScheme) -> None:
    assert onnx_violations(model, scheme) == []


@pytest.mark.parametrize(
    ("spoil", "where", "text", "scheme"), ILLEGAL, ids=[f"{c[0].__name__}-{c[2]}" for c in ILLEGAL]
)
def test_an_illegal_model_is_named_with_place_and_rule(spoil, where, text, scheme) -> None:
    model = legal()
    spoil(model)
    found = [str(violation) for violation in onnx_violations(model, scheme)]
    assert any(said.startswith(f"{where}: {text}") for said in found), found


def test_what_was_left_float_may_read_and_give_what_it_likes() -> None:
    model = legal()
    rescaled_by_a_pool(model)
    assert onnx_violations(model, ONNXRUNTIME, {"pool", "flatten"}) == []


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", NETS)
def test_what_is_written_conforms(name: str, scheme: str) -> None:
    assert onnx_violations(quantized(name, scheme)[1], SCHEMES[scheme]) == []


def test_a_stored_artifact_conforms_and_so_do_its_weights_in_four_bits(tmp_path) -> None:
    made = apply(tmp_path, prepared(tmp_path, "convnet"), "quantize_static")
    assert violations(made, ONNXRUNTIME) == []
    assert any(v.rule == "weight range" for v in violations(made, ONNXRUNTIME_X86))
    four = apply(tmp_path, made, "quantize_weights", bits=4)
    assert violations(four, ONNXRUNTIME) == []


def test_a_writer_that_breaks_its_scheme_fails_the_build(tmp_path, monkeypatch) -> None:
    from compressor.quantization import qdq
    from compressor.quantization.onnx_weights import quantize_weight

    given = prepared(tmp_path, "mlp")

    def spoiled(*given):
        integers, scale = quantize_weight(*given)
        return integers - 1, scale

    monkeypatch.setattr(qdq, "quantize_weight", spoiled)
    with pytest.raises(BuildFailed, match=r"fc1: weight range: expected ±127, found 128"):
        apply(tmp_path, given, "quantize_static")


def test_no_violation_is_no_error() -> None:
    require_conforming([], "quantize_static")
