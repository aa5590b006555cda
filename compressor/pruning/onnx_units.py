"""Channels of an ONNX graph as numbered units: which are tied, which must stay and why.

A unit is one index of one axis of a tensor. Units that only go together are tied (union-find);
what is removed from the graph later is always a whole set of tied units.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtimes.errors import Refusal

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Label:
    """The axis of a tensor that holds channels, and the unit of each of its indices."""

    axis: int
    ids: Ids


@dataclass(frozen=True)
class Cut:
    """An axis of a weight that shrinks with its units.

    Attributes:
        tensor: the weight's name.
        axis: which shrinks.
        ids: the unit of each index.
        node: the reader that asks for it.
        role: `out`, a layer makes these channels; `in`, a layer takes them; `pass`, it keeps each
            to itself (a bias, a norm, a depthwise convolution).
    """

    tensor: str
    axis: int
    ids: Ids
    node: str
    role: str


@dataclass
class Units:
    """Numbered units, tied or free."""

    parents: list[int] = field(default_factory=list)
    reasons: dict[int, Refusal] = field(default_factory=dict)

    def new(self, count: int) -> Ids:
        """So many units that nothing ties yet."""
        start = len(self.parents)
        self.parents.extend(range(start, start + count))
        return np.arange(start, start + count, dtype=np.int64)

    def root(self, unit: int) -> int:
        """The unit that stands for all those tied to this one."""
        while self.parents[unit] != unit:
            self.parents[unit] = self.parents[self.parents[unit]]
            unit = self.parents[unit]
        return unit

    def roots(self, ids: Ids) -> Ids:
        """`root` of each."""
        return np.asarray([self.root(int(i)) for i in ids], np.int64)

    def tie(self, first: Ids, second: Ids) -> None:
        """Each of `first` goes only together with its counterpart."""
        for a, b in zip(first, second, strict=True):
            low, high = sorted((self.root(int(a)), self.root(int(b))))
            if low != high:
                self.parents[high] = low
                reason = self.reasons.pop(high, None)
                if reason is not None:
                    self.reasons.setdefault(low, reason)

    def freeze(self, ids: Ids, where: str, why: str) -> None:
        """These stay; the first reason counts."""
        for root in {self.root(int(i)) for i in ids}:
            self.reasons.setdefault(root, Refusal(where, why))


@dataclass(frozen=True)
class Size:
    """A count of channels written down in a constant: `position` of `tensor`."""

    tensor: str
    position: int
    ids: Ids


@dataclass
class Trace:
    """What was learned of a graph.

    Attributes:
        units: of all axes that hold channels.
        cuts: weights that shrink with them.
        sizes: constants that hold a count of them.
        grouped: convolution → the units of its inputs, whose number is its `group`.
        made: layer → the units of the channels it makes.
        labels: tensor → its channels.
    """

    units: Units = field(default_factory=Units)
    cuts: list[Cut] = field(default_factory=list)
    sizes: list[Size] = field(default_factory=list)
    grouped: dict[str, Ids] = field(default_factory=dict)
    made: dict[str, Ids] = field(default_factory=dict)
    labels: dict[str, Label] = field(default_factory=dict)


def stays(trace: Trace, ids: Ids, gone: set[int]) -> NDArray[np.bool_]:
    """Which indices are left once the roots in `gone` are removed."""
    return np.asarray([int(root) not in gone for root in trace.units.roots(ids)], bool)


def numbers(tensor: Any) -> list[int]:
    """Values of an integer constant."""
    import onnx

    return [int(v) for v in np.ravel(onnx.numpy_helper.to_array(tensor))]
