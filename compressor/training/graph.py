"""A quantized ONNX graph as a torch module that trains what the file stores, and writes it back.

The graph that is trained is the one that ships: every `QuantizeLinear`/`DequantizeLinear` pair is
rounding with a trained scale, every stored integer weight a float weight that is rounded in the
same way, and after training integers and scales go back to where they came from. Nothing is
placed, fused or exported a second time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from compressor.quantization.onnx_index import Index, index
from compressor.training.ops import ops
from compressor.training.ops_recurrent import RECURRENT, unusual
from compressor.training.stored import Bias, Weight, find_stored
from exporters.base import Refusal

if TYPE_CHECKING:
    from torch import Tensor, nn

# Float initializers that are trained: which inputs of which operators.
_TRAINED = {
    "Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (1, 2), "MatMul": (0, 1), "Gather": (0,),
    "LSTM": (1, 2, 3), "GRU": (1, 2, 3), "RNN": (1, 2, 3), "PRelu": (1,),
    "LayerNormalization": (1, 2), "BatchNormalization": (1, 2), "InstanceNormalization": (1, 2),
    "GroupNormalization": (1, 2), "Add": (0, 1),
}  # fmt: skip
_PAIR = ("QuantizeLinear", "DequantizeLinear")


def untrainable(model: Any) -> list[Refusal]:
    """Nodes that have no differentiable counterpart here."""
    known, found = ops(), []
    for node in model.graph.node:
        why = "" if node.op_type in (*known, *_PAIR) else f"no gradient for {node.op_type}"
        if node.domain not in {"", "ai.onnx"}:
            why = f"no gradient for {node.domain}::{node.op_type}"
        elif node.op_type in RECURRENT:
            why = unusual(node.op_type, attributes_of(node), len(node.input))
        if why:
            fix = "use quantize_static and quantize_weights, which need no gradients"
            found.append(Refusal(node.name or node.op_type, why, fix))
    return found


def attributes_of(node: Any) -> dict[str, Any]:
    """A node's attributes by name."""
    import onnx

    found = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return found | ({"outputs": len(node.output)} if node.op_type == "Split" else {})


@dataclass
class _Node:
    op: str
    run: Any
    attributes: Mapping[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    spent: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Rounded:
    """What a QuantizeLinear gives to the DequantizeLinear nodes that read it."""

    values: Tensor
    scale: str


@dataclass
class Parts:
    """What of a graph is trained, by the names of its initializers.

    Attributes:
        weights: integer weight → how it is stored.
        biases: int32 bias → how it is stored.
        floats: float weights and biases.
        scales: scales of activations that are trained.
        stays: scales of activations that stay as they are.
        caps: scale → largest exponent: past it the grid would leave the range of the Clip before
            it, which an engine could then no longer drop.
    """

    weights: dict[str, Weight]
    biases: dict[str, Bias]
    floats: list[str]
    scales: list[str]
    stays: set[str]
    caps: dict[str, float]


def parts_of(graph: Index) -> Parts:
    """Find everything that is trained."""
    weights, biases = find_stored(graph)
    own = {w.scale for w in weights.values()} | {b.scale for b in biases.values()}
    scales, stays = _activation_scales(graph, own)
    return Parts(weights, biases, _floats(graph), scales, stays, _caps(graph, set(scales)))


def _activation_scales(graph: Index, own: set[str]) -> tuple[list[str], set[str]]:
    """Scales to train and to leave: those that are part of a function stay (see `qdq._gate`)."""
    found: dict[str, None] = {}
    stays: set[str] = set()
    for node in graph.graph.node:
        if node.op_type not in _PAIR or node.input[1] in own:
            continue
        scale = node.input[1]
        if node.op_type == "DequantizeLinear":
            maker = graph.producers.get(node.input[0])
            if maker is None or maker.op_type != "QuantizeLinear":
                stays.add(scale)
            elif maker.input[1] != scale:
                stays |= {scale, maker.input[1]}
            continue
        found[scale] = None
        if scale not in graph.weights or _is_gate(graph, node.input[0]):
            stays.add(scale)
    return [name for name in found if name not in stays], stays


def _caps(graph: Index, scales: set[str]) -> dict[str, float]:
    import onnx

    def number(name: str, otherwise: float) -> float:
        tensor = graph.weights.get(name)
        return otherwise if tensor is None else float(onnx.numpy_helper.to_array(tensor))

    caps: dict[str, float] = {}
    for node in graph.graph.node:
        clip = graph.producers.get(node.input[0]) if node.op_type == "QuantizeLinear" else None
        if clip is None or clip.op_type != "Clip" or node.input[1] not in scales:
            continue
        zero = onnx.numpy_helper.to_array(graph.weights[node.input[2]])
        ends = np.iinfo(zero.dtype)
        low, high = (
            float(end - int(zero)) * number(node.input[1], 1.0) for end in (ends.min, ends.max)
        )
        names = (*clip.input[1:], "", "")
        for limit, reached in (
            (-number(names[0], -np.inf), -low),
            (number(names[1], np.inf), high),
        ):
            if reached > 0 and np.isfinite(limit):
                room = max(0.0, float(np.log(max(limit, reached) / reached)) - 1e-6)
                caps[node.input[1]] = min(room, caps.get(node.input[1], room))
    return caps


def _is_gate(graph: Index, tensor: str) -> bool:
    """Made by an Add of a dequantized constant, whose grid does the clipping of a HardSigmoid."""
    maker = graph.producers.get(tensor)
    if maker is None or maker.op_type != "Add":
        return False
    sources = [graph.producers.get(name) for name in maker.input]
    return any(
        s is not None and s.op_type == "DequantizeLinear" and s.input[0] in graph.weights
        for s in sources
    )


def _floats(graph: Index) -> list[str]:
    import onnx

    found = []
    for name, tensor in graph.weights.items():
        readers = graph.consumers.get(name, [])
        if tensor.data_type != onnx.TensorProto.FLOAT or int(np.prod(tensor.dims)) < 2:
            continue
        if readers and all(_trains(node, name, len(tensor.dims)) for node in readers):
            found.append(name)
    return found


def _trains(node: Any, name: str, rank: int) -> bool:
    ports = _TRAINED.get(node.op_type, ())
    if node.op_type == "Add" and rank != 1:  # a bias behind a MatMul, not a mask or a position
        return False
    return all(i in ports for i, read in enumerate(node.input) if read == name) and bool(ports)


def trainable(model: Any, floats: Mapping[str, Any], narrow: bool) -> nn.Module:
    """`model`, an `onnx.ModelProto` with Q/DQ pairs, as a module of the same inputs and outputs.

    Args:
        model: what to train; it is not changed (see `written`).
        floats: integer weight → the float values it was rounded from, to start from them.
        narrow: 8-bit weights keep to ±63 (see `QuantScheme.reduce_range`).
    """
    from compressor.training.values import make_values

    graph = index(model)
    parts = parts_of(graph)
    values = make_values(graph, parts, floats, narrow)
    return _module_class()(graph, parts, values)


def _module_class() -> Any:
    import torch
    from torch import nn

    class Graph(nn.Module):  # type: ignore[misc]
        """Runs the graph node by node; parameters live in `values`."""

        def __init__(self, graph: Index, parts: Parts, values: Any) -> None:
            super().__init__()
            self.parts, self.values = parts, values
            self.inputs = [v.name for v in graph.graph.input if v.name not in graph.weights]
            self.results = [v.name for v in graph.graph.output]
            self.nodes = _program(graph, parts, set(self.results))
            held = {*parts.weights, *parts.biases, *parts.floats}
            self.constants = {
                name: _tensor(proto) for name, proto in graph.weights.items() if name not in held
            }

        def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
            known: dict[str, Any] = dict(self.constants)
            known.update(zip(self.inputs, tensors, strict=True))
            known.update(self.values.current())
            for node in self.nodes:
                made = self._run(node, known)
                made = made if isinstance(made, (tuple, list)) else (made,)
                known.update((n, v) for n, v in zip(node.outputs, made, strict=False) if n)
                for name in node.spent:
                    del known[name]
            return tuple(known[name] for name in self.results)

        def _run(self, node: _Node, known: Mapping[str, Any]) -> Any:
            inputs: list[Any] = [known[name] if name else None for name in node.inputs]
            if node.op == "QuantizeLinear":
                scale = node.inputs[1]
                zero = inputs[2] if len(inputs) > 2 else None
                return _Rounded(self.values.rounded(inputs[0], scale, inputs[1], zero), scale)
            if node.op == "DequantizeLinear":
                source = inputs[0]
                if isinstance(source, _Rounded):
                    same = source.scale == node.inputs[1]
                    return (
                        source.values if same else source.values * (inputs[1] / known[source.scale])
                    )
                zero = inputs[2] if len(inputs) > 2 else torch.zeros(())
                return (source.float() - zero.float()) * inputs[1]
            return node.run(node.attributes, *inputs)

    return Graph


def _program(graph: Index, parts: Parts, results: set[str]) -> list[_Node]:
    """The nodes that still run: what makes a stored weight float is replaced by its value."""
    known = ops()
    replaced = {w.result for w in parts.weights.values()}
    replaced |= {b.result for b in parts.biases.values()}
    skipped = {name for w in parts.weights.values() for name in w.inside}
    nodes = []
    for node in graph.graph.node:
        if replaced & set(node.output) or skipped & set(node.output):
            continue
        nodes.append(
            _Node(
                node.op_type, known.get(node.op_type), attributes_of(node),
                tuple(node.input), tuple(node.output),
            )
        )  # fmt: skip
    made = {name for node in nodes for name in node.outputs if name} - results
    for node in reversed(nodes):
        node.spent = [name for name in dict.fromkeys((*node.inputs, *node.outputs)) if name in made]
        made -= set(node.spent)
    return nodes


def _tensor(proto: Any) -> Tensor:
    import onnx
    import torch

    array = onnx.numpy_helper.to_array(proto)
    if array.dtype.name in {"int4", "uint4", "bfloat16"}:
        array = array.astype(np.int8 if array.dtype.name == "int4" else np.float32)
    return torch.from_numpy(np.ascontiguousarray(array).copy())
