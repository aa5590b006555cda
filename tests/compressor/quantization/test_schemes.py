"""What each declared scheme makes of the test models: the same numbers, and integer kernels."""

from __future__ import annotations

import functools
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from compressor.quantization.onnx_static import quantize
from exporters._onnx_cleanup import clean
from exporters._onnx_graph import normalise
from exporters._schemes import ONNXRUNTIME, ONNXRUNTIME_ARM, ONNXRUNTIME_X86
from exporters.base import Keep
from tests import models
from tests.net import Net

SCHEMES = {"vnni": ONNXRUNTIME, "x86": ONNXRUNTIME_X86, "arm": ONNXRUNTIME_ARM}
FLOAT_KERNELS = {"Conv", "FusedConv", "Gemm", "FusedGemm", "Add", "Mul", "Concat", "HardSigmoid"}


def leaky(seed: int = 0) -> onnx.ModelProto:
    """Convolutions with LeakyRelu, joined by a Concat, with Sigmoid behind."""
    net = Net(seed)
    x = net.op("LeakyRelu", net.conv("image", "a", (8, 1, 3, 3)), name="leaky1", alpha=0.1)
    y = net.op("LeakyRelu", net.conv(x, "b", (8, 8, 3, 3)), name="leaky2", alpha=0.1)
    x = net.conv(net.op("Concat", x, y, name="join", axis=1), "c", (8, 16, 1, 1))
    x = net.op("Sigmoid", x, name="sigmoid")
    return net.classifier(net.pool_head(x, 8), image=["batch", 1, 28, 28])


@functools.cache
def quantized(name: str, scheme: str) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A test model and what it becomes under a scheme, calibrated on 32 samples."""
    model, _ = normalise(leaky() if name == "leaky" else models.ALL[name]())
    clean(model)
    data = lambda: iter([models.feeds(model, 32, seed=1)])  # noqa: E731
    return model, quantize(model, SCHEMES[scheme], Keep(), data).model


def engine(model: onnx.ModelProto, tmp_path) -> tuple[onnxruntime.InferenceSession, Counter[str]]:
    """A session that fuses signed pairs on x86 too, as it does on ARM, and the kernels it made."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    options.optimized_model_filepath = str(tmp_path / "executed.onnx")
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(tmp_path / "executed.onnx").graph.node
    return session, Counter(node.op_type for node in nodes)


def sqnr_db(name: str, scheme: str, tmp_path) -> float:
    model, made = quantized(name, scheme)
    feeds = models.feeds(model, 32, seed=2)
    want = list(models.run(model, feeds).values())
    got = engine(made, tmp_path)[0].run(None, feeds)
    noise = sum(float(((a - b) ** 2).sum()) for a, b in zip(want, got, strict=True))
    return float(10 * np.log10(sum(float((a**2).sum()) for a in want) / max(noise, 1e-30)))


NETS = ("convnet", "depthwise", "hardswish_net", "mlp", "unet", "transformer_block", "leaky", "gru")


@pytest.mark.parametrize("name", NETS)
def test_signed_activations_are_as_exact_as_unsigned_ones(name, tmp_path):
    unsigned, signed = sqnr_db(name, "vnni", tmp_path), sqnr_db(name, "arm", tmp_path)
    assert signed == pytest.approx(unsigned, abs=0.1)  # the same levels, shifted by 128


@pytest.mark.parametrize("name", ["convnet", "depthwise", "hardswish_net", "mlp", "leaky"])
def test_the_arm_scheme_runs_in_integer_kernels_throughout(name, tmp_path):
    _, unsigned = engine(quantized(name, "vnni")[1], tmp_path)
    _, signed = engine(quantized(name, "arm")[1], tmp_path)
    assert signed == unsigned
    assert not FLOAT_KERNELS & set(signed)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_outputs_stay_close_under_each_scheme(scheme, tmp_path):
    assert sqnr_db("convnet", scheme, tmp_path) > 35


@pytest.mark.parametrize("name", NETS)
def test_the_arm_scheme_writes_no_unsigned_integer(name):
    made = quantized(name, "arm")[1]
    assert not [t.name for t in made.graph.initializer if t.data_type == TensorProto.UINT8]


def test_a_gate_whose_scale_would_not_be_positive_stays_float():
    net = Net(0)
    x = net.op("HardSigmoid", net.conv("image", "a", (8, 1, 3, 3)), name="gate", beta=0.0)
    model, _ = normalise(net.classifier(net.pool_head(x, 8), image=["batch", 1, 28, 28]))
    made = quantize(model, ONNXRUNTIME, Keep(), lambda: iter([models.feeds(model, 4)]))
    assert "not positive" in made.plan.reasons["gate"]


def test_a_channel_of_weights_near_zero_gets_a_scale_that_is_no_zero():
    net = Net(0)
    x = net.pool_head(net.conv("image", "a", (8, 1, 3, 3)), 8)
    model, _ = normalise(net.classifier(x, image=["batch", 1, 28, 28]))
    clean(model)
    weight = next(t for t in model.graph.initializer if len(t.dims) == 4)
    values = onnx.numpy_helper.to_array(weight).copy()
    values[3] = 1e-40
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    feeds = models.feeds(model, 4)
    made = quantize(model, ONNXRUNTIME, Keep(), lambda: iter([feeds])).model
    assert np.isfinite(models.run(made, feeds)["logits"]).all()
