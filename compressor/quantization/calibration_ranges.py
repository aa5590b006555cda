"""From a histogram of fixed size to the range that 8 bits should cover.

A histogram counts the values of one tensor between its smallest and its largest; whatever the
number of samples, it takes 16 KB.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Range = tuple[float, float]

BINS = 2048
PERCENTILE = 0.9999
_SHARES = np.linspace(1.0, 0.1, 91)
_SMALLEST = 1e-9  # in place of an empty bin, where a logarithm is taken


def histogram(values: Any, low: float, high: float) -> Any:
    """Counts of `values` in `BINS` bins over [low, high]; none where that is a point."""
    if not high > low:
        return np.zeros(BINS)
    return np.histogram(values, BINS, (low, high))[0].astype(np.float64)


def extremes(counts: Any, low: float, high: float) -> Range:
    """All that was seen."""
    del counts
    return low, high


def percentile(counts: Any, low: float, high: float) -> Range:
    """The range that leaves out 0.01 % of the values at each end (what lies on an end stays)."""
    total = counts.sum()
    if not total:
        return low, high
    share = np.concatenate([[0.0], np.cumsum(counts)]) / total
    edges = np.linspace(low, high, BINS + 1)
    top = edges[np.searchsorted(share, PERCENTILE)]
    bottom = edges[np.searchsorted(share, 1 - PERCENTILE, side="right") - 1]
    return float(bottom), float(top)


def least_squares(counts: Any, low: float, high: float) -> Range:
    """The part of [low, high] around 0 whose 256 levels leave the least squared error.

    Each end is moved by itself, twice: an outlier on one side must not cost the other its range.
    """
    if not counts.any():
        return low, high
    centres = low + (np.arange(BINS) + 0.5) * (high - low) / BINS
    low, high = min(low, 0.0), max(high, 0.0)
    bottom, top = low, high
    for _ in range(2):
        top = min(
            (share * high for share in _SHARES), key=lambda t: _loss(counts, centres, bottom, t)
        )
        bottom = min(
            (share * low for share in _SHARES), key=lambda b: _loss(counts, centres, b, top)
        )
    return float(bottom), float(top)


def _loss(counts: Any, centres: Any, bottom: float, top: float) -> float:
    """Squared error of clipping to [bottom, top] plus that of rounding inside."""
    clipped = np.clip(centres, bottom, top)
    rounding = ((top - bottom) / 255) ** 2 / 12
    return float(counts @ ((centres - clipped) ** 2 + np.where(clipped == centres, rounding, 0.0)))


def entropy(counts: Any, low: float, high: float) -> Range:
    """The range whose quantized distribution diverges least from the one seen (Kullback-Leibler).

    Migacz, "8-bit inference with TensorRT", 2017, on magnitudes: 128 levels of them where values
    have both signs, 256 where they have one. The bin at 0 counts like its neighbour, as in NVIDIA's
    pytorch-quantization: the zeros after a Relu would else decide everything.
    """
    if not counts.any():
        return low, high
    peak = max(abs(low), abs(high))
    levels = 128 if low < 0 < high else 256
    magnitudes = _magnitudes(counts, low, high, peak)
    magnitudes[0] = magnitudes[1]
    bins = len(magnitudes)
    widths = range(levels, bins + 1, 8)
    best = min(widths, key=lambda width: _divergence(magnitudes, width, levels))
    limit = peak * best / bins
    return max(low, -limit), min(high, limit)


def _magnitudes(counts: Any, low: float, high: float, peak: float) -> Any:
    """The histogram over |x| from 0 to `peak`, read off the cumulative one."""
    edges = np.linspace(low, high, BINS + 1)
    total = np.concatenate([[0.0], np.cumsum(counts)])
    at = np.linspace(0.0, peak, BINS + 1)
    below = np.interp(at, edges, total) - np.interp(-at, edges, total, left=0.0)
    below[0] = 0.0
    return np.maximum(np.diff(below), 0.0)


def _divergence(magnitudes: Any, width: int, levels: int) -> float:
    """KL divergence of the first `width` bins, the rest added to the last, from `levels` levels."""
    seen = magnitudes[:width].copy()
    filled = seen > 0
    starts = (np.arange(levels) * width) // levels
    sums = np.add.reduceat(seen, starts)
    numbers = np.add.reduceat(filled.astype(np.float64), starts)
    level = np.repeat(np.arange(levels), np.diff(np.append(starts, width)))
    spread = np.where(filled, (sums / np.maximum(numbers, 1))[level], 0.0)
    seen[-1] += magnitudes[width:].sum()
    p, q = seen / seen.sum(), spread / max(spread.sum(), _SMALLEST)
    some = p > 0
    return float((p[some] * np.log(p[some] / np.maximum(q[some], _SMALLEST))).sum())


METHODS: dict[str, Callable[[Any, float, float], Range]] = {
    "minmax": extremes,
    "percentile": percentile,
    "mse": least_squares,
    "entropy": entropy,
}
