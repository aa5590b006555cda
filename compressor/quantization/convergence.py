"""Whether enough samples were seen: how wide the ranges of activations were on the way.

A range only grows. If the last half of the samples still widened it much, more samples would widen
it further, and values outside of what was seen are clipped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compressor.quantization.calibration_ranges import Range
from compressor.result import UNCONVERGED

MOST_GROWTH = 0.2  # 100 random samples of Fashion-MNIST grew by 0 to 18 % on 9 networks
_SHOWN = 3


@dataclass(frozen=True)
class Point:
    """After so many samples: the width of a range over its width in the end.

    Attributes:
        samples: how many had been seen.
        median: share of the median tensor.
        least: share of the tensor that had furthest to go.
    """

    samples: int
    median: float
    least: float


class Widening:
    """Ranges that take in one batch after the other, with a look back at each doubling.

    Attributes:
        ranges: tensor → (lowest, highest) value so far.
        samples: how many were seen.
    """

    def __init__(self) -> None:
        self.ranges: dict[str, Range] = {}
        self.samples = 0
        self._earlier: list[tuple[int, dict[str, Range]]] = []

    def add(self, seen: Mapping[str, Range], samples: int) -> None:
        """What a batch of `samples` spans, by tensor."""
        for name, (low, high) in seen.items():
            before = self.ranges.get(name, (np.inf, -np.inf))
            self.ranges[name] = min(before[0], low), max(before[1], high)
        self.samples += samples
        if not self._earlier or self.samples >= 2 * self._earlier[-1][0]:
            self._earlier.append((self.samples, dict(self.ranges)))

    def series(self) -> tuple[Point, ...]:
        """A point for each doubling before the end, the first samples first."""
        if not self.ranges:
            return ()
        return tuple(
            self._point(samples, ranges)
            for samples, ranges in self._earlier
            if samples < self.samples
        )

    def _point(self, samples: int, ranges: Mapping[str, Range]) -> Point:
        shares = []
        for name, final in self.ranges.items():
            width = _width(final)
            shares.append(_width(ranges[name]) / width if width else 1.0)
        return Point(samples, float(np.median(shares)), float(min(shares)))


def _width(bounds: Range) -> float:
    """Of the range that holds 0 as well, as an integer's does."""
    return max(bounds[1], 0.0) - min(bounds[0], 0.0)


def halfway(series: Sequence[Point], samples: int) -> Point | None:
    """The last point before which at most half of the samples lie; None where there is none."""
    return next((p for p in reversed(series) if 2 * p.samples <= samples), None)


def convergence_facts(series: Sequence[Point], samples: int) -> dict[str, Any]:
    """For the artifact's facts: growth of the median range over the last half, and the series."""
    half = halfway(series, samples)
    return {
        "range_growth": None if half is None else 1 - half.median,
        "range_widths": [[point.samples, point.median, point.least] for point in series],
    }


def convergence_note(series: Sequence[Point], samples: int) -> list[str]:
    """A sentence on how far calibration had come; it warns where ranges still grew much."""
    half = halfway(series, samples)
    if half is None:
        return []
    growth = f"the median range grew by {1 - half.median:.0%} over the last half of {samples}"
    widths = ", ".join(f"{p.median:.0%} after {p.samples}" for p in series[-_SHOWN:])
    text = f"{growth} samples, the most by {1 - half.least:.0%} (median width: {widths})"
    if 1 - half.median <= MOST_GROWTH:
        return [f"calibration: {text}"]
    wanted = f"at most {MOST_GROWTH:.0%} was expected: hand in {samples} more, drawn at random"
    return [f"{UNCONVERGED}{text}; {wanted}"]
