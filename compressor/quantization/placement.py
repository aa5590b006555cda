"""Which tensors of an ONNX graph get Q/DQ pairs, so that the engine runs the nodes in integers.

The rules follow what ONNX Runtime fuses (checked in its optimized graphs, version 1.31):

- Conv, Gemm and MatMul with a constant weight take 8-bit inputs. A Conv needs a pair on its output
  as well; Gemm and MatMul give float by themselves, so their output gets one only where an integer
  node reads it. A Relu or Clip in between is absorbed by the pair's clipping.
- Other integer kernels (Add, Mul, pooling, Sigmoid, Concat, …) are used where all their computed
  inputs are 8-bit already: else the extra pairs cost more than the kernel saves.
- Nodes that only move values pass 8-bit tensors on with the same scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from compressor.quantization.onnx_index import Index
from exporters._onnx_graph import attribute
from exporters.base import QuantScheme

WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
ABSORBED = frozenset({"Relu", "Clip"})
SHAPING = frozenset({"Shape", "Constant", "ConstantOfShape", "Range", "Size"})


@dataclass
class Placement:
    """The decision, by names.

    Attributes:
        roots: tensor that gets a Q/DQ pair → the tensor whose scale it has (often itself).
        made_here: those of `roots` that an integer node computes: all who read them read the pair.
        weights: weighted node → its weight's name.
        integer: nodes that run in integers.
        gates: HardSigmoid nodes that become an integer Add (see `qdq`).
        reasons: float node → why it stays float.
    """

    roots: dict[str, str] = field(default_factory=dict)
    made_here: set[str] = field(default_factory=set)
    weights: dict[str, str] = field(default_factory=dict)
    integer: list[str] = field(default_factory=list)
    gates: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)


def place(graph: Index, scheme: QuantScheme, kept: Mapping[str, str]) -> Placement:
    """Decide for every node of the main graph, in topological order."""
    made = Placement()
    absorbed: set[str] = set()
    for node in graph.graph.node:
        if node.name in absorbed or node.op_type in SHAPING:
            continue
        reason = kept.get(node.name) or _why_float(graph, scheme, kept, made, node)
        if reason:
            made.reasons[node.name] = reason
        else:
            _take(graph, scheme, made, node, absorbed)
    return made


def _why_float(
    graph: Index, scheme: QuantScheme, kept: Mapping[str, str], made: Placement, node: Any
) -> str:
    op = node.op_type
    if op in scheme.never:
        return scheme.never[op]
    if op in WEIGHTED and op in scheme.ops:
        return why_weight_float(graph, kept, node)
    if op == "HardSigmoid" and min(gate_factors(node)) <= 0:
        return "alpha or beta is not positive, which a scale must be"
    if op == "Resize" and attribute(node, "mode", b"nearest") != b"nearest":
        return "interpolation is no faster in integers"
    if op in scheme.passthrough:
        return "" if node.input[0] in made.roots else "its input is float"
    if op not in scheme.ops:
        return f"the target has no integer kernel for {op}"
    computed = graph.dynamic_inputs(node)
    if not set(computed) <= graph.floats:
        return "it does not compute in floating point"
    missing = [name for name in computed if name not in made.roots]
    if missing:
        return f"its input {missing[0]} is float, and a conversion would cost more than it saves"
    if op in {"Add", "Mul"} and len(computed) < 2:
        return "one operand is a constant"
    return ""


def gate_factors(node: Any) -> tuple[float, float]:
    """Alpha and beta of a HardSigmoid, clip(alpha·x + beta, 0, 1)."""
    return attribute(node, "alpha", 0.2), attribute(node, "beta", 0.5)


def why_weight_float(
    graph: Index, kept: Mapping[str, str], node: Any, *, copied: bool = False
) -> str:
    """Why `node`, of a kind that multiplies weights, cannot; empty where it can.

    `copied`: integers are made of a weight that a float node reads too, which keeps its own.
    """
    weight = graph.weights.get(node.input[1])
    if not set(graph.dynamic_inputs(node)) <= graph.floats:
        return "it does not compute in float32"
    if weight is None:
        return "both operands are computed: no weight to store"
    if weight.name not in graph.floats:
        return "its weight is not float32"
    if node.input[0] in graph.weights:
        return "its input is a constant"
    if node.op_type == "Gemm" and _scaled(node):
        return "alpha, beta or transA is set"
    if node.op_type == "MatMul" and len(weight.dims) != 2:
        return f"its weight has rank {len(weight.dims)}, not 2"
    for other in [] if copied else graph.consumers[weight.name]:
        if other.op_type not in WEIGHTED or other.name in kept or other.input[1] != weight.name:
            return f"its weight is shared with {other.name}, which is float"
    return ""


def _scaled(node: Any) -> bool:
    factors = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
    return factors != (1.0, 1.0) or bool(attribute(node, "transA", 0))


def _take(
    graph: Index, scheme: QuantScheme, made: Placement, node: Any, absorbed: set[str]
) -> None:
    op = node.op_type
    made.integer.append(node.name)
    if op in scheme.passthrough:
        for name in node.output if op == "Split" else node.output[:1]:
            made.roots[name] = made.roots[node.input[0]]
            made.made_here.add(name)
        return
    if op in WEIGHTED:
        made.weights[node.name] = node.input[1]
        made.roots.setdefault(node.input[0], node.input[0])
    if op == "HardSigmoid":
        made.gates.append(node.name)
    result = _absorb(graph, made, node, absorbed)
    if op not in {"Gemm", "MatMul"}:
        made.roots[result] = result
    # Whoever reads the result of an integer node gets the pair, should it get one at all.
    made.made_here.add(result)


def _absorb(graph: Index, made: Placement, node: Any, absorbed: set[str]) -> str:
    """The tensor after an activation that the engine fuses into `node`, or its own output."""
    result: str = node.output[0]
    reader = graph.only_consumer(result)
    if reader is None or reader.op_type not in ABSORBED:
        return result
    absorbed.add(reader.name)
    made.integer.append(reader.name)
    return str(reader.output[0])
