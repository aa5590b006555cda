"""Graph edits that change no result: what stands in the way of an engine's own optimizer goes.

The edits are exact, but for the batch-norm fold, which rounds once more in float64 → float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from exporters._onnx_fold import fold_moves
from exporters._onnx_graph import (
    STANDARD_DOMAINS,
    attribute,
    drop_dead_weights,
    needed,
    reads,
    replace,
    subgraphs,
)

_Edit = Callable[[Any], int]


def clean(model: Any) -> dict[str, int]:
    """Apply every edit to the main graph until none changes anything; returns counts by edit."""
    edits: dict[str, _Edit] = {
        "identities removed": drop_identities,
        "moved constants folded": lambda _: fold_moves(model),
        "batch norms folded": fold_batch_norms,
        "dead nodes removed": drop_dead_nodes,
        "dead weights removed": drop_dead_weights,
    }
    counts = dict.fromkeys(edits, 0)
    while True:
        before = dict(counts)
        for name, edit in edits.items():
            counts[name] += edit(model.graph)
        if counts == before:
            return {name: count for name, count in counts.items() if count}


def _is(node: Any, *ops: str) -> bool:
    return node.op_type in ops and node.domain in STANDARD_DOMAINS


def drop_identities(graph: Any) -> int:
    """Remove `Identity` nodes and `Dropout` in inference mode; returns how many.

    Where the result is a graph output the name must stay, so the producer is renamed instead; a
    graph input that is passed straight on stays as it is.
    """
    constants = {t.name: t for t in graph.initializer}
    keep: list[Any] = []
    gone = 0
    renames: dict[str, str] = {}
    for node in graph.node:
        _rename(node, renames)
        if _passes_on(node, constants) and _bypass(graph, node, keep, renames):
            gone += 1
        else:
            keep.append(node)
    if gone:
        replace(graph.node, keep)
    return gone


def _passes_on(node: Any, constants: dict[str, Any]) -> bool:
    if _is(node, "Identity"):
        return True
    if not _is(node, "Dropout") or any(node.output[1:]):
        return False
    training = node.input[2] if len(node.input) > 2 else ""
    return not training or (training in constants and not _values(constants[training]).any())


def _bypass(graph: Any, node: Any, before: list[Any], renames: dict[str, str]) -> bool:
    source, result = node.input[0], node.output[0]
    outputs = {value.name for value in graph.output}
    if result not in outputs:
        renames[result] = source
        return True
    producer = next((n for n in before if source in n.output), None)
    nested = any(True for other in graph.node for _ in subgraphs(other))
    if producer is None or source in outputs or nested:
        return False
    for i, name in enumerate(producer.output):
        if name == source:
            producer.output[i] = result
    for other in before:
        _rename(other, {source: result})
    renames[source] = result
    return True


def _rename(node: Any, renames: dict[str, str]) -> None:
    for i, name in enumerate(node.input):
        node.input[i] = _final(name, renames)
    for inner in subgraphs(node):
        own = {t.name for t in inner.initializer} | {v.name for v in inner.input}
        own |= {name for other in inner.node for name in other.output}
        visible = {k: v for k, v in renames.items() if k not in own}
        for other in inner.node:
            _rename(other, visible)
        for value in inner.output:
            if value.name in visible:  # a branch that passes an outer value on
                made = inner.node.add(op_type="Identity", name=f"{value.name}/pass")
                made.input.append(_final(value.name, visible))
                made.output.append(value.name)


def _final(name: str, renames: dict[str, str]) -> str:
    while name in renames:
        name = renames[name]
    return name


def drop_dead_nodes(graph: Any) -> int:
    """Remove nodes whose outputs nobody reads; returns how many."""
    kept = needed(graph.node, (value.name for value in graph.output))
    gone = len(graph.node) - len(kept)
    if gone:
        replace(graph.node, kept)
    return gone


def fold_batch_norms(graph: Any) -> int:
    """Fold `BatchNormalization` into the Conv, ConvTranspose or Gemm before it; returns how many.

    Only where that layer's result goes nowhere else and its weights are initializers of float32 or
    float64; a weight that other nodes share is copied first.
    """
    weights = {t.name: t for t in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output if name}
    readers: dict[str, int] = {value.name: 1 for value in graph.output}
    for node in graph.node:
        for name in reads(node):
            readers[name] = readers.get(name, 0) + 1
    gone = []
    for node in graph.node:
        layer = made_by.get(node.input[0]) if _is(node, "BatchNormalization") else None
        if layer is None or readers[node.input[0]] > 1 or any(node.output[1:]):
            continue
        if _fold(graph, layer, node, weights, readers):
            layer.output[0] = node.output[0]
            made_by[node.output[0]] = layer
            gone.append(node)
    for node in gone:
        graph.node.remove(node)
    return len(gone)


def _values(tensor: Any) -> np.ndarray[Any, Any]:
    import onnx

    values: np.ndarray[Any, Any] = onnx.numpy_helper.to_array(tensor)
    return values


def _channel_axis(layer: Any) -> int | None:
    """Axis of the weight that holds output channels; None where folding is not that simple."""
    if _is(layer, "Conv"):
        return 0
    if _is(layer, "ConvTranspose"):
        return 1 if attribute(layer, "group", 1) == 1 else None
    plain = attribute(layer, "alpha", 1.0) == 1.0 and attribute(layer, "beta", 1.0) == 1.0
    if _is(layer, "Gemm") and plain:
        return 0 if attribute(layer, "transB", 0) else 1
    return None


def _fold(
    graph: Any, layer: Any, norm: Any, weights: dict[str, Any], readers: dict[str, int]
) -> bool:
    axis = _channel_axis(layer)
    names = [*layer.input[1:3], *norm.input[1:]]
    named = [name for name in names if name]
    if axis is None or not all(name in weights for name in named):
        return False
    if attribute(norm, "training_mode", 0) or weights[layer.input[1]].data_type not in (1, 11):
        return False
    scale, shift, mean, variance = (
        _values(weights[name]).astype(np.float64) for name in norm.input[1:5]
    )
    weight = _values(weights[layer.input[1]])
    if weight.shape[axis] != scale.size:
        return False
    factor = scale / np.sqrt(variance + attribute(norm, "epsilon", 1e-5))
    has_bias = len(layer.input) > 2 and bool(layer.input[2])
    bias = _values(weights[layer.input[2]]).astype(np.float64) if has_bias else 0.0
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    folded = weight.astype(np.float64) * factor.reshape(shape)
    moved = np.broadcast_to((bias - mean) * factor + shift, scale.shape)
    if not (np.isfinite(folded).all() and np.isfinite(moved).all()):
        return False
    new_bias = layer.input[2] if has_bias else norm.input[2]
    layer.input[1] = _store(graph, layer.input[1], folded.astype(weight.dtype), weights, readers)
    stored = _store(graph, new_bias, moved.astype(weight.dtype), weights, readers)
    del layer.input[2:]
    layer.input.append(stored)
    return True


def _store(
    graph: Any,
    name: str,
    values: np.ndarray[Any, Any],
    weights: dict[str, Any],
    readers: dict[str, int],
) -> str:
    """Put `values` under `name`, or under a new name where other nodes read the old values too."""
    import onnx

    final = name
    if readers.get(name, 0) > 1:
        readers[name] -= 1
        final = f"{name}/folded"
        while final in weights:
            final += "_"
    tensor = onnx.numpy_helper.from_array(np.ascontiguousarray(values), final)
    if final in weights:
        weights[final].CopyFrom(tensor)
    else:
        graph.initializer.append(tensor)
        weights[final] = graph.initializer[-1]
        readers[final] = 1
    return final
