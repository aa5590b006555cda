"""Rounding that keeps a layer's outputs, not its weights: error feedback and coordinate descent.

A layer's squared output error for a weight error e (one row an output channel) is e·H·eᵀ, with H
the Gram matrix XᵀX of its inputs. Columns are rounded one after the other; what one loses the next
ones make up for (GPTQ: Frantar et al., arXiv 2210.17323, here in the equal form of Babai's nearest
plane, Chen et al., arXiv 2507.18553, which needs one Cholesky factor and no inverse). Coordinate
descent over the integers and a closed-form refit of the scales then lower the same error further;
neither can raise it. No labels, no gradients, numpy alone. A weight that is zero stays zero, since
`prune_pattern` may have made it so.

All arrays inside are [groups, columns, rows]: a column of every row lies side by side.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.quantization.storage import Rounded

Floats = NDArray[np.float32]
Reals = NDArray[Any]  # float64, or float32 for large matrices
Ints = NDArray[np.int8]

_PANEL = 512  # columns factored at a time
_COLUMNS = 64  # rounded before the rest of the matrix hears of it
_CHUNK = 1 << 20  # values solved at a time: 100 MB with everything derived from them
_CLIPS = np.linspace(0.4, 1.0, 25)
# Shares of the scale that is best for nearest rounding; each gets a full solution, and each row
# keeps its best: 1 dB over one scale alone at 4 bits.
_TRIED: tuple[float, ...] = (1.0, 1.1, 0.9, 0.8)
# Past this many products for a solution, one scale is tried, with fewer sweeps and in float32.
_LARGE = 1 << 30


def limits(bits: int) -> tuple[int, int]:
    """Lowest and highest integer of `bits`; 8 is symmetric, since kernels want it so."""
    return (-127, 127) if bits == 8 else (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)


def reconstruct(
    weight: Floats,
    axis: int,
    gram: Any | None,
    bits: int,
    scale: Floats | None = None,
    *,
    block: int | None = None,
    damping: float = 0.01,
    sweeps: int = 4,
) -> tuple[Ints, Floats]:
    """Integers and scales of `weight` with the least output error found on `gram`.

    Args:
        weight: float weights of any rank ≥ 2.
        axis: of the output channels; the other axes, flattened in order, are the columns.
        gram: XᵀX of the layer's inputs, [columns, columns], or [groups, columns, columns] where
            each run of channels/groups rows sees inputs of its own (grouped convolution). None:
            round to nearest at the scale of least squared error.
        bits: 8 gives [-127, 127], fewer the whole two's-complement range.
        scale: keep to these scales instead of searching; shape as returned.
        block: columns that share a scale; None is one scale a channel.
        damping: this share of the mean diagonal is added to the diagonal: fewer input rows than
            columns leave directions no row has seen.
        sweeps: of coordinate descent, each over all columns.

    Returns:
        int8 integers with the weight's shape, and float32 scales [channels], or
        [channels, columns/block].
    """
    moved = np.moveaxis(weight, axis, 0)
    rows = moved.reshape(len(moved), -1)
    size = rows.shape[1] if block is None else block
    if rows.shape[1] % size:
        raise ValueError(f"{rows.shape[1]} columns do not divide into blocks of {size}")
    with _damped(gram, rows.shape[1], damping) as grams:
        groups = len(grams)
        parts = rows.reshape(groups, -1, rows.shape[1])
        given = None if scale is None else scale.reshape(groups, parts.shape[1], -1)
        cheap = gram is not None and rows.shape[1] * rows.size > _LARGE
        solver = _Solver(grams, bits, size, 0 if gram is None else sweeps, cheap)
        integers, scales = _in_chunks(parts, solver, given)
    made = np.ascontiguousarray(np.moveaxis(integers.reshape(moved.shape), 0, axis))
    found = scales.reshape(len(moved), -1)
    return made, np.ascontiguousarray(found[:, 0] if block is None else found)


def round_with(weight: Floats, axis: int, gram: Any | None, block: int, bits: int = 4) -> Rounded:
    """`reconstruct`, with the damage done; `block` 0 is one scale a channel."""
    integers, scale = reconstruct(weight, axis, gram, bits, block=block or None)
    noise = damage(weight, axis, integers, scale, gram, block=block)
    return Rounded(integers, scale, bits, noise, block)


def damage(
    weight: Floats, axis: int, integers: Ints, scale: Floats, gram: Any | None, *, block: int = 0
) -> float:
    """Power of the output error over that of the output, tr(E·H·Eᵀ) / tr(W·H·Wᵀ).

    Without a Gram matrix, that of the weights themselves.
    """
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    whole = np.moveaxis(integers, axis, 0).reshape(rows.shape)
    grams = [None] if gram is None else gram if gram.ndim == 3 else gram[None]
    count = len(rows) // len(grams)
    width = max(1, _CHUNK // rows.shape[1])
    noise = power = 0.0
    for group, matrix in enumerate(grams):
        for start in range(group * count, (group + 1) * count, width):
            cut = slice(start, min(start + width, (group + 1) * count))
            values = rows[cut].astype(np.float64)
            spread = np.repeat(scale[cut], block, axis=1) if block else scale[cut, None]
            noise += _energy(values - whole[cut] * spread, matrix)
            power += _energy(values, matrix)
    return max(0.0, noise / power) if power > 0 else 0.0


def _energy(rows: Reals, gram: Any | None) -> float:
    if gram is None:
        return float((rows**2).sum())
    # A wide matrix is float32: numpy would make a float64 copy of it.
    return float(((rows.astype(gram.dtype, copy=False) @ gram) * rows).sum())


@contextmanager
def _damped(gram: Any | None, columns: int, damping: float) -> Iterator[Reals]:
    """Gram matrices, [groups, …], with more on their diagonals.

    They are the caller's own (a wide layer's takes 85 MB), who gets the diagonals back.
    """
    if gram is None:
        yield np.ones((1, columns, 0))  # no matrix: only its diagonal is needed
        return
    grams = gram if gram.ndim == 3 else gram[None]
    diagonal = np.einsum("gkk->gk", grams)
    before, mean = diagonal.copy(), diagonal.mean(axis=1)
    at = np.arange(columns)
    grams[:, at, at] += np.where(mean > 0, damping * mean, 1.0)[:, None]
    try:
        yield grams
    finally:
        grams[:, at, at] = before


def _in_chunks(parts: Floats, solver: _Solver, given: Floats | None) -> tuple[Ints, Floats]:
    """Integers and scales, [groups, rows, …], of weights [groups, rows, columns]."""
    groups, rows, columns = parts.shape
    width = max(1, _CHUNK // (groups * columns))
    integers = np.empty(parts.shape, np.int8)
    scales = np.empty((groups, rows, columns // solver.size), np.float32)
    kind: type[Any] = np.float32 if solver.cheap else np.float64
    for start in range(0, rows, width):
        cut = slice(start, start + width)
        fixed = None if given is None else _turned(given[:, cut], kind)
        whole, found = solver.solve(_turned(parts[:, cut], kind), fixed)
        integers[:, cut], scales[:, cut] = whole.transpose(0, 2, 1), found.transpose(0, 2, 1)
    return integers, scales


def _turned(values: Any, kind: type[Any]) -> Reals:
    return np.ascontiguousarray(values.transpose(0, 2, 1), dtype=kind)


def _upper_factor(grams: Reals, order: Any, kind: type[Any]) -> Reals:
    """R of H = R·Rᵀ for each matrix, its columns in `order`; a view of a reversed array.

    In half the memory where `kind` is float32, unless the matrix is too close to singular for it.
    """
    factors = []
    for gram, at in zip(grams, order, strict=True):
        backwards = _reordered(gram, at[::-1], kind)
        try:
            _cholesky(backwards)
        except np.linalg.LinAlgError:
            backwards = _reordered(gram, at[::-1], np.float64)
            _cholesky(backwards)
            backwards = backwards.astype(kind, copy=False)
        factors.append(backwards[::-1, ::-1])
    return factors[0][None] if len(factors) == 1 else np.stack(factors)


def _reordered(gram: Reals, at: Any, kind: type[Any]) -> Reals:
    """Rows and columns of `gram` in the order `at`, without a second copy in between."""
    made = np.empty(gram.shape, kind)
    for start in range(0, len(gram), _PANEL):
        rows = at[start : start + _PANEL]
        made[start : start + _PANEL] = gram[np.ix_(rows, at)]
    return made


def _cholesky(matrix: Reals) -> None:
    """The lower factor in place of `matrix`; LAPACK through numpy would hold it three times."""
    size = len(matrix)
    for start in range(0, size, _PANEL):
        stop = min(start + _PANEL, size)
        corner = np.linalg.cholesky(matrix[start:stop, start:stop])
        matrix[start:stop, start:stop] = corner
        matrix[start:stop, stop:] = 0.0
        if stop == size:
            return
        below = np.linalg.solve(corner, matrix[stop:, start:stop].T).T
        matrix[stop:, start:stop] = below
        for top in range(stop, size, _PANEL):
            end = min(top + _PANEL, size)
            part = below[: end - stop]
            matrix[top:end, stop:end] -= below[top - stop : end - stop] @ part.T


class _Solver:
    """One layer's Gram matrices, their factor, and the search for integers over them.

    `cheap` trades the last tenths of a decibel for seconds.
    """

    def __init__(self, grams: Reals, bits: int, size: int, sweeps: int, cheap: bool) -> None:
        self.grams, self.size, self.sweeps, self.cheap = grams, size, sweeps, cheap
        self.low, self.high = limits(bits)
        self.known = grams.shape[2] > 0
        self.columns = grams.shape[1]
        self.tried: tuple[float, ...] = _TRIED
        self.clips = _CLIPS
        if not self.known:
            return
        self.diagonal = np.einsum("gkk->gk", grams).copy()
        # The columns with the most input power come first, while the others can still make up
        # for them (act-order of GPTQ).
        self.order = np.argsort(-self.diagonal, axis=1, kind="stable")
        self.factor = _upper_factor(grams, self.order, np.float32 if cheap else np.float64)
        if cheap:
            self.tried, self.sweeps, self.clips = _TRIED[:1], min(sweeps, 2), _CLIPS[::3]
        kind = np.float32 if cheap else np.float64
        self.grams = self.grams.astype(kind, copy=False)
        self.diagonal = self.diagonal.astype(kind, copy=False)

    def solve(self, weight: Reals, given: Reals | None) -> tuple[Reals, Reals]:
        start = self._search(weight) if given is None else given
        integers = self._nearest(weight, start)
        if not self.known:
            return integers, start
        best = (integers, start)
        least = self._loss(weight, *best)
        for share in self.tried if given is None else (1.0,):
            tried = (share * start).astype(np.float32).astype(weight.dtype)
            made = self._fed_back(weight, tried)
            made, tried = self._descend(weight, made, tried, given is None)
            loss = self._loss(weight, made, tried)
            better = (loss < least)[:, None, :]
            best = (np.where(better, made, best[0]), np.where(better, tried, best[1]))
            least = np.minimum(loss, least)
        return best

    def _wide(self, scale: Reals) -> Reals:
        return np.repeat(scale, self.size, axis=1)

    def _nearest(self, weight: Reals, scale: Reals) -> Reals:
        return np.clip(np.rint(weight / self._wide(scale)), self.low, self.high)

    def _loss(self, weight: Reals, integers: Reals, scale: Reals) -> Reals:
        """Output error of each row, [groups, rows]."""
        error = weight - integers * self._wide(scale)
        found: Reals = ((self.grams @ error) * error).sum(axis=1)
        return found

    def _search(self, weight: Reals) -> Reals:
        """The scale of least squared error of nearest rounding, over clipping thresholds.

        Columns count by the power of their input.
        """
        groups, _, rows = weight.shape
        blocks = weight.reshape(groups, -1, self.size, rows)
        power = self.diagonal if self.known else np.ones((groups, self.columns))
        by = power.reshape(groups, -1, self.size, 1)
        peak = np.abs(blocks).max(axis=2, keepdims=True)
        best = np.full(peak.shape, np.inf)
        scales = np.ones(peak.shape, weight.dtype)
        for clip in self.clips:
            scale = np.where(peak > 0, clip * peak / self.high, 1.0)
            scale = self._fit(blocks, by, scale)
            whole = np.clip(np.rint(blocks / scale), self.low, self.high)
            error = (by * (blocks - whole * scale) ** 2).sum(axis=2, keepdims=True)
            better = error < best
            best, scales = np.where(better, error, best), np.where(better, scale, scales)
        return scales[:, :, 0].astype(np.float32).astype(weight.dtype)

    def _fit(self, blocks: Reals, by: Reals, scale: Reals) -> Reals:
        whole = np.clip(np.rint(blocks / scale), self.low, self.high)
        power = (by * whole**2).sum(axis=2, keepdims=True)
        fitted = (by * blocks * whole).sum(axis=2, keepdims=True) / np.where(power > 0, power, 1)
        return np.where(fitted > 0, fitted, scale)

    def _fed_back(self, weight: Reals, scale: Reals) -> Reals:
        """Column by column; each is rounded to what makes up best for those before it."""
        at = self.order[:, :, None]
        wanted = np.take_along_axis(weight, at, axis=1)
        steps = np.take_along_axis(self._wide(scale), at, axis=1)
        factor, columns = self.factor, self.columns
        lost, error = np.zeros_like(wanted), np.empty_like(wanted)
        whole = np.empty_like(wanted)
        for start in range(0, columns, _COLUMNS):
            stop = min(start + _COLUMNS, columns)
            for j in range(start, stop):
                aim = wanted[:, j] + lost[:, j] / factor[:, j, j, None]
                near = np.clip(np.rint(aim / steps[:, j]), self.low, self.high)
                whole[:, j] = np.where(wanted[:, j] == 0, 0, near)
                error[:, j] = wanted[:, j] - whole[:, j] * steps[:, j]
                lost[:, j + 1 : stop] += factor[:, j, j + 1 : stop, None] * error[:, None, j]
            # Contiguous: the factor is a reversed view, which BLAS does not take.
            rest = np.ascontiguousarray(factor[:, start:stop, stop:]).transpose(0, 2, 1)
            lost[:, stop:] += rest @ error[:, start:stop]
        made = np.empty_like(whole)
        np.put_along_axis(made, at, whole, axis=1)
        return made

    def _descend(
        self, weight: Reals, integers: Reals, scale: Reals, refit: bool
    ) -> tuple[Reals, Reals]:
        """Alternate between the best scale for the integers and the best integers for the scale."""
        slope = self.grams @ (weight - integers * self._wide(scale))
        for _ in range(self.sweeps):
            if refit:
                scale = self._refit(integers, scale, slope)
            if not self._sweep(integers, self._wide(scale), slope, weight == 0):
                break
        return integers, (self._refit(integers, scale, slope) if refit else scale)

    def _refit(self, integers: Reals, scale: Reals, slope: Reals) -> Reals:
        """Scales of least error for the integers, block after block; `slope` follows."""
        scale = scale.copy()
        for block in range(scale.shape[1]):
            cut = slice(block * self.size, (block + 1) * self.size)
            whole = integers[:, cut]
            pushed = self.grams[:, :, cut] @ whole
            power = (whole * pushed[:, cut]).sum(axis=1)
            more = (whole * slope[:, cut]).sum(axis=1) / np.where(power > 0, power, 1)
            moved = (scale[:, block] + more).astype(np.float32).astype(slope.dtype)
            moved = np.where((power > 0) & (moved > 0), moved, scale[:, block])
            slope -= pushed * (moved - scale[:, block])[:, None]
            scale[:, block] = moved
        return scale

    def _sweep(self, integers: Reals, steps: Reals, slope: Reals, held: Any) -> bool:
        """Move every integer not held to the best place the others leave it; False: none moved."""
        any_moved = False
        for start in range(0, self.columns, _COLUMNS):
            stop = min(start + _COLUMNS, self.columns)
            here = self.grams[:, start:stop, start:stop]
            shift = np.zeros_like(integers[:, start:stop])
            for j in range(start, stop):
                moved = np.rint(slope[:, j] / (steps[:, j] * self.diagonal[:, j, None]))
                moved = np.clip(integers[:, j] + moved, self.low, self.high) - integers[:, j]
                moved[held[:, j]] = 0
                if moved.any():
                    integers[:, j] += moved
                    shift[:, j - start] = moved * steps[:, j]
                    turn = here[:, :, j - start, None] * shift[:, None, j - start]
                    slope[:, start:stop] -= turn
            if shift.any():
                any_moved = True
                slope[:, :start] -= self.grams[:, :start, start:stop] @ shift
                slope[:, stop:] -= self.grams[:, stop:, start:stop] @ shift
        return any_moved
