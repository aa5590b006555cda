"""The rows a layer multiplies its weight with, out of its input: sampled, never all of them.

Every function returns blocks of rows, [samples, columns] each, in the order of the weight's
flattened columns; `limit` is how many samples to take at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_SHARE = 8  # rows are multiplied once they are this part of the columns
_PANEL = 1024  # rows of a matrix added to at a time
# Wider matrices are summed in float32: half of 170 MB for 4,608 columns.
_WIDE = 2048


def gram_dtype(columns: int) -> Any:
    """Of a matrix of that many columns."""
    return np.dtype(np.float32 if columns >= _WIDE else np.float64)


@dataclass
class Gram:
    """XᵀX of a layer's inputs, as it grows.

    Attributes:
        blocks: one matrix for each block of rows, [columns, columns] each.
        grouped: the blocks are those of groups of channels, not parts of one row.
        rows: samples seen.
    """

    grouped: bool = False
    blocks: list[Any] = field(default_factory=list)
    rows: int = 0
    drawn: bool = False
    waiting: list[list[Any]] = field(default_factory=list)

    def add(self, parts: Sequence[Any]) -> None:
        """Take in blocks of rows; products in float32, sums in the matrix's own type."""
        if not parts or not len(parts[0]):
            return
        if not self.blocks:
            self.blocks = [np.zeros((n, n), gram_dtype(n)) for n in (p.shape[1] for p in parts)]
            self.waiting = [[] for _ in parts]
        for held, part in zip(self.waiting, parts, strict=True):
            held.append(np.ascontiguousarray(part, np.float32))
        self.rows += len(parts[0])
        # A few rows at a time would mostly add up large matrices.
        if sum(map(len, self.waiting[0])) * _SHARE >= len(self.blocks[0]):
            self._multiply()

    def _multiply(self) -> None:
        for block, held in zip(self.blocks, self.waiting, strict=True):
            if held:
                values = np.concatenate(held)
                held.clear()
                for start in range(0, len(block), _PANEL):
                    cut = slice(start, start + _PANEL)
                    block[cut] += values[:, cut].T @ values

    def matrix(self) -> Any | None:
        """As `reconstruct` takes it; None where no row was seen or a value was not finite.

        Few rows say little of the directions between them: the matrix is drawn towards a
        multiple of the identity by 2 % of columns/rows (as Ledoit and Wolf do; fitted on rows
        that were not sampled).
        """
        self._multiply()
        if not self.rows or not all(np.isfinite(block).all() for block in self.blocks):
            return None
        if not self.drawn:
            self.drawn = True
            for block in self.blocks:
                at = np.arange(len(block))
                block[at, at] += 0.02 * len(block) / self.rows * np.trace(block) / len(block)
        if self.grouped:
            return np.stack(self.blocks)
        if len(self.blocks) == 1:
            return self.blocks[0]
        ends = np.cumsum([0, *(len(block) for block in self.blocks)])
        whole = np.zeros((ends[-1], ends[-1]), self.blocks[0].dtype)
        for block, start, stop in zip(self.blocks, ends[:-1], ends[1:], strict=True):
            whole[start:stop, start:stop] = block
        return whole


@dataclass(frozen=True)
class Window:
    """A convolution's geometry: spatial kernel, strides, dilations, pads before and after."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    groups: int = 1


def window(
    kernel: Sequence[int],
    size: Sequence[int],
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
    pads: Sequence[int] | None,
    groups: int,
    same: str = "",
) -> Window:
    """A `Window` with defaults filled in; `same` is "upper" or "lower" for automatic padding."""
    rank = len(kernel)
    steps, gaps = tuple(strides or (1,) * rank), tuple(dilations or (1,) * rank)
    around = tuple(pads or (0,) * 2 * rank)
    before, after = around[:rank], around[rank:]
    if same:
        total = [
            max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n)
            for n, s, k, d in zip(size, steps, kernel, gaps, strict=True)
        ]
        small = tuple(t // 2 for t in total)
        large = tuple(t - t // 2 for t in total)
        before, after = (small, large) if same == "upper" else (large, small)
    return Window(tuple(kernel), steps, gaps, before, after, groups)


def flat_rows(values: Any, limit: int, rng: Any) -> list[Any]:
    """Rows of [..., columns]."""
    rows = values.reshape(-1, values.shape[-1])
    return [rows[some(len(rows), limit, rng)]]


def batched_rows(values: Any, stack: Sequence[int], limit: int, rng: Any) -> list[Any]:
    """Rows of [..., *stack, positions, columns] for a weight [*stack, columns, channels]."""
    parts = values.reshape(-1, int(np.prod(stack)), *values.shape[-2:])
    parts = parts.transpose(1, 0, 2, 3).reshape(parts.shape[1], -1, parts.shape[-1])
    chosen = some(parts.shape[1], limit, rng)
    return [part[chosen] for part in parts]


def conv_rows(values: Any, geometry: Window, limit: int, rng: Any) -> list[Any]:
    """Patches of [batch, channels, *space] that the kernel sees, one block a group."""
    pads = [(0, 0), (0, 0), *zip(geometry.before, geometry.after, strict=True)]
    padded = np.pad(values, pads)
    rank = len(geometry.kernel)
    reach = [(k - 1) * d + 1 for k, d in zip(geometry.kernel, geometry.dilations, strict=True)]
    if any(n < r for n, r in zip(padded.shape[2:], reach, strict=True)):
        return []
    seen = np.lib.stride_tricks.sliding_window_view(padded, reach, tuple(range(2, 2 + rank)))
    cut = tuple(slice(None, None, s) for s in geometry.strides)
    gaps = tuple(slice(None, None, d) for d in geometry.dilations)
    seen = seen[(slice(None), slice(None), *cut, *gaps)]
    space = (seen.shape[0], *seen.shape[2 : 2 + rank])
    chosen = np.unravel_index(some(int(np.prod(space)), limit, rng), space)
    patches = seen[(chosen[0], slice(None), *chosen[1:])]
    by_group = patches.reshape(len(patches), geometry.groups, -1)
    return [by_group[:, g] for g in range(geometry.groups)]


def transposed_conv_rows(values: Any, geometry: Window, limit: int, rng: Any) -> list[Any]:
    """What each output of a transposed convolution is a product of, one block a group.

    That is the input spread out by the strides, under the mirrored kernel.
    """
    shape = [(n - 1) * s + 1 for n, s in zip(values.shape[2:], geometry.strides, strict=True)]
    spread = np.zeros((*values.shape[:2], *shape), values.dtype)
    spread[(slice(None), slice(None), *(slice(None, None, s) for s in geometry.strides))] = values
    reach = [(k - 1) * d for k, d in zip(geometry.kernel, geometry.dilations, strict=True)]
    plain = Window(
        geometry.kernel,
        (1,) * len(reach),
        geometry.dilations,
        tuple(max(0, r - p) for r, p in zip(reach, geometry.before, strict=True)),
        tuple(max(0, r - p) for r, p in zip(reach, geometry.after, strict=True)),
        geometry.groups,
    )
    mirrored = []
    for rows in conv_rows(spread, plain, limit, rng):
        taps = rows.reshape(len(rows), -1, *geometry.kernel)
        turned = taps[(slice(None), slice(None), *(slice(None, None, -1),) * len(reach))]
        mirrored.append(turned.reshape(len(rows), -1))
    return mirrored


def state_rows(
    states: Any, first: Any | None, reversed_: Sequence[bool], limit: int, rng: Any
) -> list[Any]:
    """The hidden state that each step of a recurrent layer starts from, one block a direction.

    Args:
        states: hidden state after each step, [time, directions, batch, hidden].
        first: state before the first step, [directions, batch, hidden]; None: zeros, no rows.
        reversed_: by direction, whether time runs backwards.
        limit: as everywhere here.
        rng: as everywhere here.
    """
    blocks = []
    for direction, backwards in enumerate(reversed_):
        rows = (states[1:] if backwards else states[:-1])[:, direction].reshape(
            -1, states.shape[-1]
        )
        if first is not None:
            rows = np.concatenate([first[direction].reshape(-1, states.shape[-1]), rows])
        blocks.append(rows)
    chosen = some(len(blocks[0]), limit, rng)
    return [rows[chosen] for rows in blocks]


def some(count: int, limit: int, rng: Any) -> Any:
    """Sorted indices of at most `limit` of `count`."""
    if count <= limit:
        return np.arange(count)
    return np.sort(rng.choice(count, limit, replace=False))
