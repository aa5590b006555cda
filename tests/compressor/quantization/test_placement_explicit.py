"""Where pairs stand for an engine that takes them as orders: TensorRT's rules, on small graphs."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import pytest

from compressor.quantization.conformance import onnx_violations
from compressor.quantization.onnx_static import Quantized, quantize
from exporters._onnx_cleanup import clean
from exporters._onnx_graph import normalise
from exporters._schemes import TENSORRT
from exporters.base import Keep
from tests import models
from tests.net import Net

NETS = ("convnet", "depthwise", "unet", "mlp", "transformer_block", "shared_weight", "gru")


@functools.cache
def quantized(name: str) -> Quantized:
    return _quantized(models.ALL[name]())


def _quantized(model: onnx.ModelProto, keep: Keep | None = None) -> Quantized:
    made, _ = normalise(model)
    clean(made)
    feeds = models.feeds(made, 16, seed=1)
    return quantize(made, TENSORRT, keep or Keep(), lambda: iter([feeds]))


def maker(model: onnx.ModelProto, name: str) -> onnx.NodeProto | None:
    return next((n for n in model.graph.node if name in n.output), None)


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.name == name)


def sources(model: onnx.ModelProto, name: str) -> list[str]:
    """What kind of node makes each computed input of node `name`."""
    makers = [maker(model, tensor) for tensor in node(model, name).input]
    return [made.op_type for made in makers if made is not None]


def scale_of(model: onnx.ModelProto, tensor: str) -> float:
    made = maker(model, tensor)
    assert made is not None
    assert made.op_type == "DequantizeLinear"
    scale = next(t for t in model.graph.initializer if t.name == made.input[1])
    return float(onnx.numpy_helper.to_array(scale))


@pytest.mark.parametrize("name", NETS)
def test_answers_stay_and_the_scheme_holds(name):
    made = quantized(name)
    assert onnx_violations(made.model, TENSORRT, made.plan.reasons) == []
    original, _ = normalise(models.ALL[name]())
    feeds = models.feeds(original, 32, seed=2)
    want, got = models.run(original, feeds), models.run(made.model, feeds)
    noise = sum(float(((want[k] - got[k]) ** 2).sum()) for k in want)
    assert 10 * np.log10(sum(float((v**2).sum()) for v in want.values()) / noise) > 25


def test_no_pair_stands_between_a_convolution_and_its_activation():
    model = quantized("convnet").model
    assert sources(model, "stem.relu") == ["Conv"]
    assert sources(model, "block.conv1") == ["DequantizeLinear", "DequantizeLinear"]


def test_the_skip_branch_of_an_add_is_read_through_a_pair_and_the_other_is_not():
    assert sorted(sources(quantized("convnet").model, "block.add")) == ["Conv", "DequantizeLinear"]


def test_biases_stay_float_and_scales_of_activations_are_scalars():
    model = quantized("mlp").model
    assert sources(model, "head") == ["DequantizeLinear", "DequantizeLinear"]
    weights = {t.name: t for t in model.graph.initializer}
    zeros = [weights[n.input[2]] for n in model.graph.node if n.op_type == "QuantizeLinear"]
    assert {tuple(t.dims) for t in zeros} == {()}
    assert {t.data_type for t in zeros} == {onnx.TensorProto.INT8}


def test_a_transposed_convolution_becomes_one_that_runs_in_integers():
    model = quantized("unet").model
    assert node(model, "up").op_type == "Conv"
    assert sources(model, "up") == ["DequantizeLinear", "DequantizeLinear"]


def test_a_weight_that_a_float_node_reads_too_is_kept_for_it():
    net = Net(0)
    table = net.weight("table", 10, 10)
    x = net.op("Gather", table, "ids", name="embed")
    model = net.model(
        {"ids": ["batch", 4]}, {"out": (net.op("MatMul", x, table, name="head"), ["batch", 4, 10])},
        integers=["ids"],
    )  # fmt: skip
    made = _quantized(model)
    assert made.plan.integer == ["head"]
    assert sources(made.model, "head") == ["DequantizeLinear", "DequantizeLinear"]


def joined() -> onnx.ModelProto:
    """Two convolutions whose results another one reads, one by one and joined."""
    net = Net(0)
    a = net.op("Relu", net.conv("image", "a", (8, 1, 3, 3)), name="relu.a")
    b = net.op("Relu", net.conv(a, "b", (8, 8, 3, 3)), name="relu.b")
    small = net.op("MaxPool", a, name="small", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    x = net.conv(net.op("Concat", a, b, small, name="join", axis=1), "c", (8, 24, 1, 1))
    return net.classifier(net.pool_head(x, 8), image=["batch", 1, 28, 28])


def test_what_a_concat_joins_has_one_scale_and_so_has_what_a_pool_passes_on():
    model = _quantized(joined()).model
    join, after = node(model, "join"), node(model, "c").input[0]
    scales = {scale_of(model, name) for name in (*join.input, after, node(model, "b").input[0])}
    assert len(scales) == 1
    assert scale_of(model, node(model, "small").input[0]) in scales


def test_what_is_kept_float_gets_no_pair():
    made = _quantized(joined(), Keep(float=("b",)))
    assert sources(made.model, "b") == ["Relu"]
    assert "keep.float" in made.plan.reasons["b"]


def test_scales_of_nearly_empty_channels_are_still_numbers_in_half_precision():
    model, _ = normalise(models.mlp())
    weight = next(t for t in model.graph.initializer if t.name == "fc1.weight")
    values = onnx.numpy_helper.to_array(weight).copy()
    values[3] *= 1e-7
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    feeds = models.feeds(model, 16, seed=1)
    made = quantize(model, TENSORRT, Keep(), lambda: iter([feeds])).model
    scales = [t for t in made.graph.initializer if list(t.dims) == [64] and t.name.startswith("ws")]
    halves = [onnx.numpy_helper.to_array(t).astype(np.float16) for t in scales]
    assert halves
    assert all((half >= 2.0**-17).all() for half in halves)
