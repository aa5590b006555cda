"""Integer weights and biases in a graph: how they are stored, and what makes them float again.

Three forms are known, those that engines fold while they load: integers → DequantizeLinear, 4-bit
integers → Cast → DequantizeLinear, and, under float operators, integers → Cast → Mul(scale).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from compressor.quantization.onnx_index import Index
from compressor.quantization.onnx_weights import broadcast
from exporters._onnx_graph import attribute


@dataclass
class Weight:
    """A weight stored in integers.

    Attributes:
        name: its initializer.
        scale: the initializer that holds its scales.
        zero: that of its zero points, or empty.
        result: the tensor that holds the float values.
        inside: tensors between the two.
        axis: that of the channels the scales are for; None: one scale, or scales in full shape.
        block: values a scale stands for along `axis` (0: the whole rest of the tensor).
        bits: 8 or 4.
    """

    name: str
    scale: str
    zero: str
    result: str
    inside: list[str] = field(default_factory=list)
    axis: int | None = None
    block: int = 0
    bits: int = 8

    def full_scale(self, scale: Any, shape: tuple[int, ...]) -> Any:
        """The scales in a shape that broadcasts against the weight."""
        if self.block and self.axis is not None:
            return np.repeat(scale, self.block, self.axis).take(range(shape[self.axis]), self.axis)
        return broadcast(np.asarray(scale), self.axis, len(shape)) if scale.ndim <= 1 else scale


@dataclass
class Bias:
    """A bias in 32-bit integers, in units of its input's scale times its weight's."""

    name: str
    scale: str
    result: str
    source: str  # the scale of the input
    weight: str  # the scale of the weight


def find_stored(graph: Index) -> tuple[dict[str, Weight], dict[str, Bias]]:
    """Weights and biases by the name of their integers."""
    weights: dict[str, Weight] = {}
    biases: dict[str, Bias] = {}
    for node in graph.graph.node:
        if node.op_type == "DequantizeLinear":
            _dequantized(graph, node, weights, biases)
        elif node.op_type == "Mul":
            _multiplied(graph, node, weights)
    return weights, biases


def _integers(graph: Index, name: str) -> tuple[Any | None, list[str]]:
    """The integer initializer behind `name`, through a Cast, and the tensors in between."""
    import onnx

    kinds = {
        getattr(onnx.TensorProto, kind) for kind in ("INT8", "UINT8", "INT4", "UINT4", "INT32")
    }
    maker = graph.producers.get(name)
    cast = maker is not None and maker.op_type == "Cast"
    tensor = graph.weights.get(maker.input[0] if cast and maker is not None else name)
    if tensor is None or tensor.data_type not in kinds:
        return None, []
    return tensor, [name] if cast else []


def _bits(tensor: Any) -> int:
    import onnx

    return 4 if tensor.data_type in {onnx.TensorProto.INT4, onnx.TensorProto.UINT4} else 8


def _dequantized(
    graph: Index, node: Any, weights: dict[str, Weight], biases: dict[str, Bias]
) -> None:
    import onnx

    tensor, inside = _integers(graph, node.input[0])
    if tensor is None or node.input[1] not in graph.weights or not tensor.dims:
        return
    if tensor.data_type == onnx.TensorProto.INT32:
        made = _bias(graph, node, tensor)
        if made is not None:
            biases[tensor.name] = made
        return
    scale = graph.weights[node.input[1]]
    weights[tensor.name] = Weight(
        tensor.name, node.input[1], node.input[2] if len(node.input) > 2 else "", node.output[0],
        inside, int(attribute(node, "axis", 1)) % len(tensor.dims) if scale.dims else None,
        int(attribute(node, "block_size", 0)), _bits(tensor),
    )  # fmt: skip


def _bias(graph: Index, node: Any, tensor: Any) -> Bias | None:
    readers = graph.consumers.get(node.output[0], [])
    if len(readers) != 1:
        return None
    makers = [graph.producers.get(name) for name in readers[0].input[:2]]
    if any(m is None or m.op_type != "DequantizeLinear" for m in makers):
        return None
    source, weight = (maker.input[1] for maker in makers if maker is not None)
    return Bias(tensor.name, node.input[1], node.output[0], source, weight)


def _multiplied(graph: Index, node: Any, weights: dict[str, Weight]) -> None:
    for first, second in ((0, 1), (1, 0)):
        tensor, inside = _integers(graph, node.input[first])
        scale = graph.weights.get(node.input[second])
        if tensor is not None and inside and scale is not None and tensor.dims:
            weights[tensor.name] = Weight(
                tensor.name, scale.name, "", node.output[0], inside, None, 0, _bits(tensor)
            )
