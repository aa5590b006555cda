"""An ONNX graph that computes in float16 or bfloat16: tensors typed so, float32 at its border.

TensorRT 11 takes precision from tensor types alone (its builder flags are gone), and so do other
engines that compute in half. Which nodes stay in float32 is decided elsewhere (`half_keep`); here
types are given out and casts are placed, one for a tensor and a type, never back and forth around a
node that would gain nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from compressor.quantization.onnx_index import Index, Names, index, take_over_names
from exporters._onnx_graph import (
    drop_dead_weights,
    opset_of,
    reads,
    rename_reads,
    replace,
    subgraphs,
)

PAIRS_OPSET = 19  # the first in which QuantizeLinear and DequantizeLinear have scales in half
PAIRS = frozenset({"QuantizeLinear", "DequantizeLinear"})
BFLOAT16_OPSET = 22  # the first in which convolutions, pooling and recurrent layers have it
# Nodes whose arithmetic is worth a conversion of their inputs.
HEAVY = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Einsum"})
# Outputs whose type does not follow from the inputs', and what deals in integers.
_NEVER = frozenset(
    {"ConstantOfShape", "Constant", "DynamicQuantizeLinear", "EyeLike", "RandomNormal",
     "RandomUniform", "Range", "Shape", "Size", "Bernoulli"}
)  # fmt: skip


def half_type(dtype: str) -> Any:
    """The numpy type of `float16` or `bfloat16`."""
    if dtype == "float16":
        return np.dtype(np.float16)
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


class Typing:
    """Which inputs and outputs of a node may be half, after its operator's schema."""

    def __init__(self, model: Any, dtype: str) -> None:
        self.opset = max(opset_of(model), BFLOAT16_OPSET if dtype == "bfloat16" else 1)
        self.wanted = f"tensor({dtype})"
        self.known: dict[str, Any] = {}

    def _schema(self, node: Any) -> Any | None:
        import onnx

        if node.op_type not in self.known:
            try:
                found = onnx.defs.get_schema(node.op_type, self.opset, "")
            except onnx.defs.SchemaError:
                found = None
            self.known[node.op_type] = found
        return self.known[node.op_type] if node.domain in {"", "ai.onnx"} else None

    def _allows(self, schema: Any, formals: Any, place: int) -> bool:
        if not formals:
            return False
        formal = formals[min(place, len(formals) - 1)]
        limits = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
        return self.wanted in limits.get(formal.type_str, [formal.type_str])

    def takes(self, node: Any, place: int) -> bool:
        """Whether input `place` may be half."""
        schema = self._schema(node)
        return schema is not None and self._allows(schema, schema.inputs, place)

    def gives(self, node: Any, place: int) -> bool:
        """Whether output `place` may be half."""
        schema = self._schema(node)
        return schema is not None and self._allows(schema, schema.outputs, place)


def why_not(graph: Index, node: Any, typing: Typing) -> str:
    """Why `node` cannot compute in half; empty where it can, or where it has no floats."""
    if node.op_type in _NEVER:
        return "its type does not follow its inputs'"
    if any(True for _ in subgraphs(node)):
        return "it holds a graph of its own"
    floats = [(i, n) for i, n in enumerate(node.output) if n in graph.floats]
    if not all(typing.gives(node, i) for i, _ in floats):
        return f"{node.op_type} has no such type"
    return ""


def computes(graph: Index, node: Any) -> bool:
    """Whether `node` has a float32 tensor to compute."""
    return any(name in graph.floats for name in node.output)


def settle(graph: Index, half: set[str]) -> set[str]:
    """`half` without light nodes that lie between float32 ones: casts would be all they gain."""
    chosen = set(half)
    while True:
        lonely = {node.name for node in graph.graph.node if _lonely(graph, node, chosen)}
        if not lonely:
            return chosen
        chosen -= lonely


def _lonely(graph: Index, node: Any, half: set[str]) -> bool:
    if node.name not in half or node.op_type in HEAVY:
        return False
    makers = [graph.producers.get(n) for n in graph.dynamic_inputs(node) if n in graph.floats]
    readers = [r for name in node.output for r in graph.consumers.get(name, [])]
    before = any(m is not None and m.name in half for m in makers)
    return not before and not any(reader.name in half for reader in readers)


def typed(model: Any, half: set[str], dtype: str) -> Any:
    """A copy of `model` in which the nodes named in `half` compute in `dtype`."""
    copy = type(model)()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]  # types that no longer hold
    return _Caster(copy, half, dtype).write()


class _Caster:
    def __init__(self, model: Any, half: set[str], dtype: str) -> None:
        import onnx

        self.model, self.half, self.dtype = model, half, half_type(dtype)
        self.number = onnx.helper.np_dtype_to_tensor_dtype(self.dtype)
        self.graph, self.names = index(model), Names(model.graph)
        self.typing = Typing(model, dtype)
        self.halves = {  # tensors that are half
            name
            for node in model.graph.node
            if node.name in half
            for name in node.output
            if name in self.graph.floats
        }
        self.casts: dict[tuple[str, bool], str] = {}
        self.stored: dict[str, str] = {}
        self.nodes: list[Any] = []

    def write(self) -> Any:
        for node in self.model.graph.node:
            wants = node.name in self.half or self._quantizes_half(node)
            for i, name in enumerate(node.input):
                if name in self.graph.floats:
                    node.input[i] = self._as(name, wants and self.typing.takes(node, i))
            self._inner(node)
            if wants and node.op_type == "Cast":
                _set_type(node, self.number)
            self.nodes.append(node)
        self._outputs()
        replace(self.model.graph.node, self.nodes)
        drop_dead_weights(self.model.graph)
        take_over_names(self.model.graph, {new: old for old, new in self.stored.items()})
        return self.model

    def _quantizes_half(self, node: Any) -> bool:
        """A scale is of the type of what it divides."""
        return node.op_type == "QuantizeLinear" and node.input[0] in self.halves

    def _as(self, name: str, half: bool) -> str:
        """The tensor `name` as half or as float32, cast once where it is not."""
        import onnx

        if half == (name in self.halves):
            return name
        if name in self.graph.weights:
            return self._weight(name)
        if (name, half) not in self.casts:
            made = self.casts[name, half] = self.names.new("h" if half else "f")
            kind = self.number if half else onnx.TensorProto.FLOAT
            cast = onnx.helper.make_node("Cast", [name], [made], self.names.new("cast"), to=kind)
            self.nodes.append(cast)
        return self.casts[name, half]

    def _weight(self, name: str) -> str:
        import onnx

        if name not in self.stored:
            made = self.stored[name] = self.names.new(name)
            values = onnx.numpy_helper.to_array(self.graph.weights[name]).astype(self.dtype)
            self.model.graph.initializer.append(onnx.numpy_helper.from_array(values, made))
        return self.stored[name]

    def _inner(self, node: Any) -> None:
        """Graphs inside `node` read float32 from outside."""
        own = set(node.input)
        renamed = {n: self._as(n, False) for n in reads(node) if n in self.halves and n not in own}
        for inner in subgraphs(node):
            rename_reads(inner, renamed)

    def _outputs(self) -> None:
        """Outputs of the graph are float32 under their own names."""
        import onnx

        for value in self.model.graph.output:
            name = value.name
            if name not in self.halves:
                continue
            made = self.names.new("h")
            for node in self.nodes:
                node.output[:] = [made if n == name else n for n in node.output]
                node.input[:] = [made if n == name else n for n in node.input]
            old = next((n for n in self.nodes if n.op_type == "Cast" and list(n.input) == [made]
                        and (name, False) in self.casts and n.output[0] == self.casts[name, False]),
                       None)  # fmt: skip
            if old is not None:  # a float32 reader inside had it cast already
                for node in self.nodes:
                    node.input[:] = [name if n == old.output[0] else n for n in node.input]
                old.output[0] = name
                continue
            last = onnx.helper.make_node(
                "Cast", [made], [name], self.names.new("cast"), to=onnx.TensorProto.FLOAT
            )
            self.nodes.append(last)


def _set_type(node: Any, number: int) -> None:
    for attribute in node.attribute:
        if attribute.name == "to":
            attribute.i = number


def emulated(model: Any, half: set[str], dtype: str) -> Any:
    """A copy of `model` in float32 that rounds to `dtype` wherever `typed` would.

    It shows each tensor's loss side by side with the float32 model, and runs where an engine has no
    kernels for the type.
    """
    copy = type(model)()
    copy.CopyFrom(model)
    graph, names = index(copy), Names(copy.graph)
    kind, typing = half_type(dtype), Typing(copy, dtype)
    rounded: dict[str, str] = {}
    nodes: list[Any] = []
    for node in copy.graph.node:
        chosen = node.name in half
        for i, name in enumerate(node.input):
            if chosen and name in graph.floats and typing.takes(node, i):
                node.input[i] = _rounded(copy, graph, names, rounded, nodes, name, kind)
        nodes.append(node)
        for i, name in enumerate(node.output):
            if chosen and name in graph.floats:
                node.output[i] = names.new("r")
                nodes += _round_trip(names, node.output[i], name, kind)
                rounded[name] = name
    replace(copy.graph.node, nodes)
    drop_dead_weights(copy.graph)
    return copy


def _rounded(
    model: Any,
    graph: Index,
    names: Names,
    rounded: dict[str, str],
    nodes: list[Any],
    name: str,
    kind: Any,
) -> str:
    import onnx

    if name not in rounded:
        made = rounded[name] = names.new("r")
        if name in graph.weights:
            values = onnx.numpy_helper.to_array(graph.weights[name]).astype(kind)
            tensor = onnx.numpy_helper.from_array(values.astype(np.float32), made)
            model.graph.initializer.append(tensor)
        else:
            nodes += _round_trip(names, name, made, kind)
    return rounded[name]


def _round_trip(names: Names, source: str, result: str, kind: Any) -> list[Any]:
    import onnx

    number, middle = onnx.helper.np_dtype_to_tensor_dtype(kind), names.new("t")
    return [
        onnx.helper.make_node("Cast", [source], [middle], names.new("cast"), to=number),
        onnx.helper.make_node(
            "Cast", [middle], [result], names.new("cast"), to=onnx.TensorProto.FLOAT
        ),
    ]


def requested(
    graph: Index, half: set[str], reasons: Mapping[str, str], dtype: str
) -> list[dict[str, str]]:
    """What was asked for, per node that computes floats, with the reason where it is float32."""
    return [
        {
            "layer": node.name,
            "op": node.op_type,
            "requested": dtype if node.name in half else "float32",
            "reason": "" if node.name in half else reasons.get(node.name, "between float32 layers"),
        }
        for node in graph.graph.node
        if computes(graph, node) and node.op_type not in PAIRS
    ]
