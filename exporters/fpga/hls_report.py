"""Resources and cycles of an HLS project: by formula, or from the vendor's report.

The formulas are the usual first guess for hls4ml's layers and were calibrated on nothing: a layer
that multiplies takes `products / reuse factor` multipliers (`latency` leaves out zeros, which are
constants there), in DSPs where a product is wider than 10 bits and in `bits * bits / 2` LUTs else;
weights of `resource` lie in block RAMs of 18,432 bits. A layer takes a new input every `reuse
factor` cycles, in streams once a place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from exporters.fpga.hls_graph import kernel, ungrouped
from exporters.fpga.project import figure
from runtimes.errors import BuildFailed
from runtimes.fixed.spec import Layer, Spec
from runtimes.fpga.hls import PROJECT

REPORT = f"{PROJECT}_prj/solution1/syn/report/{PROJECT}_csynth.xml"
FORMULA, VENDOR = "estimate (formula)", "vendor report"
NARROW = 10  # bits of a product that is still built of LUTs
BRAM_BITS = 18432


def estimates(spec: Spec, layers: list[dict[str, Any]], options: Any) -> dict[str, Any]:
    """LUTs, DSPs, block RAMs, cycles of latency and between inputs, by formula."""
    reuse = {row["layer"]: int(row["reuse_factor"] or 1) for row in layers}
    total = {"luts": 0.0, "dsps": 0, "brams": 0}
    latency, interval = 0, 1
    for layer in spec.layers:
        if layer.op not in ("dense", "conv", "avg_pool"):
            latency += 1
            continue
        cost = _multipliers(spec, layer, reuse.get(layer.name, 1), options)
        for name in total:
            total[name] += cost[name]
        held = reuse.get(layer.name, 1) * (_places(layer) if options.io_type == "io_stream" else 1)
        latency += held + _depth(spec, layer)
        interval = max(interval, held)
    tool = "multipliers, adder depth, reuse factor"
    cycles = {"latency_cycles": latency, "interval_cycles": interval}
    return {n: figure(math.ceil(v), FORMULA, tool) for n, v in {**total, **cycles}.items()}


def _places(layer: Layer) -> int:
    return math.prod(layer.shape[1:]) if len(layer.shape) > 1 else 1


def _depth(spec: Spec, layer: Layer) -> int:
    """Cycles through a multiplier and a tree of adders, two adders a cycle."""
    terms = max(2, int(np.prod(ungrouped(kernel(spec, layer)).shape[1:])))
    return 1 + math.ceil(math.log2(terms) / 2)


def _multipliers(spec: Spec, layer: Layer, reuse: int, options: Any) -> Mapping[str, float]:
    held = kernel(spec, layer)
    dense = options.strategy == "resource"
    weights = ungrouped(held)
    products = weights.size if dense else int(np.count_nonzero(weights))
    copies = 1 if options.io_type == "io_stream" else _places(layer)
    number = math.ceil(products * copies / reuse)
    bits = int(np.abs(held.weight).max(initial=1)).bit_length() + 1
    if not dense:  # shifts of constants are free
        bits = min(bits, int(layer.attributes.get("weight", {}).get("bits", bits)))
    of_input = spec.formats[layer.inputs[0]].bits
    narrow = bits + of_input <= NARROW
    return {
        "luts": number * bits * of_input / 2 if narrow else 0,
        "dsps": 0 if narrow else number,
        "brams": math.ceil(weights.size * bits / BRAM_BITS) if dense and reuse > 1 else 0,
    }


def vendor_figures(project: Path, tool: str, mhz: float) -> dict[str, Any]:
    """What Vitis HLS reports after synthesis; `BuildFailed` where it left no report."""
    path = project / REPORT
    try:
        root = ElementTree.parse(path).getroot()  # noqa: S314 - of the tool that was just called
        cycles = int(_text(root, "PerformanceEstimates/SummaryOfOverallLatency/Worst-caseLatency"))
        interval = int(_text(root, "PerformanceEstimates/SummaryOfOverallLatency/Interval-max"))
        period = _text(root, "PerformanceEstimates/SummaryOfTimingAnalysis/EstimatedClockPeriod")
        area = {name: int(_text(root, f"AreaEstimates/Resources/{theirs}"))
                for name, theirs in _AREA.items()}  # fmt: skip
    except (OSError, ElementTree.ParseError, KeyError, ValueError) as error:
        raise BuildFailed(
            f"{tool} left no readable report: {error}", where="to_hls", expected=str(path)
        ) from error
    values: dict[str, float] = {**area, "latency_cycles": cycles, "interval_cycles": interval}
    values["fmax_mhz"] = round(1000.0 / float(period), 3)
    values["latency_ns"] = round(cycles * 1000.0 / mhz, 2)
    return {name: figure(value, VENDOR, tool) for name, value in values.items()}


_AREA = {"luts": "LUT", "ffs": "FF", "dsps": "DSP", "brams": "BRAM_18K"}


def _text(root: ElementTree.Element, path: str) -> str:
    found = root.findtext(path)
    if found is None:
        raise KeyError(path)
    return found
