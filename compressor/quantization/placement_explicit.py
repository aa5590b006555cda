"""Which tensors get Q/DQ pairs for an engine that takes them as orders (TensorRT).

- Conv, Gemm and MatMul with a constant weight read a pair. Their results stay float: a pair between
  such a node and its activation would keep the engine from fusing the two.
- An Add that such a convolution alone feeds is computed together with it; the other operand, the
  skip branch, is read through a pair, or the whole would come out in float.
- What moves values, and what a Concat joins, keeps one scale wherever a pair stands on both sides:
  with two scales the engine converts in between, or runs the next convolution in float.

The first two are TensorRT's documentation ("Working with Quantized Types"); what the third costs
shows in the plans of TensorRT-RTX 1.7.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressor.quantization.onnx_index import Index
from compressor.quantization.placement import SHAPING, WEIGHTED, Placement, why_weight_float
from exporters._onnx_graph import attribute
from exporters.base import QuantScheme


def place_explicit(graph: Index, scheme: QuantScheme, kept: Mapping[str, str]) -> Placement:
    """Decide for every node of the main graph."""
    made = Placement()
    nodes = [node for node in graph.graph.node if node.op_type not in SHAPING]
    for node in nodes:
        reason = kept.get(node.name) or _why_float(graph, scheme, kept, node)
        if reason:
            made.reasons[node.name] = reason
        elif node.op_type in WEIGHTED:
            made.integer.append(node.name)
            made.weights[node.name] = node.input[1]
            made.roots[node.input[0]] = node.input[0]
    fused = _skips(graph, made, nodes)
    shared = _share(graph, scheme, made, nodes)
    order = {*made.integer, *fused, *shared}
    made.integer = [node.name for node in nodes if node.name in order]
    for node in nodes:
        if node.name not in order:
            made.reasons.setdefault(node.name, "nothing to do: it multiplies no weights")
    return made


def _why_float(graph: Index, scheme: QuantScheme, kept: Mapping[str, str], node: Any) -> str:
    if node.op_type in scheme.never:
        return scheme.never[node.op_type]
    if node.op_type not in WEIGHTED or node.op_type not in scheme.ops:
        return ""
    return why_weight_float(graph, kept, node, copied=True)


def _skips(graph: Index, made: Placement, nodes: list[Any]) -> list[str]:
    """Adds that a convolution takes along; their skip branches get a pair."""
    found = []
    for node in nodes:
        if node.op_type != "Add" or node.name in made.reasons or len(set(node.input)) < 2:
            continue
        ranks = {graph.ranks.get(name) for name in node.input}
        floats = set(node.input) <= graph.floats and len(graph.dynamic_inputs(node)) == 2
        if not floats or len(ranks) > 1:
            continue
        branches = [name for name in node.input if _is_branch(graph, made, name)]
        if not branches:
            continue
        skip = _earlier(graph, node, branches)
        made.roots[skip] = skip
        found.append(node.name)
    return found


def _is_branch(graph: Index, made: Placement, name: str) -> bool:
    """Does an integer convolution make it, for this one reader?"""
    maker = graph.producers.get(name)
    alone = graph.only_consumer(name) is not None
    return bool(
        maker is not None and alone and maker.name in made.weights and maker.op_type == "Conv"
    )


def _earlier(graph: Index, node: Any, branches: list[str]) -> str:
    """The operand that is not the branch; of two branches the one computed first."""
    if len(branches) == 1:
        return str(next(name for name in node.input if name != branches[0]))
    order = {n.name: i for i, n in enumerate(graph.graph.node)}
    return min(branches, key=lambda name: order[graph.producers[name].name])


def _share(graph: Index, scheme: QuantScheme, made: Placement, nodes: list[Any]) -> set[str]:
    """Nodes with a pair on both sides; all their tensors get one scale."""
    moving = [n for n in nodes if n.name not in made.reasons and _moves(graph, scheme, n)]
    found: set[str] = set()
    while True:
        before = len(found), dict(made.roots)
        for node in reversed(moving):
            ins = list(dict.fromkeys(graph.dynamic_inputs(node)[: _values(node)]))
            outs = [name for name in node.output if name in made.roots]
            if outs and any(name in made.roots for name in ins):
                _unite(made, [*ins, *outs])
                found.add(node.name)
        if (len(found), made.roots) == before:
            return found


def _values(node: Any) -> int | None:
    """How many of its inputs are values, and no shapes or indices."""
    return None if node.op_type == "Concat" else 1


def _moves(graph: Index, scheme: QuantScheme, node: Any) -> bool:
    if node.op_type not in scheme.passthrough and node.op_type != "Concat":
        return False
    if node.op_type == "Resize" and attribute(node, "mode", b"nearest") != b"nearest":
        return False
    values = node.input[: _values(node)]
    return all(name in graph.floats and name not in graph.weights for name in values)


def _unite(made: Placement, names: list[str]) -> None:
    """Give `names`, and all that share a scale with them, the scale of the last."""
    olds = {made.roots.get(name, name) for name in names}
    owner = made.roots[names[-1]]
    for name in [*made.roots, *names]:
        if made.roots.get(name, name) in olds:
            made.roots[name] = owner
