"""Models for TensorRT-RTX: quantized as for TensorRT, in half precision, in FP8, and wrong ones."""

from __future__ import annotations

import functools

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from compressor.quantization.onnx_static import quantize
from exporters._onnx_cleanup import clean
from exporters._onnx_graph import normalise
from exporters._schemes import TENSORRT
from exporters.base import Keep
from tests import models
from tests.net import Net


def plain(name: str) -> ModelProto:
    made, _ = normalise(models.ALL[name]())
    clean(made)
    return made


@functools.cache
def _int8(name: str) -> bytes:
    made = plain(name)
    feeds = models.feeds(made, 16, seed=1)
    return quantize(made, TENSORRT, Keep(), lambda: iter([feeds])).model.SerializeToString()


def int8(name: str) -> ModelProto:
    """One of the test models with Q/DQ pairs by our own placement."""
    return onnx.load_from_string(_int8(name))


def with_zero_state() -> ModelProto:
    """The first step of a recurrent cell, written out: its state is all zeros."""
    net = Net(0)
    batch = net.op("Shape", "image", name="shape", end=1)
    size = net.op("Concat", batch, net.constant("width", [32], np.int64), name="size", axis=0)
    state = net.gemm(net.op("ConstantOfShape", size, name="zeros"), "state", 32, 32)
    x = net.op("Add", net.gemm("image", "first", 64, 32), state, name="sum")
    x = net.gemm(net.op("Tanh", x, name="tanh"), "head", 32, 10)
    model, _ = normalise(net.classifier(x, image=["batch", 64]))
    feeds = models.feeds(model, 16, seed=1)
    return quantize(model, TENSORRT, Keep(), lambda: iter([feeds])).model


def half(name: str) -> ModelProto:
    """One of the test models, every float of it in 16 bits."""
    made = plain(name)
    for tensor in made.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for value in (*made.graph.input, *made.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return made


def fp8() -> ModelProto:
    """A product whose operands are in FP8 (e4m3)."""
    kind = TensorProto.FLOAT8E4M3FN
    weights = [
        helper.make_tensor("scale", TensorProto.FLOAT, [], [0.02]),
        helper.make_tensor("zero", kind, [], bytes(1), raw=True),
        helper.make_tensor("weight", kind, [64, 64], bytes([56] * 64 * 64), raw=True),  # all 1.0
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["xq"], name="q"),
        helper.make_node("DequantizeLinear", ["xq", "scale", "zero"], ["xd"], name="dq"),
        helper.make_node("DequantizeLinear", ["weight", "scale"], ["wd"], name="weight.dq"),
        helper.make_node("MatMul", ["xd", "wd"], ["y"], name="product"),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [16, 64]) for n in ("x", "y"))
    graph = helper.make_graph(nodes, "fp8", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def _activations(model: ModelProto) -> list[onnx.NodeProto]:
    weights = {tensor.name for tensor in model.graph.initializer}
    pairs = (n for n in model.graph.node if n.op_type in {"QuantizeLinear", "DequantizeLinear"})
    return [node for node in pairs if node.input[0] not in weights]


def with_zero_points(kind: type[np.generic], value: int) -> ModelProto:
    """`convnet` in INT8, its activations of another kind or around another zero point."""
    model = int8("convnet")
    model.graph.initializer.append(numpy_helper.from_array(np.array(value, kind), "another"))
    for node in _activations(model):
        del node.input[2:]
        node.input.append("another")
    return model


def with_scales_of_shape_1() -> ModelProto:
    """`convnet` in INT8 with activation scales that are no scalars."""
    model = int8("convnet")
    scales = {node.input[i] for node in _activations(model) for i in range(1, len(node.input))}
    for tensor in model.graph.initializer:
        if tensor.name in scales:
            tensor.dims.append(1)
    return model


def with_integer_bias() -> ModelProto:
    """`convnet` in INT8 with the bias of its last layer in INT32 behind a DequantizeLinear."""
    model = int8("convnet")
    head = next(node for node in model.graph.node if node.name == "head")
    add = [
        numpy_helper.from_array(np.zeros(10, np.int32), "bias32"),
        numpy_helper.from_array(np.full(10, 1e-4, np.float32), "bias32.scale"),
    ]
    model.graph.initializer.extend(add)
    node = helper.make_node(
        "DequantizeLinear", [t.name for t in add], ["bias32.out"], name="bias.dq", axis=0
    )
    model.graph.node.insert(0, node)
    head.input[2] = "bias32.out"
    return model
