"""Each rule of TensorRT's on a legal model, and on the same model with one thing wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import ModelProto, TensorProto, checker

from exporters._trt_rules import findings
from runtimes.types import TensorSpec
from tests.net import Net

SHAPE: list[int | str] = ["batch", 4, 8, 8]


class Quantized(Net):
    """A net whose layers have pairs in front of them, as TensorRT wants them or otherwise."""

    def pair(self, x: str, name: str, scale: Any = 0.05, zero: Any = 0, kind: Any = np.int8) -> str:
        args = self.constant(f"{name}.s", scale), self.constant(f"{name}.z", zero, kind)
        integers = self.op("QuantizeLinear", x, *args, name=f"{name}.q", axis=1)
        return self.op("DequantizeLinear", integers, *args, name=f"{name}.dq", axis=1)

    def int8(self, name: str, *shape: int, axis: int = 0, least: int = -127) -> str:
        values = self.rng.integers(-127, 128, shape)
        values.flat[0] = least
        self.constant(name, values, np.int8)
        scale = self.constant(f"{name}.s", self.rng.uniform(0.001, 0.01, shape[axis]))
        return self.op("DequantizeLinear", name, scale, name=f"{name}.dq", axis=axis)

    def layer(self, x: str, name: str, *, bias: str = "", out: int = 4, **pair: Any) -> str:
        """An 8-bit convolution that keeps the size."""
        x = self.pair(x, name, **pair)
        return self.op("Conv", x, self.int8(f"{name}.w", out, 4, 3, 3), *([bias] * bool(bias)),
                       name=name, pads=[1] * 4)  # fmt: skip

    def done(self, x: str, opset: int = 21, out: int = 4) -> ModelProto:
        return self.model({"image": SHAPE}, {"y": (x, ["batch", out, 8, 8])}, opset=opset)


def plain(**pair: Any) -> ModelProto:
    net = Quantized(0)
    return net.done(net.op("Relu", net.layer("image", "conv", **pair), name="relu"))


def legal() -> Iterator[tuple[str, ModelProto]]:
    """A model for each rule that keeps it."""
    for rule in ("R02", "R03", "R04", "R05", "R06", "R07", "R08", "R09", "R18", "R19"):
        yield rule, plain()
    yield "R20", four_bits(block=4)
    net = Quantized(0)
    yield "R01", net.done(net.op("Softmax", "image", name="softmax"))
    net = Quantized(0)
    x = net.op("ConvTranspose", "image", net.weight("w", 4, 4, 1, 1), name="up")
    yield "R10", net.done(x)
    net = Quantized(0)
    yield "R11", net.done(net.layer("image", "conv", bias=net.constant("b", np.ones(4))))
    net = Quantized(0)
    x = net.op("Relu", net.layer("image", "a"), name="relu")
    yield "R12", net.done(net.layer(x, "b"))
    yield "R13", norm(folded=True)
    net = Quantized(0)
    yield "R14", net.done(net.op("Conv", "image", net.weight("w", 4, 1, 1, 1), name="g", group=4))
    yield "R15", residual("legal")
    yield "R16", joined(0.05)
    yield "R17", plain()


def norm(*, folded: bool) -> ModelProto:
    net = Quantized(0)
    x = net.layer("image", "conv")
    x = net.op("Relu", x, name="between") if folded else x
    args = [net.constant(n, np.ones(4)) for n in ("g", "b", "m", "v")]
    return net.done(net.op("BatchNormalization", x, *args, name="bn"))


def residual(kind: str) -> ModelProto:
    net = Quantized(0)
    skip = net.op("Sigmoid", "image", name="skip")
    x = net.layer(skip, "conv")
    if kind == "branch":
        x = net.pair(x, "branch")
    read = skip if kind == "float" else net.pair(skip, "skipped")
    return net.done(net.op("Add", x, read, name="add"))


def joined(other: float) -> ModelProto:
    net = Quantized(0)
    a, b = net.pair("image", "a"), net.pair(net.op("Tanh", "image", name="t"), "b", scale=other)
    x = net.pair(net.op("Concat", a, b, name="join", axis=1), "c")
    x = net.op("Conv", x, net.int8("w", 4, 8, 1, 1), name="conv")
    return net.done(x)


def integer_operator() -> ModelProto:
    net = Net(0)
    zero, one = net.constant("z", 0, np.uint8), net.constant("one", 1.0)
    q = net.op("QuantizeLinear", "image", one, zero, name="q")
    w = net.constant("w", np.ones((4, 4, 1, 1)), np.uint8)
    x = net.op("QLinearConv", q, one, zero, w, one, zero, one, zero, name="conv")
    x = net.op("DequantizeLinear", x, one, zero, name="dq")
    return net.model({"image": SHAPE}, {"y": (x, SHAPE)})


def computed_scale() -> ModelProto:
    net = Quantized(0)
    scale = net.op("ReduceMax", "image", name="max", keepdims=0)
    q = net.op("QuantizeLinear", "image", scale, net.constant("z", 0, np.int8), name="q")
    return net.done(net.op("DequantizeLinear", q, scale, "z", name="dq"))


def wrong_axis() -> ModelProto:
    net = Quantized(0)
    x = net.op("Conv", net.pair("image", "x"), net.int8("w", 4, 4, 1, 1, axis=1), name="conv")
    return net.done(x)


def outside() -> ModelProto:
    net = Quantized(0)
    x = net.op("Conv", net.pair("image", "x"), net.int8("w", 4, 4, 1, 1, least=-128), name="conv")
    return net.done(x)


def one_side() -> ModelProto:
    net = Quantized(0)
    return net.done(net.op("Conv", "image", net.int8("w", 4, 4, 1, 1), name="conv"))


def integer_bias() -> ModelProto:
    net = Quantized(0)
    b = net.constant("b", np.arange(4), np.int32)
    b = net.op("DequantizeLinear", b, net.constant("b.s", np.ones(4)), name="b.dq", axis=0)
    return net.done(net.layer("image", "conv", bias=b))


def split_from_activation() -> ModelProto:
    net = Quantized(0)
    x = net.pair(net.layer("image", "conv"), "between")
    return net.done(net.op("Relu", x, name="relu"))


def grouped() -> ModelProto:
    net = Quantized(0)
    x = net.op("Conv", net.pair("image", "x"), net.int8("w", 4, 1, 1, 1), name="conv", group=4)
    return net.done(x)


def two_kinds() -> ModelProto:
    net = Quantized(0)
    x = net.layer("image", "conv")
    scale, zero = net.constant("s", 0.05), net.constant("z", 0, ml_dtypes.float8_e4m3fn)
    q = net.op("QuantizeLinear", x, scale, zero, name="fp8")
    return net.done(net.op("DequantizeLinear", q, scale, zero, name="dq"))


def four_bits(block: int = 0, kind: str = "MatMul") -> ModelProto:
    """A product of floats with INT4 weights, in blocks or with a scale for each channel."""
    net = Quantized(0)
    matrix = kind == "MatMul"
    shape, axis = ((8, 8), 0 if block else 1) if matrix else ((4, 4, 1, 1), 0)
    scales = np.ones((8 // block, 8) if block else shape[axis]) * 0.05
    net.constant("w", net.rng.integers(-7, 8, shape), ml_dtypes.int4)
    more = {"block_size": block} if block else {}
    w = net.op("DequantizeLinear", "w", net.constant("w.s", scales), name="w.dq", axis=axis, **more)
    return net.done(net.op(kind, "image", w, name="layer"))


ILLEGAL: dict[str, tuple[Callable[[], ModelProto], str, str]] = {
    # rule: model, the level, the node that is named
    "R01": (integer_operator, "error", "conv"),
    "R02": (computed_scale, "error", "q"),
    "R03": (lambda: plain(zero=7), "error", "conv.q"),
    "R04": (lambda: plain(kind=np.uint8), "error", "conv.q"),
    "R05": (lambda: opset(plain(), 12), "error", "conv.w.dq"),
    "R06": (lambda: plain(scale=0.0), "error", "conv.q"),
    "R07": (lambda: plain(scale=np.full(4, 0.05), zero=np.zeros(4)), "error", "conv.q"),
    "R08": (wrong_axis, "error", "conv"),
    "R09": (outside, "note", "conv"),
    "R10": (one_side, "warning", "conv"),
    "R11": (integer_bias, "error", "b.dq"),
    "R12": (split_from_activation, "warning", "relu"),
    "R13": (lambda: norm(folded=False), "warning", "bn"),
    "R14": (grouped, "note", "conv"),
    "R15": (lambda: residual("float"), "warning", "add"),
    "R16": (lambda: joined(0.07), "warning", "join"),
    "R18": (lambda: plain(scale=[0.05], zero=[0]), "warning", "conv.q"),
    "R19": (two_kinds, "warning", "fp8"),
    "R20": (four_bits, "warning", "layer"),
}


def opset(model: ModelProto, version: int) -> ModelProto:
    model.opset_import[0].version = version
    return model


@pytest.mark.parametrize(("rule", "model"), legal(), ids=lambda v: v if isinstance(v, str) else "")
def test_a_legal_model_passes(rule, model):
    checker.check_model(model)
    assert rule not in {one.rule for one in findings(model)}


@pytest.mark.parametrize("rule", ILLEGAL)
def test_what_breaks_a_rule_is_named(rule):
    make, level, node = ILLEGAL[rule]
    found = [one for one in findings(make()) if one.rule == rule]
    assert (level, node) in {(one.level, one.node) for one in found}
    assert all(one.text and (one.fix or level == "note") for one in found)


def test_a_pair_on_the_branch_of_a_residual_add_is_named():
    found = [one for one in findings(residual("branch")) if one.rule == "R15"]
    assert [one.node for one in found] == ["add"]
    assert "conv" in found[0].text


def test_convolutions_multiply_with_no_weights_in_4_bits():
    found = [one for one in findings(four_bits(kind="Conv")) if one.rule == "R20"]
    assert [(one.node, one.fix) for one in found] == [("layer", "keep it in float, or use INT8")]


def test_a_free_dimension_needs_a_range_and_the_flag_is_spelled_out():
    spec = TensorSpec("ids", "int64", ("batch", "time"))
    (found,) = findings(plain(), [spec])
    assert (found.rule, found.level, found.node) == ("R17", "error", "ids")
    assert found.fix == "add --shape ids=1..8@1,1..64@16"
    assert findings(plain(), [spec], {"ids": {"time": (1, 32, 128)}}) == []


def test_every_violation_of_a_model_is_told_at_once():
    model = plain(kind=np.uint8, zero=[3], scale=[0.05])
    assert {"R03", "R04", "R18"} <= {one.rule for one in findings(model)}


def test_half_precision_scales_that_lose_digits_are_named():
    model = plain(scale=1e-6)
    for tensor in model.graph.initializer:
        if tensor.name == "conv.s":
            tensor.raw_data, tensor.data_type = np.float16(1e-6).tobytes(), TensorProto.FLOAT16
    assert ("R06", "warning") in {(one.rule, one.level) for one in findings(model)}
