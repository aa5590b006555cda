"""Small float networks as ONNX files, with all that fixed point knows."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def residual(seed: int = 0) -> onnx.ModelProto:
    """Convolutions with stride and padding, batch norm, a skip branch, every pooling, two Gemms."""
    rng = np.random.default_rng(seed)
    shapes = {
        "w1": (4, 2, 3, 3), "b1": (4,), "w2": (4, 1, 3, 3), "b2": (4,), "w3": (6, 4), "b3": (6,),
        "w4": (3, 6), "b4": (3,), "scale": (4,), "shift": (4,), "mean": (4,), "variance": (4,),
    }  # fmt: skip
    weights = {n: (rng.standard_normal(s) * 0.5).astype(np.float32) for n, s in shapes.items()}
    weights["variance"] = np.abs(weights["variance"]) + 0.5
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], "c1", pads=[1] * 4, strides=[2, 2]),
        node("BatchNormalization", ["c1", "scale", "shift", "mean", "variance"], ["n1"], "n1"),
        node("Relu", ["n1"], ["r1"], "r1"),
        node("Conv", ["r1", "w2", "b2"], ["c2"], "c2", pads=[1] * 4, group=4),
        node("Add", ["c2", "r1"], ["sum"], "sum"),
        node("Relu", ["sum"], ["r2"], "r2"),
        node("MaxPool", ["r2"], ["m"], "m", kernel_shape=[2, 2], pads=[0, 0, 1, 1]),
        node("GlobalAveragePool", ["m"], ["g"], "g"),
        node("Flatten", ["g"], ["f"], "f"),
        node("Gemm", ["f", "w3", "b3"], ["d"], "d", transB=1),
        node("Relu", ["d"], ["r3"], "r3"),
        node("Gemm", ["r3", "w4", "b4"], ["scores"], "e", transB=1),
    ]
    return _model(nodes, weights, ["batch", 2, 6, 6], ["batch", 3])


def dense(sizes: tuple[int, ...] = (12, 6, 3), seed: int = 0) -> onnx.ModelProto:
    """A multilayer perceptron."""
    rng = np.random.default_rng(seed)
    nodes, weights, last = [], {}, "x"
    for i, (before, width) in enumerate(itertools.pairwise(sizes)):
        weights[f"w{i}"] = rng.standard_normal((width, before)).astype(np.float32) * 0.5
        weights[f"b{i}"] = rng.standard_normal(width).astype(np.float32) * 0.1
        end = i == len(sizes) - 2
        name = "scores" if end else f"d{i}"
        nodes.append(helper.make_node("Gemm", [last, f"w{i}", f"b{i}"], [name], f"fc{i}", transB=1))
        if not end:
            nodes.append(helper.make_node("Relu", [name], [f"r{i}"], f"relu{i}"))
            last = f"r{i}"
    return _model(nodes, weights, ["batch", sizes[0]], ["batch", sizes[-1]])


def _model(
    nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], given: list, made: list
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, given)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, made)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
