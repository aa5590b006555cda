"""What an engine's own conversions stand between: which layers make them necessary.

Between an integer kernel and a float one, or between two memory layouts, engines put nodes of
their own (`QuantizeLinear`, `Reorder`, …) that carry no name of the source. The graph that the
engine executes tells which layers they serve.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Callable, Dict, List, Sequence, Tuple

from runtimes.base import LayerPrecision
from runtimes.onnx_nodes import Node

CONVERSIONS = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "FakeQuantize",
        "Reorder",
        "ReorderInput",
        "ReorderOutput",
    }
)
# Conversions only where the engine put them in; a source may have such nodes of its own.
_AMBIGUOUS = frozenset({"Transpose", "Cast", "Convert"})
_VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Identity", "Input", "Output", "Const"})


def converts(layer: LayerPrecision) -> bool:
    """Whether a layer only changes the precision or the memory layout of a tensor."""
    return layer.op in CONVERSIONS or (layer.op in _AMBIGUOUS and not layer.layers)


def with_neighbours(
    layers: Sequence[LayerPrecision], nodes: Sequence[Node]
) -> List[LayerPrecision]:
    """`layers` with `beside` filled for conversions.

    Args:
        layers: as executed.
        nodes: the executed graph, a node for each layer in the same order; of another length, the
            layers come back as they are.
    """
    if len(layers) != len(nodes):
        return list(layers)
    maker = {name: i for i, node in enumerate(nodes) for name in node.outputs}
    readers: Dict[str, List[int]] = {}
    for i, node in enumerate(nodes):
        for name in node.inputs:
            readers.setdefault(name, []).append(i)

    def before(i: int) -> List[int]:
        return [maker[name] for name in nodes[i].inputs if name in maker]

    def after(i: int) -> List[int]:
        return [r for name in nodes[i].outputs for r in readers.get(name, [])]

    return [
        replace(layer, beside=_found(i, before, layers) + _found(i, after, layers))
        if converts(layer)
        else layer
        for i, layer in enumerate(layers)
    ]


def _found(
    start: int, step: Callable[[int], List[int]], layers: Sequence[LayerPrecision]
) -> Tuple[str, ...]:
    """The nearest layers in one direction that are neither conversions nor views."""
    found: Dict[str, None] = {}
    seen, waiting = {start}, step(start)
    while waiting:
        i = waiting.pop(0)
        if i in seen:
            continue
        seen.add(i)
        layer = layers[i]
        if converts(layer) or layer.op in _VIEWS:
            waiting += step(i)
        else:
            found[layer.layer] = None
    return tuple(found)
