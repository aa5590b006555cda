"""What calibration holds at most, from shapes alone, so that it can be said before anything runs.

On ONNX Runtime the engine frees a tensor after its last reader, so activations are counted as they
live; NNCF keeps what a batch makes. Samples that a user holds in memory, and some 30 MB of the
engines' own, come on top.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from compressor.quantization.calibration import BATCH, BUDGET
from compressor.quantization.calibration_ranges import BINS
from compressor.quantization.onnx_branches import has_branches
from exporters._onnx_graph import fixed_batch, graphs, reads
from exporters._onnx_macs import inferred, shapes_of

COPIES = 3
HELD_BYTES = 256 << 20  # of activations that NNCF looks at together
# Times over that NNCF holds a batch's activations; it reduces by `minmax` inside of the engine.
_TIMES = {"minmax": 1, "mse": 2, "entropy": 2, "percentile": 3}
_IN_PLACE = frozenset({"Relu", "Clip", "Add", "Mul", "Sub", "Div", "Sigmoid", "Tanh", "LeakyRelu"})


@dataclass(frozen=True)
class Held:
    """Bytes at most.

    Attributes:
        samples: of a batch.
        activations: what a batch of them makes and is not yet freed.
        histograms: those of the methods that clip, with the activations held to fill them.
        copies: of the model: as it was, in the engine, and as it becomes.
        unknown: tensors whose size cannot be told, which are not counted.
    """

    samples: int
    activations: int
    histograms: int = 0
    copies: int = 0
    unknown: int = 0

    def __str__(self) -> str:
        parts = f"{_mb(self.activations)} of activations, batches of {self.samples}"
        if self.histograms:
            parts += f"; {_mb(self.histograms)} of histograms"
        if self.copies:
            parts += f"; {_mb(self.copies)} for copies of the model"
        if self.unknown:
            parts += f"; {self.unknown} tensors of unknown size not counted"
        total = _mb(self.activations + self.histograms + self.copies)
        return f"calibration holds at most {total} ({parts})"


def _mb(size: int) -> str:
    return f"{max(1, math.ceil(size / 1e6)):,} MB"


def held(model: Any, dims: Mapping[str, int], method: str, target: str) -> Held:
    """What `quantize_static` will hold while it calibrates.

    Args:
        model: an `onnx.ModelProto`.
        dims: named free dimension → size, as in the data.
        method: one of `calibration_ranges.METHODS`.
        target: `openvino`, or another, whose steps calibrate on ONNX Runtime.
    """
    most = 1 if has_branches(model) else BATCH  # a batch would take one branch for all of it
    graph = inferred(model, dims).graph
    sizes = _sizes(graph, {tensor.name for tensor in model.graph.initializer})
    unknown = sum(name not in sizes for node in graph.node for name in node.output if name)
    batch = fixed_batch(model) or most
    weights = sum(len(t.raw_data) for graph in graphs(model.graph) for t in graph.initializer)
    if target == "openvino":
        return held_by_nncf(sizes.values(), batch, method, weights, unknown)
    histograms = 0
    if method != "minmax":
        histograms = max(BUDGET, batch * max(sizes.values(), default=0)) + 8 * BINS * len(sizes)
        histograms = min(histograms, batch * sum(sizes.values()) + 8 * BINS * len(sizes))
    return Held(batch, batch * _peak(graph, sizes), histograms, COPIES * weights, unknown)


def held_by_nncf(sizes: Iterable[int], most: int, method: str, weights: int, unknown: int) -> Held:
    """What NNCF holds of a batch of at most `most` samples; tensors take `sizes` for each.

    `weights` are the model's bytes; `unknown` tensors have no size.
    """
    total = sum(sizes)
    batch = max(1, min(most, HELD_BYTES // max(1, total)))
    return Held(batch, batch * total * _TIMES[method], 0, COPIES * weights, unknown)


def _sizes(graph: Any, weights: set[str]) -> dict[str, int]:
    """Bytes of each computed tensor and input for one sample."""
    computed = {name for node in graph.node for name in node.output}
    given = {value.name for value in graph.input} - weights
    shapes = shapes_of(graph)
    return {n: 4 * math.prod(shapes[n]) for n in sorted(computed | given) if n in shapes}


def _peak(graph: Any, sizes: Mapping[str, int]) -> int:
    """The most that lives at once where each tensor goes after its last reader."""
    last = {name: i for i, node in enumerate(graph.node) for name in reads(node)}
    kept = {value.name for value in (*graph.input, *graph.output)}
    alive = sum(sizes.get(value.name, 0) for value in graph.input)
    peak = alive
    for i, node in enumerate(graph.node):
        new = sum(sizes.get(name, 0) for name in node.output)
        gone = {name for name in {*reads(node), *node.output} - kept if last.get(name, i) == i}
        freed = sum(sizes.get(name, 0) for name in gone)
        in_place = node.op_type in _IN_PLACE and any(sizes.get(name, 0) == new for name in gone)
        peak = max(peak, alive if in_place else alive + new)
        alive += new - freed
    return peak
