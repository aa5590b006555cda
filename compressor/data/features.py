"""Features of tables and sequences that never change in calibration data.

Much is constant by nature: pixels of a border, padded steps, rare words, flags of a one-hot code.
What varies in the data that judges is held against that: the limit is what no fair draw misses. By
itself only a value is told that neither sparse data nor padding gives.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

EXPECTED = 8  # samples with a property; a fair draw lacks them all with e^-8 then
_ENOUGH = 300  # samples, as many as are asked for
_WIDEST = 64  # features; of more, such as pixels, some are constant by nature
_FAR = 0.1  # of the input's span, from 0: a scaled flag that is rarely set is nearer
_SHOWN = 5


@dataclass
class Slices:
    """Smallest and largest value of an input along one of its axes, index by index, in `rows`."""

    low: Array
    high: Array
    rows: int = 0

    @classmethod
    def empty(cls, size: int) -> Slices:
        """Before the first batch; `size` indices."""
        return cls(np.full(size, np.inf), np.full(size, -np.inf))

    def add(self, array: Array, axis: int) -> None:
        """Take in a batch of [samples, features], or of three axes, with that size along `axis`."""
        others = tuple(i for i in range(array.ndim) if i != axis)
        np.minimum(self.low, array.min(others), out=self.low)
        np.maximum(self.high, array.max(others), out=self.high)
        self.rows += len(array)

    @property
    def constant(self) -> Array:
        """Indices at which every sample holds the same value."""
        return np.flatnonzero(self.low == self.high)

    def missing(self, other: Slices, batches: Iterable[Array], axis: int) -> list[int]:
        """Constant here, and not in so many samples of `other` that a fair draw had one of them.

        Args:
            other: of the data that judges.
            batches: its arrays; gone through only where an index is constant here alone.
            axis: that both are of.
        """
        if len(self.low) != len(other.low):
            return []
        apart = (other.low != self.low) | (other.high != self.high)
        alone = [int(i) for i in self.constant if apart[i]]
        if not alone:
            return []
        unlike = np.zeros(len(alone), int)
        for array in batches:
            part = np.moveaxis(array, axis, 1)[:, alone].reshape(len(array), len(alone), -1)
            unlike += (part != self.low[alone][None, :, None]).any(2).sum(0)
        least = (EXPECTED + math.log(len(self.low))) * other.rows / self.rows
        return [i for i, count in zip(alone, unlike, strict=True) if count >= least]

    def stuck(self) -> list[int]:
        """Constant at a value that is far from 0 and from the input's lowest."""
        if self.rows < _ENOUGH or not 1 < len(self.low) <= _WIDEST:
            return []
        lowest, span = self.low.min(), self.high.max() - self.low.min()
        far = (np.abs(self.low) > _FAR * span) & (self.low > lowest)
        return [int(i) for i in self.constant if far[i]]


def named(indices: list[int], axis: int, rank: int) -> str:
    """`feature 3`, or `features 3, 17 and 4 more`, with the axis where there are two."""
    shown = ", ".join(map(str, indices[:_SHOWN]))
    more = f" and {len(indices) - _SHOWN} more" if len(indices) > _SHOWN else ""
    many = "s" if len(indices) > 1 else ""
    where = f" on axis {axis}" if rank > 2 else ""
    return f"feature{many} {shown}{more}{where}"
