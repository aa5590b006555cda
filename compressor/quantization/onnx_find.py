"""The weights of an ONNX graph, wherever they hide: behind Transpose, under `If`, on the left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from compressor.quantization.onnx_index import Index, Names
from compressor.quantization.onnx_weights import dequantize, noise_share, quantize_int4
from exporters._onnx_graph import attribute, graphs, output_axis, rename_reads, replace

# Which input of an op is a weight; it is multiplied with the layer's inputs, or looked up.
_PORTS = {
    "Conv": (1,), "ConvTranspose": (1,), "Gemm": (1,), "MatMul": (1, 0), "Gather": (0,),
    "GRU": (1, 2), "LSTM": (1, 2), "RNN": (1, 2),
}  # fmt: skip
# Ops whose large constants (positional embeddings, masks of slopes) are stored like weights.
_ANY_PORT = frozenset({"Add", "Sub", "Mul", "PRelu", "Einsum", "Concat", "Where"})
_PASSING = frozenset({"Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Flatten"})
# A scale is four bytes: fewer values than this to one would leave no gain.
_LEAST_PER_SCALE = 16


@dataclass(frozen=True)
class Use:
    """A node that computes with a weight, the port it reads it at, and the shape it sees."""

    node: Any
    port: int
    shape: tuple[int, ...]


@dataclass
class Weight:
    """A stored weight: its tensor, the node that computes with it, its values.

    Attributes:
        tensor: the initializer.
        node: the (first) node that computes with it.
        values: float32 values.
        axis: of the output channels.
        dequantize: the DequantizeLinear that reads it, where it is an INT8 one.
        uses: every node that computes with it and multiplies its rows along `axis`.
        nested: a node inside a subgraph reads it.
    """

    tensor: Any
    node: Any
    values: Any
    axis: int
    dequantize: Any | None = None
    uses: list[Use] = field(default_factory=list)
    nested: bool = False


def hoist_weights(model: Any, least: int) -> int:
    """Move large float constants out of subgraphs into the main graph, in place; how many moved.

    A branch reads what it does not define itself from outside, so one place to store weights is
    enough; a loop's body then does not convert them again at each turn.
    """
    names, moved = Names(*graphs(model.graph)), 0
    for graph in list(graphs(model.graph))[1:]:
        outputs = {value.name for value in graph.output}
        renamed, stay, nodes = {}, [], []
        for tensor in graph.initializer:
            if not _large(tensor, least) or tensor.name in outputs:
                stay.append(tensor)
                continue
            renamed[tensor.name] = _take(model.graph, tensor, tensor.name, names)
        for node in graph.node:
            tensor = next((a.t for a in node.attribute if a.name == "value"), None)
            constant = node.op_type == "Constant" and tensor is not None
            if not constant or not _large(tensor, least) or node.output[0] in outputs:
                nodes.append(node)
                continue
            renamed[node.output[0]] = _take(model.graph, tensor, node.output[0], names)
        if not renamed:
            continue
        replace(graph.initializer, stay)
        replace(graph.node, nodes)
        rename_reads(graph, renamed)
        moved += len(renamed)
    return moved


def _large(tensor: Any, least: int) -> bool:
    import onnx

    return (
        tensor.data_type == onnx.TensorProto.FLOAT
        and len(tensor.dims) > 1
        and int(np.prod(tensor.dims)) >= least
    )


def _take(onto: Any, tensor: Any, wanted: str, names: Names) -> str:
    made = onto.initializer.add()
    made.CopyFrom(tensor)
    made.name = names.new(wanted)
    return str(made.name)


def find_weights(graph: Index, least: int, kept_nodes: set[str]) -> list[Weight]:
    """Float weights and INT8 weights of at least `least` values, once each, in order.

    Those that a node in `kept_nodes` reads, or that serve as something else too, are left out.
    """
    return _Finder(graph, kept_nodes).find(least)


class _Finder:
    def __init__(self, graph: Index, kept_nodes: set[str]) -> None:
        self.graph, self.kept = graph, kept_nodes
        self.nodes = [node for inner in graphs(graph.graph) for node in inner.node]
        self.main = {id(node) for node in graph.graph.node}
        self.readers: dict[str, list[tuple[Any, int]]] = {}
        for node in self.nodes:
            for port, name in enumerate(node.input):
                self.readers.setdefault(name, []).append((node, port))

    def find(self, least: int) -> list[Weight]:
        found: dict[str, Weight] = {}
        for node in self.nodes:
            for name in node.input:
                tensor = self.graph.weights.get(name)
                if tensor is None or tensor.name in found or len(tensor.dims) < 2:
                    continue
                if int(np.prod(tensor.dims)) >= least:
                    made = self._weight(tensor, node)
                    if made is not None:
                        found[tensor.name] = made
        # In the order of the nodes that compute with them.
        place = {id(node): i for i, node in enumerate(self.nodes)}
        return sorted(found.values(), key=lambda w: (place[id(w.node)], self._port(w)))

    def _port(self, weight: Weight) -> int:
        name = weight.dequantize.output[0] if weight.dequantize else weight.tensor.name
        ports = [i for i, read in enumerate(weight.node.input) if read == name]
        return ports[0] if ports else 0

    def _weight(self, tensor: Any, reader: Any) -> Weight | None:
        import onnx

        if tensor.data_type == onnx.TensorProto.FLOAT:
            values = onnx.numpy_helper.to_array(tensor)
            return self._made(tensor, values, tensor.name, None)
        if tensor.data_type != onnx.TensorProto.INT8 or reader.op_type != "DequantizeLinear":
            return None
        scale = self.graph.weights.get(reader.input[1])
        if scale is None or tensor.name != reader.input[0] or self._offset(reader):
            return None
        return self._integer(tensor, reader, onnx.numpy_helper.to_array(scale))

    def _integer(self, tensor: Any, reader: Any, scale: Any) -> Weight | None:
        import onnx

        integers = onnx.numpy_helper.to_array(tensor)
        uses = self.readers.get(reader.output[0], [])
        if len(self.readers[tensor.name]) > 1 or not uses:
            return None
        node, port = uses[0]
        axis = output_axis(node, integers.ndim)
        if port not in _PORTS.get(node.op_type, ()) or attribute(reader, "block_size", 0):
            return None
        if scale.ndim and len(scale) != integers.shape[axis]:
            return None
        return self._made(tensor, dequantize(integers, scale, axis), reader.output[0], reader)

    def _offset(self, reader: Any) -> bool:
        """Does the DequantizeLinear shift its integers?"""
        import onnx

        zero = self.graph.weights.get(reader.input[2]) if len(reader.input) > 2 else None
        if zero is None:
            return len(reader.input) > 2 and bool(reader.input[2])
        return bool(onnx.numpy_helper.to_array(zero).any())

    def _made(self, tensor: Any, values: Any, name: str, reader: Any | None) -> Weight | None:
        uses = list(self._uses(name, values.shape, tuple(range(values.ndim))))
        if name in self.graph.outputs or not uses or any(u is None for u, _ in uses):
            return None
        known = [(use, axis) for use, axis in uses if use is not None]
        if any(use.node.name in self.kept for use, _ in known):
            return None
        axis = next((a for use, a in known if a is not None and _multiplies(use)), None)
        if axis is None:
            axis = next((a for _, a in known if a is not None), None)
        if axis is None and reader is None:
            axis = _best_axis(values)
        if axis is None:
            return None
        first = next((use for use, _ in known if _multiplies(use)), known[0][0])
        matching = [use for use, a in known if a == axis and _multiplies(use)]
        nested = any(id(use.node) not in self.main for use, _ in known)
        return Weight(tensor, first.node, values, axis, reader, matching, nested)

    def _uses(
        self, name: str, shape: tuple[int, ...], axes: tuple[int, ...]
    ) -> Iterator[tuple[Use | None, int | None]]:
        """Every use of a tensor with the weight's axis of its output channels.

        `axes` are the weight's own axes in the order of the tensor's; -1 where a Reshape lost
        them. A use that is none of a weight gives None.
        """
        for node, port in self.readers.get(name, []):
            if node.op_type in _PORTS and port in _PORTS[node.op_type]:
                use = Use(node, port, shape)
                at = axes[_channel(use)]
                yield use, (at if at >= 0 else None)
            elif node.op_type in _ANY_PORT and not (node.op_type == "Where" and port == 0):
                yield Use(node, port, shape), None
            elif node.op_type in _PASSING and port == 0 and node.output[0] not in self._ends(node):
                yield from self._uses(node.output[0], *self._passed(node, shape, axes))
            else:
                yield None, None

    def _ends(self, node: Any) -> set[str]:
        return self.graph.outputs if id(node) in self.main else set()

    def _passed(
        self, node: Any, shape: tuple[int, ...], axes: tuple[int, ...]
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if node.op_type == "Identity":
            return shape, axes
        if node.op_type == "Transpose":
            perm = list(attribute(node, "perm", range(len(shape))[::-1]))
            return tuple(shape[i] for i in perm), tuple(axes[i] for i in perm)
        made = self._reshaped(node, shape)
        moved = [-1] * len(made)
        if made and shape and made[0] == shape[0]:
            moved[0] = axes[0]
        if made and shape and made[-1] == shape[-1]:
            moved[-1] = axes[-1]
        return made, tuple(moved)

    def _reshaped(self, node: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape behind Reshape, Squeeze, Unsqueeze or Flatten, as the engine computes it."""
        import onnx
        from onnx.reference import ReferenceEvaluator

        constants = [self.graph.weights.get(name) for name in node.input[1:]]
        if any(tensor is None for tensor in constants):
            return (0, 0)
        opset = [onnx.helper.make_opsetid("", 21)]
        value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[0], copy.output[0] = "x", "y"
        out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
        graph = onnx.helper.make_graph([copy], "g", [value], [out], constants)
        model = onnx.helper.make_model(graph, opset_imports=opset)
        (made,) = ReferenceEvaluator(model).run(None, {"x": np.zeros(shape, np.float32)})
        return tuple(int(n) for n in np.shape(made))


def _channel(use: Use) -> int:
    """Axis of the output channels, as the node sees the weight."""
    if use.node.op_type == "MatMul" and use.port == 0:
        return max(0, len(use.shape) - 2)
    return output_axis(use.node, len(use.shape))


def _multiplies(use: Use) -> bool:
    return use.node.op_type in _PORTS and use.node.op_type != "Gather"


def _best_axis(values: Any) -> int | None:
    """The axis along which scales leave the least error at 4 bits and are few enough."""
    sizes = [(i, n) for i, n in enumerate(values.shape) if n > 1]
    few = [i for i, n in sizes if values.size >= _LEAST_PER_SCALE * n]
    if not few:
        return None
    noise = [noise_share(values, *quantize_int4(values, i), i) for i in few]
    return few[int(np.argmin(noise))]
