"""Where a correction goes in an OpenVINO model: into a bias, through a pointwise layer, or anew."""
# ruff: noqa: E402

from collections import Counter

import numpy as np
import pytest

ov = pytest.importorskip("openvino", reason="needs the openvino extra")

from openvino import opset13 as ops

from compressor.quantization.openvino_biases import add_to_outputs

RNG = np.random.default_rng(0)


def convolution(x, outputs, inputs, taps=1, pad=0, strides=(1, 1)):
    weight = RNG.standard_normal((outputs, inputs, taps, taps)).astype(np.float32)
    return ops.convolution(x, ops.constant(weight), list(strides), [pad] * 2, [pad] * 2, [1, 1])


def depthwise(x, channels):
    weight = RNG.standard_normal((channels, 1, 1, 3, 3)).astype(np.float32)
    return ops.group_convolution(x, ops.constant(weight), [1, 1], [1, 1], [1, 1], [1, 1])


def biased(x, channels):
    return ops.add(x, ops.constant(RNG.standard_normal((1, channels, 1, 1)).astype(np.float32)))


def chain(kind):
    """The model, the layer that is corrected, and what comes of the correction at the output."""
    x = ops.parameter([1, 4, 9, 9], np.float32)
    first = depthwise(x, 4)
    if kind == "own bias":
        return ov.Model([biased(first, 4)], [x]), first
    if kind == "read twice":
        return ov.Model([ops.add(first, ops.relu(first))], [x]), first
    if kind == "relu":
        return ov.Model([biased(convolution(ops.relu(first), 6, 4), 6)], [x]), first
    taps, pad, strides = {
        "pointwise": (1, 0, (1, 1)), "strided": (1, 0, (2, 2)), "padded": (1, 1, (1, 1)),
        "wide": (3, 0, (1, 1)),
    }[kind]  # fmt: skip
    last = convolution(first, 6, 4, taps, pad, strides)
    return ov.Model([biased(last, 6)], [x]), first


def counted(model):
    return Counter(op.get_type_name() for op in model.get_ops())["Add"]


def answers(model, x):
    return ov.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(x)[0]


@pytest.mark.parametrize(
    ("kind", "new"),
    [
        ("own bias", 0), ("pointwise", 0), ("strided", 0),
        ("padded", 1), ("wide", 1), ("relu", 1), ("read twice", 1),
    ],
)  # fmt: skip
def test_the_correction_arrives_whichever_way_it_goes(kind, new):
    model, layer = chain(kind)
    values = np.array([0.5, -1.0, 2.0, 0.25])
    shifted = model.clone()  # the plain way: an Add right behind the layer
    place = next(op for op in shifted.get_ops() if op.get_type_name() == "GroupConvolution")
    readers = list(place.output(0).get_target_inputs())
    added = ops.add(place, ops.constant(values.reshape(1, 4, 1, 1).astype(np.float32)))
    for reader in readers:
        reader.replace_source_output(added.output(0))
    before = counted(model)
    add_to_outputs({layer: values})
    assert counted(model) == before + new
    x = RNG.standard_normal((1, 4, 9, 9)).astype(np.float32)
    np.testing.assert_allclose(answers(model, x), answers(shifted, x), rtol=1e-4, atol=1e-5)


def test_both_layers_of_a_chain_are_corrected():
    model, layer = chain("pointwise")
    last = next(op for op in model.get_ops() if op.get_type_name() == "Convolution")
    x = RNG.standard_normal((1, 4, 9, 9)).astype(np.float32)
    was = answers(model, x)
    weight = last.input_value(1).get_node().get_data().reshape(6, 4)
    own, passed = np.arange(6.0), np.array([1.0, 0.0, -1.0, 2.0])
    add_to_outputs({layer: passed, last: own})
    want = was + (own + weight @ passed).reshape(1, 6, 1, 1)
    np.testing.assert_allclose(answers(model, x), want, rtol=1e-4, atol=1e-5)
