"""Gram matrices of many layers, streamed out of an engine in bounded memory.

The tensors that layers read become outputs of a copy of the model; of each batch a few hundred
sampled rows are kept just long enough to add their products. Layers are taken in several passes
over the data, so that matrices and tapped tensors together stay below a limit (one layer that is
larger alone gets a pass of its own).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compressor.quantization.reconstruction_rows import Gram, gram_dtype
from runtimes.base import Feeds

BATCH = 4  # whole tensors are read, for few rows of each
LIMIT_BYTES = 128 << 20
# A wider layer's matrix and factor would not pay for themselves.
MOST_COLUMNS = 8192
ROWS = 4096
Data = Callable[[], Iterator[Feeds]]
# Opens the model with the named tensors (or, if told so, their shapes) as its outputs.
Open = Callable[[Sequence[str], bool], Callable[[Feeds], Sequence[Any]]]


@dataclass(frozen=True)
class Tap:
    """What to read of a model for one use of a weight, and how rows come of it.

    Attributes:
        weight: the key its matrix is collected under.
        tensors: to read.
        rows: from their values, the most samples and a generator: blocks of rows.
        columns: of one block.
        blocks: how many.
        grouped: they are groups of channels, not parts of one row.
        how: equal, with equal tensors, for uses that multiply with the same rows (query, key and
            value, say).
    """

    weight: str
    tensors: tuple[str, ...]
    rows: Callable[[list[Any], int, Any], list[Any]]
    columns: int
    blocks: int = 1
    grouped: bool = False
    how: tuple[Any, ...] = ()

    @property
    def key(self) -> tuple[Any, ...]:
        """Uses with equal keys share a matrix."""
        return (self.tensors, self.how, self.columns, self.blocks)

    @property
    def size_bytes(self) -> int:
        """Of the matrix."""
        return int(gram_dtype(self.columns).itemsize) * self.blocks * self.columns**2


def collect(
    taps: Sequence[Tap],
    open_: Open,
    data: Data,
    *,
    rows: int = ROWS,
    limit_bytes: int = LIMIT_BYTES,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Gram matrices by weight, pass after pass, in the order of `taps`.

    The sum over all its uses is taken of a shared weight; weights of more than `MOST_COLUMNS`
    columns do not occur.
    """
    taken = [tap for tap in taps if tap.columns * tap.blocks <= MOST_COLUMNS or tap.grouped]
    if not taken:
        return
    batches, sizes = _sizes(taken, open_, data)
    for group in _passes(taken, sizes, limit_bytes):
        yield _one_pass(group, open_, data, rows, batches, seed)


def _tensors(taps: Sequence[Tap]) -> list[str]:
    return sorted({name for tap in taps for name in tap.tensors})


def _sizes(taps: Sequence[Tap], open_: Open, data: Data) -> tuple[int, dict[str, int]]:
    """Number of batches, and the bytes of each tapped tensor in the largest of the first three."""
    names = _tensors(taps)
    run = open_(names, True)
    sizes = dict.fromkeys(names, 0)
    count = 0
    for feeds in data():
        count += 1
        if count <= 3:
            for name, shape in zip(names, run(feeds), strict=True):
                sizes[name] = max(sizes[name], 4 * int(np.prod(shape)))
    return count, sizes


def _passes(taps: Sequence[Tap], sizes: dict[str, int], limit: int) -> Iterator[list[Tap]]:
    """Runs of taps that stay below `limit` bytes; all uses of one weight in one run."""
    by_weight: dict[str, list[Tap]] = {}
    for tap in taps:
        by_weight.setdefault(tap.weight, []).append(tap)
    now: list[Tap] = []
    for uses in by_weight.values():
        if now and _cost([*now, *uses], sizes) > limit:
            yield now
            now = []
        now = [*now, *uses]
    yield now


def _cost(taps: Sequence[Tap], sizes: dict[str, int]) -> int:
    matrices = {tap.key: tap.size_bytes for tap in taps}
    return sum(matrices.values()) + sum(sizes[name] for name in _tensors(taps))


def _one_pass(
    taps: Sequence[Tap], open_: Open, data: Data, rows: int, batches: int, seed: int
) -> dict[str, Any]:
    names = _tensors(taps)
    run = open_(names, False)
    grams = {tap.key: Gram(tap.grouped) for tap in taps}
    first = {tap.key: tap for tap in reversed(taps)}
    for number, feeds in enumerate(data()):
        values = dict(zip(names, run(feeds), strict=True))
        for place, (key, gram) in enumerate(grams.items()):
            tap = first[key]
            share = -(-max(rows, 2 * tap.columns) // max(1, batches))
            rng = np.random.default_rng([seed, number, place])
            gram.add(tap.rows([values[name] for name in tap.tensors], share, rng))
        del values  # the engine fills the next ones first
    made: dict[str, Any] = {}
    for tap in taps:
        matrix = grams[tap.key].matrix()
        if matrix is not None:
            before = made.get(tap.weight)
            made[tap.weight] = matrix if before is None else before + matrix
    return made
