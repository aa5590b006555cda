"""Asked for and achieved: what a pass requested per layer beside what the engine says it ran."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from compressor.quantization.source_graph import SourceGraph, source_graph
from compressor.result import LayerRow
from runtimes.base import LayerPrecision
from runtimes.onnx_nodes import Node
from runtimes.types import Artifact

FOLDED = "fused"

_CONV = ("Conv", "Deconvolution")
_MATMUL = ("MatMul", "Gemm", "FullyConnected")
# Source op → what the names of kernels that compute it contain.
_KERNELS = {
    "Conv": _CONV, "ConvTranspose": _CONV, "Convolution": _CONV, "GroupConvolution": _CONV,
    "ConvolutionBackpropData": _CONV, "MatMul": _MATMUL, "Gemm": _MATMUL,
}  # fmt: skip


def layer_table(artifact: Artifact, engine_layers: Sequence[LayerPrecision]) -> list[LayerRow]:
    """One row per layer the passes decided on, then the rest of what the engine ran.

    A layer that the engine does not list by name was fused into another one. `reason` says why a
    layer is float: because it was asked for (with whose words), or because the engine fell back.
    `weight_bytes` are the stored bytes of a layer's weights with their scales and zero points; a
    weight that several layers share counts for the first. What the engine lists but did not
    execute, and no layer of the model, is left out.
    """
    graph = source_graph(artifact)
    asked = _asked(artifact)
    named = {entry["layer"] for entry in asked}
    layers = _executed(_with_owners(engine_layers, graph), graph.names | named)
    ran = {name: layer for layer in layers for name in _names(layer)}
    held = _weight_bytes(graph, layers, named)
    rows = [_row(entry, ran.get(entry["layer"]), held) for entry in asked]
    rest = [layer for layer in layers if not named & set(_names(layer))]
    return [*rows, *(_unasked(layer, held) for layer in rest)]


def _asked(artifact: Artifact) -> list[Mapping[str, Any]]:
    """What the passes asked for, once per layer: an IR's convolution and its bias share a name."""
    first: dict[str, Mapping[str, Any]] = {}
    for entry in artifact.facts.get("requested", []):
        first.setdefault(entry["layer"], entry)
    return list(first.values())


def _names(layer: LayerPrecision) -> tuple[str, ...]:
    return layer.layer, *layer.layers


def _executed(layers: Sequence[LayerPrecision], known: Iterable[str]) -> list[LayerPrecision]:
    """Without views of constants and conversions that an engine lists but computes ahead."""
    if all(layer.time_ns is None for layer in layers):
        return list(layers)  # an engine without times
    known = set(known)
    return [x for x in layers if x.time_ns is not None or known & set(_names(x))]


def _with_owners(layers: Sequence[LayerPrecision], graph: SourceGraph) -> list[LayerPrecision]:
    """`layers` with the name of the layer whose weights they hold in front, where it is missing.

    An engine may name a product of matrices after the bias or activation it has absorbed.
    """
    found = list(layers)
    for node in graph.nodes:
        if node.name not in graph.weight_bytes or any(node.name in _names(x) for x in found):
            continue
        at = _absorber(node, found, graph)
        if at is not None:
            old = found[at]
            names = tuple(dict.fromkeys([node.name, *_names(old)]))
            found[at] = replace(old, layer=node.name, layers=names)
    return found


def _absorber(node: Node, layers: Sequence[LayerPrecision], graph: SourceGraph) -> int | None:
    """Index of the layer that computes `node` under the name of one that follows it."""
    words = _KERNELS.get(node.op, ())
    for after in graph.following(node):
        at = next((i for i, layer in enumerate(layers) if after.name in _names(layer)), None)
        if at is not None:
            owned = any(name in graph.weight_bytes for name in _names(layers[at]))
            return at if not owned and any(w in layers[at].op for w in words) else None
    return None


def _weight_bytes(
    graph: SourceGraph, layers: Sequence[LayerPrecision], named: set[str]
) -> dict[str, int]:
    """Bytes by row: what was fused into a layer counts with it, unless it has a row of its own."""
    row_of = {name: name for name in named}
    for layer in layers:
        first = next((name for name in _names(layer) if name in named), layer.layer)
        for name in _names(layer):
            row_of.setdefault(name, first)
    held: dict[str, int] = {}
    for name, size in graph.weight_bytes.items():
        row = row_of.get(name)
        if row is not None:
            held[row] = held.get(row, 0) + size
    return held


def _row(
    entry: Mapping[str, Any], layer: LayerPrecision | None, held: Mapping[str, int]
) -> LayerRow:
    achieved = layer.precision if layer is not None else FOLDED
    return LayerRow(
        layer=entry["layer"],
        op=layer.op if layer is not None else entry["op"],
        requested=entry["requested"],
        achieved=achieved,
        weight_bytes=held.get(entry["layer"], 0),
        time_ns=layer.time_ns if layer is not None and layer.layer == entry["layer"] else None,
        reason=_reason(entry, achieved),
    )


def _reason(entry: Mapping[str, Any], achieved: str) -> str:
    if entry["requested"] == "int8" and achieved not in {"int8", FOLDED}:
        why = "it found no integer kernel for this layer here"
        return f"asked INT8, but the engine ran {achieved}: {why}"
    reason = str(entry.get("reason", ""))
    if reason.startswith("keep.float"):
        return f"kept float by the recipe ({reason})"
    return reason


def _unasked(layer: LayerPrecision, held: Mapping[str, int]) -> LayerRow:
    return LayerRow(
        layer=layer.layer,
        op=layer.op,
        requested="",
        achieved=layer.precision,
        weight_bytes=held.get(layer.layer, 0),
        time_ns=layer.time_ns,
        beside=list(layer.beside),
    )
