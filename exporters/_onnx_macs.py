"""Multiply-accumulates of an ONNX model for one sample, from shapes alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from exporters._onnx_session import without_weights

Shapes = Mapping[str, Sequence[int]]


def count_macs(path: Path, dims: Mapping[str, int]) -> int | None:
    """MACs of convolutions, matrix products and recurrent layers; the batch dimension is 1.

    Biases, activations, normalizations and additions are not counted, as is usual. None where a
    shape cannot be inferred, so that no wrong number is shown.

    Args:
        path: the model.
        dims: named free dimension → size; `batch` (the first axis) is taken as 1.
    """
    import onnx

    graph = inferred(onnx.load(path), dims).graph
    try:
        return sum(count for _, count in by_node(graph, shapes_of(graph)))
    except KeyError:  # a tensor whose shape nobody could infer
        return None


def inferred(model: Any, dims: Mapping[str, int], batch: int = 1) -> Any:
    """A copy of an `onnx.ModelProto`, its large weights left out, with the shapes at these sizes.

    Where plain inference leaves some out, as of shapes that the graph itself computes, ONNX
    Runtime's symbolic one is tried; what neither knows is missing.

    Args:
        model: it is left as it is.
        dims: named free dimension → size.
        batch: size of a free first axis of an input.
    """
    import onnx

    made = without_weights(model)
    for value in made.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_param or not dim.HasField("dim_value"):
                dim.dim_value = batch if axis == 0 else dims.get(dim.dim_param, 1)
    for value in made.graph.output:
        value.type.tensor_type.ClearField("shape")
    del made.graph.value_info[:]
    plain = onnx.shape_inference.infer_shapes(made, data_prop=True)
    known = shapes_of(plain.graph)
    if all(name in known for node in plain.graph.node for name in node.output if name):
        return plain
    return _symbolic(made) or plain


def _symbolic(model: Any) -> Any | None:
    from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

    try:
        return SymbolicShapeInference.infer_shapes(model, auto_merge=True)
    except Exception:  # noqa: BLE001 - it asserts, and raises plain Exception, on what it does not know
        return None


def by_node(graph: Any, shapes: Shapes) -> Iterator[tuple[Any, int]]:
    """Every node that multiplies, with its MACs; `KeyError` where `shapes` lacks a tensor of it."""
    for node in graph.node:
        if node.op_type in _COUNTS:
            yield node, _COUNTS[node.op_type](node, shapes)


def macs_of(node: Any, shapes: Shapes) -> int | None:
    """MACs of one node; None where it multiplies nothing, or a shape is not known."""
    try:
        return _COUNTS[node.op_type](node, shapes)
    except KeyError:
        return None


def shapes_of(graph: Any) -> dict[str, list[int]]:
    """Tensor → its shape, where every size is known."""
    found = {t.name: list(t.dims) for t in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if all(d.HasField("dim_value") for d in dims):
            found[value.name] = [d.dim_value for d in dims]
    return found


def _convolution(node: Any, shapes: Shapes) -> int:
    """Each output element sums over the input channels of its group and the kernel."""
    return math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])


def _transposed(node: Any, shapes: Shapes) -> int:
    """Each input element is spread over the output channels of its group and the kernel."""
    return math.prod(shapes[node.input[0]]) * math.prod(shapes[node.input[1]][1:])


def _product(node: Any, shapes: Shapes) -> int:
    transposed = {a.name: a.i for a in node.attribute}.get("transA", 0)
    inner = shapes[node.input[0]][0 if node.op_type == "Gemm" and transposed else -1]
    return math.prod(shapes[node.output[0]]) * inner


def _recurrent(node: Any, shapes: Shapes) -> int:
    """Input and recurrent weights once for each step and sample."""
    steps, batch = shapes[node.input[0]][:2]
    return steps * batch * (math.prod(shapes[node.input[1]]) + math.prod(shapes[node.input[2]]))


_COUNTS: Mapping[str, Callable[[Any, Shapes], int]] = {
    "Conv": _convolution,
    "ConvTranspose": _transposed,
    "Gemm": _product,
    "MatMul": _product,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
}
