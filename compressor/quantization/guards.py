"""Keeps float what must stay float where the engine would run it in integers for its neighbours.

ONNX Runtime (1.31) makes a node integer wherever pairs stand around it, and for that rounds the
float weights of a Conv, ConvTranspose or Gemm while it loads: `keep.float` would change nothing.
The other way round it merges an integer Gemm with a Relu or Clip behind it that no pair follows,
and dequantizes the weights at every call. A `Max` of one input does nothing and keeps two nodes
apart; an Identity would be taken out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from compressor.quantization.onnx_index import Index
from compressor.quantization.placement import ABSORBED, Placement
from exporters.base import QuantScheme

GUARD = "Max"
_ROUNDED = frozenset({"Conv", "ConvTranspose", "Gemm"})
_Tells = Callable[[str], bool]


def guarded(graph: Index, scheme: QuantScheme, plan: Placement) -> set[str]:
    """Nodes whose first input needs a guard once `plan` is written."""
    paired = plan.roots.__contains__
    eight = lambda name: name in plan.roots and name in plan.made_here  # noqa: E731
    found = set()
    for node in graph.graph.node:
        floats = node.name in plan.reasons and fused(graph, scheme, node, eight, paired)
        if floats or (scheme.fused and merged(graph, node, plan.weights.__contains__, paired)):
            found.add(node.name)
    return found


def fused(graph: Index, scheme: QuantScheme, node: Any, eight_bit: _Tells, paired: _Tells) -> bool:
    """Would the engine run a float node in integers for the pairs around it?

    Args:
        graph: where the node stands.
        scheme: its `fused` names the operators with which that happens.
        node: the node.
        eight_bit: tells whether a tensor comes out of a pair.
        paired: tells whether a tensor goes into a pair.
    """
    if node.op_type not in scheme.fused:
        return False
    computed = graph.dynamic_inputs(node)
    constants = len([name for name in node.input if name]) - len(computed)
    if not computed or (constants and node.op_type not in _ROUNDED):
        return False
    return all(_comes(graph, scheme, name, eight_bit) for name in computed) and _goes(
        graph, scheme, node.output[0], paired
    )


def merged(graph: Index, node: Any, integer: _Tells, paired: _Tells) -> bool:
    """Is it a Relu or Clip that the engine merges with an integer Gemm, and no pair behind it?"""
    if node.op_type not in ABSORBED or paired(node.output[0]):
        return False
    maker = graph.producers.get(node.input[0])
    return maker is not None and maker.op_type == "Gemm" and integer(maker.name)


def _comes(graph: Index, scheme: QuantScheme, name: str, eight_bit: _Tells) -> bool:
    """Pairs are moved forward over what only moves values, and backward (`_goes`)."""
    if eight_bit(name):
        return True
    maker = graph.producers.get(name)
    if maker is None or maker.op_type not in scheme.passthrough:
        return False
    return _comes(graph, scheme, maker.input[0], eight_bit)


def _goes(graph: Index, scheme: QuantScheme, name: str, paired: _Tells) -> bool:
    if paired(name):
        return True
    onward = scheme.passthrough | ABSORBED
    readers = [n for n in graph.consumers.get(name, []) if n.op_type in onward]
    return any(_goes(graph, scheme, out, paired) for n in readers for out in n.output)
