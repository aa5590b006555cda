"""Repair of a pruned graph: layer after layer, weights re-solved so that it computes what it did.

Each layer that sees changed inputs gets the weights and bias for which its output on the pruned
model's own activations is closest to the original's, by ridge regression around the weights it has
(He, Zhang, Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017). Where the
output is added to a tensor that has changed (a shortcut), the sum is what is matched. How strong
the ridge is, and whether the layer is changed at all, is chosen on samples that were not fitted on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.pruning.onnx_data import Parts
from compressor.pruning.onnx_linear import Floats, Linear, Values, augmented, linears
from compressor.pruning.onnx_trace import Shape
from compressor.pruning.onnx_units import Trace, stays
from compressor.quantization.reconstruction_onnx import open_taps
from compressor.quantization.reconstruction_rows import some
from exporters._onnx_graph import reads
from exporters.base import Samples
from runtimes.base import Feeds

ROWS = 8192  # of each layer's input to fit on; four times its columns if that is more
_RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_WIDE_RIDGES = (1e-3, 1e-1)
_WIDE = 1500  # columns; a solution of more takes seconds


@dataclass(frozen=True)
class Pair:
    """The original and the pruned model, and how their channels correspond."""

    original: Any
    pruned: Any
    trace: Trace
    gone: set[int]
    shapes: Mapping[str, Shape]

    def outputs_left(self, layer: Linear, count: int) -> NDArray[np.bool_]:
        """Which of a layer's `count` outputs the pruned model still has."""
        for cut in self.trace.cuts:
            if cut.tensor == layer.weight and cut.role in {"out", "pass"}:
                return stays(self.trace, cut.ids, self.gone)
        return np.ones(count, bool)

    def changed(self) -> list[tuple[Linear, Linear]]:
        """Layers (of the original and the pruned model) whose input is not the original's."""
        dirty: set[str] = set()
        cuts = {
            cut.tensor for cut in self.trace.cuts if not stays(self.trace, cut.ids, self.gone).all()
        }
        for node in self.pruned.graph.node:
            if any(name in dirty or name in cuts for name in reads(node)):
                dirty.update(node.output)
        originals = {layer.name: layer for layer in linears(self.original)}
        return [
            (originals[layer.name], layer)
            for layer in linears(self.pruned)
            if layer.node.input[0] in dirty
        ]


def repair(
    pair: Pair,
    parts: Parts,
    samples: int,
    *,
    threads: int,
    seed: int,
    told: Callable[[float, str], None],
) -> tuple[int, int]:
    """Re-solve the layers of `pair.pruned` in place; how many were looked at, and changed."""
    layers = pair.changed()
    changed = 0
    for number, (before, after) in enumerate(layers):
        told(number / len(layers), f"repairing {after.name}")
        later = {layer.name for _, layer in layers[number:]}
        job = _Job(pair, before, after, _shortcut(pair, after, later))
        fit = job.normals(parts, parts.fit, samples, threads, seed)
        choose = job.normals(parts, parts.choose, max(8, samples // 3), threads, seed)
        values = Values(pair.pruned)
        found = _solve(values.get(after), fit, choose)
        if found is not None:
            values.set(after, found)
            changed += 1
    return len(layers), changed


def _shortcut(pair: Pair, layer: Linear, later: set[str]) -> str | None:
    """The tensor a layer's output is added to, unless a layer yet to be repaired feeds it."""
    readers = [node for node in pair.pruned.graph.node if layer.output in reads(node)]
    if len(readers) != 1 or readers[0].op_type != "Add" or layer.tap.columns == 1:
        return None
    others = [name for name in readers[0].input if name != layer.output]
    weights = {t.name for t in pair.pruned.graph.initializer}
    if len(others) != 1 or others[0] in weights:
        return None
    if pair.shapes.get(others[0]) != pair.shapes.get(layer.output):
        return None
    makers = {name: node for node in pair.pruned.graph.node for name in node.output if name}
    waiting, seen = [others[0]], set()
    while waiting:
        name = waiting.pop()
        node = makers.get(name)
        if node is None or node.name in seen:
            continue
        if node.name in later:
            return None
        seen.add(node.name)
        waiting.extend(reads(node))
    return str(others[0])


@dataclass
class Normals:
    """What least squares needs of rows X and targets Y: XᵀX, XᵀY and the power of Y, per block."""

    gram: Floats
    cross: Floats
    power: float = 0.0
    rows: int = 0

    def add(self, rows: Any, targets: Any) -> None:
        """Rows [blocks, samples, columns], targets [blocks, samples, outputs]."""
        turned = rows.transpose(0, 2, 1)
        self.gram += turned @ rows
        self.cross += turned @ targets
        self.power += float((targets.astype(np.float64) ** 2).sum())
        self.rows += rows.shape[1]

    def error(self, weight: Floats) -> float:
        """Squared error of `weight` [blocks, outputs, columns] on all rows."""
        turned = weight.transpose(0, 2, 1)
        fitted = float((turned * (self.gram @ turned)).sum())
        return fitted - 2 * float((turned * self.cross).sum()) + self.power


@dataclass
class _Job:
    """One layer's regression."""

    pair: Pair
    before: Linear
    after: Linear
    shortcut: str | None
    weight: Floats = field(init=False)
    left: NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        self.weight = Values(self.pair.original).get(self.before)
        blocks, rows, _ = self.weight.shape
        self.left = self.pair.outputs_left(self.after, blocks * rows).reshape(blocks, rows)

    def normals(
        self, parts: Parts, part: Samples, samples: int, threads: int, seed: int
    ) -> Normals:
        """Sums over the rows of one part of the data."""
        names = [self.after.tap.tensors[0], *([self.shortcut] if self.shortcut else [])]
        first, second = (
            open_taps(model, threads, names, False)
            for model in (self.pair.original, self.pair.pruned)
        )
        blocks, outputs, columns = Values(self.pair.pruned).get(self.after).shape
        made = Normals(np.zeros((blocks, columns, columns)), np.zeros((blocks, columns, outputs)))
        batches: list[Feeds] = list(parts.feeds(part, samples))
        limit = -(-max(ROWS, 4 * columns) // max(1, len(batches)))
        for number, feeds in enumerate(batches):
            found = self._rows(first(feeds), second(feeds), limit, [seed, number])
            if found is not None:
                made.add(*found)
        return made

    def _rows(
        self, before: Sequence[Any], after: Sequence[Any], limit: int, seed: list[int]
    ) -> tuple[Any, Any] | None:
        """Rows of the pruned model at some positions, and what it should make of them."""
        old = augmented(self.before, [before[0]], limit, np.random.default_rng(seed))
        new = augmented(self.after, [after[0]], limit, np.random.default_rng(seed))
        if not old or not len(old[0]):
            return None
        kept = np.asarray(self.left.any(axis=1))
        rows = np.stack([block for block, k in zip(old, kept, strict=True) if k])
        whole = rows @ self.weight[kept].transpose(0, 2, 1).astype(np.float32)
        pairs = zip(whole, self.left[kept], strict=True)
        targets = np.stack([block[:, left] for block, left in pairs])
        if self.shortcut:
            targets[0] += self._drift(before[1], after[1], limit, seed)
        return np.stack(new), targets

    def _drift(self, before: Any, after: Any, limit: int, seed: list[int]) -> Any:
        """By how much the shortcut is off, at the same positions."""
        spatial = self.after.node.op_type in {"Conv", "ConvTranspose"}
        old, new = (
            (np.moveaxis(a, 1, -1) if spatial else a).reshape(-1, a.shape[1 if spatial else -1])
            for a in (before, after)
        )
        chosen = some(len(old), limit, np.random.default_rng(seed))
        return old[chosen][:, self.left.ravel()] - new[chosen]


def _solve(prior: Floats, fit: Normals, choose: Normals) -> Floats | None:
    """The weights of least error on `choose`, of ridges around `prior` fitted; None: keep it."""
    if not fit.rows or not choose.rows:
        return None
    best, least = None, choose.error(prior)
    width = prior.shape[2]
    turned = prior.transpose(0, 2, 1)
    missing = fit.cross - fit.gram @ turned
    diagonal = np.einsum("bkk->bk", fit.gram)
    floor = 1e-6 * np.maximum(diagonal.mean(axis=1, keepdims=True), 1e-30)
    for ridge in _WIDE_RIDGES if width > _WIDE else _RIDGES:
        gram = fit.gram.copy()
        np.einsum("bkk->bk", gram)[:] += ridge * diagonal + floor
        found = (turned + np.linalg.solve(gram, missing)).transpose(0, 2, 1)
        error = choose.error(found)
        if np.isfinite(error) and error < least:
            best, least = found, error
    return best
