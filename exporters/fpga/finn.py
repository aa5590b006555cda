"""A folding configuration for FINN, and the cycles that go with it, by FINN's published formulas.

A matrix-vector unit of `PE` rows and `SIMD` columns a cycle takes `rows / PE * columns / SIMD`
cycles a place (Blott et al., "FINN-R", ACM TRETS 2018). Factors divide their side; the fewest
multipliers that keep the cycles asked for are taken. FINN was not run on it: node names are those
of its register-transfer layers in the order of the file, and may differ in a version of yours.
"""

from __future__ import annotations

import math
from typing import Any

from exporters.fpga.hls_graph import kernel
from runtimes.fixed.spec import Layer, Spec


def folding(spec: Spec, cycles: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(FINN's configuration, per layer its folding and cycles for one input)."""
    made: dict[str, Any] = {"Defaults": {}}
    rows: list[dict[str, Any]] = []
    generators = 0
    for layer in (one for one in spec.layers if one.op in ("dense", "conv", "avg_pool")):
        depthwise = layer.op != "dense" and kernel(spec, layer).groups > 1
        kind = "VVAU_rtl" if depthwise else "MVAU_rtl"
        row = _fold(spec, layer, cycles)
        number = sum(other["node"].startswith(kind) for other in rows)
        made[f"{kind}_{number}"] = {"PE": row["PE"], "SIMD": row["SIMD"], "ram_style": "auto"}
        if layer.op != "dense":
            name = f"ConvolutionInputGenerator_rtl_{generators}"
            made[name] = {"SIMD": row["PE"] if depthwise else row["SIMD"], "ram_style": "auto"}
            generators += 1
        rows.append({"layer": layer.name, "node": f"{kind}_{number}", **row})
    return made, rows


def _fold(spec: Spec, layer: Layer, cycles: int) -> dict[str, int]:
    held = kernel(spec, layer)
    height, width = held.weight.shape[0], math.prod(held.weight.shape[1:])
    places = math.prod(layer.shape[1:]) if len(layer.shape) > 1 else 1
    choices = [(p * s, p, s, places * (height // p) * (width // s))
               for p in _divisors(height) for s in _divisors(width)]  # fmt: skip
    kept = [one for one in choices if one[3] <= cycles] or [max(choices)]
    _, pe, simd, taken = min(kept)
    return {"PE": pe, "SIMD": simd, "cycles": taken}


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]
