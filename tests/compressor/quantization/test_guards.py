"""What stays float runs in float, whatever stands around it: seen in the engine's own graph."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest

from compressor.quantization.conformance import onnx_violations
from compressor.quantization.onnx_static import quantize
from exporters._onnx_cleanup import clean
from exporters._onnx_graph import normalise
from exporters._schemes import ONNXRUNTIME, OPENVINO
from exporters.base import Keep
from tests import models
from tests.compressor.quantization.test_schemes import engine
from tests.net import Net


def between(kind: str, seed: int = 0) -> onnx.ModelProto:
    """A convolution, a node `mid` of another kind, and a convolution."""
    net, width = Net(seed), 8
    x = net.op("Relu", net.conv("image", "a", (8, 1, 3, 3)), name="a.relu")
    if kind == "Conv":
        x = net.op("Relu", net.conv(x, "mid", (8, 8, 3, 3)), name="mid.relu")
    elif kind == "ConvTranspose":
        x = net.op(kind, x, net.weight("mid.weight", 8, 8, 3, 3), name="mid", strides=[2, 2])
    elif kind in {"Add", "MatMul"}:
        x = net.op(kind, x, net.conv(x, "other", (8, 8, 1, 1)), name="mid")
    elif kind == "Concat":
        x, width = net.op(kind, x, x, name="mid", axis=1), 16
    elif kind == "moved Softmax":
        x = net.op("Transpose", x, name="there", perm=[0, 3, 2, 1])
        x = net.op("Softmax", x, name="mid", axis=-1)
        x = net.op("Transpose", x, name="back", perm=[0, 3, 2, 1])
    else:
        x = net.op(kind, x, name="mid")
    x = net.conv(x, "c", (8, width, 3, 3))
    return net.classifier(net.pool_head(x, 8), image=["batch", 1, 28, 28])


def ran(model: onnx.ModelProto, tmp_path, keep: Keep) -> Counter[str]:
    normal, _ = normalise(model)
    clean(normal)
    data = lambda: iter([models.feeds(normal, 8)])  # noqa: E731
    made = quantize(normal, ONNXRUNTIME, keep, data)
    assert onnx_violations(made.model, ONNXRUNTIME, made.plan.reasons) == []
    return engine(made.model, tmp_path)[1]


@pytest.mark.parametrize(
    ("kind", "integer"),
    [
        ("Conv", "QLinearConv"),
        ("Add", "QLinearAdd"),
        ("Concat", "QLinearConcat"),
        ("Sigmoid", "QLinearSigmoid"),
        ("LeakyRelu", "QLinearLeakyRelu"),
    ],
)
def test_a_layer_kept_float_is_not_made_integer_by_the_engine(kind, integer, tmp_path):
    before = ran(between(kind), tmp_path, Keep())
    after = ran(between(kind), tmp_path, Keep(float=("mid",)))
    assert after[integer] == before[integer] - 1
    assert after[kind] == before[kind] + 1


@pytest.mark.parametrize("kind", ["Softmax", "moved Softmax", "MatMul", "ConvTranspose"])
def test_what_the_scheme_leaves_float_is_not_made_integer_either(kind, tmp_path):
    found = ran(between(kind), tmp_path, Keep())
    assert found[kind.removeprefix("moved ")] == 1
    assert found["QLinearConv"] >= 2
    assert found["DequantizeLinear"] <= 2  # no weight among them


@pytest.mark.parametrize("activation", ["Relu", "Clip"])
def test_a_gemm_whose_activation_is_read_by_float_stays_integer(activation, tmp_path):
    net = Net(0)
    x = net.op(activation, net.gemm("features", "fc", 64, 32), name="act")
    x = net.op("Erf", x, name="float")
    model = net.classifier(net.gemm(x, "head", 32, 10), features=["batch", 64])
    found = ran(model, tmp_path, Keep())
    assert found["QGemm"] == 2
    assert not {"Gemm", "FusedGemm"} & set(found)


def test_no_guard_without_need(tmp_path):
    for name in ("convnet", "depthwise", "hardswish_net", "mlp", "unet", "transformer_block"):
        assert "Max" not in ran(models.ALL[name](), tmp_path, Keep())


def test_an_engine_that_does_not_fuse_gets_no_guards():
    model, _ = normalise(between("Softmax"))
    clean(model)
    made = quantize(model, OPENVINO, Keep(), lambda: iter([models.feeds(model, 8)]))
    assert "Max" not in {node.op_type for node in made.model.graph.node}


def test_openvino_reads_a_guarded_file(tmp_path):
    ov = pytest.importorskip("openvino", reason="needs the openvino extra")
    model, _ = normalise(between("Conv"))
    clean(model)
    feeds = models.feeds(model, 8)
    made = quantize(model, ONNXRUNTIME, Keep(float=("mid",)), lambda: iter([feeds])).model
    onnx.save(made, tmp_path / "guarded.onnx")
    compiled = ov.Core().compile_model(str(tmp_path / "guarded.onnx"), "CPU")
    want = models.run(made, feeds)["logits"]
    np.testing.assert_allclose(compiled(feeds)["logits"], want, atol=0.05 * np.abs(want).max())
