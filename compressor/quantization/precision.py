"""Asked for and achieved: what a pass requested per layer beside what the engine says it ran."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compressor.result import LayerRow
from runtimes.base import LayerPrecision
from runtimes.types import Artifact

FOLDED = "fused"


def layer_table(artifact: Artifact, engine_layers: Sequence[LayerPrecision]) -> list[LayerRow]:
    """One row per layer the passes decided on, then the rest of what the engine ran.

    A layer that the engine does not list by name was fused into another one. `reason` says why a
    layer is float: because it was asked for (with whose words), or because the engine fell back.
    """
    ran = {name: layer for layer in engine_layers for name in (layer.layer, *layer.layers)}
    asked = artifact.facts.get("requested", [])
    rows = [_row(entry, ran.get(entry["layer"])) for entry in asked]
    named = {entry["layer"] for entry in asked}
    rest = [layer for layer in engine_layers if not named & {layer.layer, *layer.layers}]
    return [*rows, *(_unasked(layer) for layer in rest)]


def _row(entry: Mapping[str, Any], layer: LayerPrecision | None) -> LayerRow:
    achieved = layer.precision if layer is not None else FOLDED
    return LayerRow(
        layer=entry["layer"],
        op=layer.op if layer is not None else entry["op"],
        requested=entry["requested"],
        achieved=achieved,
        time_ns=layer.time_ns if layer is not None and layer.layer == entry["layer"] else None,
        reason=_reason(entry, achieved),
    )


def _reason(entry: Mapping[str, Any], achieved: str) -> str:
    if entry["requested"] == "int8" and achieved not in {"int8", FOLDED}:
        why = "it found no integer kernel for this layer here"
        return f"asked INT8, but the engine ran {achieved}: {why}"
    return str(entry.get("reason", ""))


def _unasked(layer: LayerPrecision) -> LayerRow:
    return LayerRow(
        layer=layer.layer,
        op=layer.op,
        requested="",
        achieved=layer.precision,
        time_ns=layer.time_ns,
    )


def fallbacks(rows: Sequence[LayerRow]) -> list[LayerRow]:
    """Layers that were asked to run in INT8 and did not."""
    return [row for row in rows if row.requested == "int8" and row.achieved not in {"int8", FOLDED}]
