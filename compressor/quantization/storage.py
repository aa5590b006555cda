"""Which weights are stored in how many bits: 4 bits almost everywhere, 8 where they hurt most.

Label-free: the damage of a tensor is the noise share of its 4-bit rounding (1/SQNR), which adds up
over layers to first order; the cheapest tensors in bytes go first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Tensor:
    """A weight to store: its name, number of values, and noise share (1/SQNR) at 4 bits."""

    name: str
    elements: int
    noise: float


def keep_in_8_bits(tensors: Sequence[Tensor], share: float) -> set[str]:
    """Names of tensors to keep in 8 bits, so that at least `share` of all values have 4.

    Greedy by noise removed per value: the first convolution, depthwise ones and the output layer
    are small and come out first without being named.
    """
    budget = (1.0 - share) * sum(t.elements for t in tensors)
    chosen: set[str] = set()
    for tensor in sorted(tensors, key=lambda t: (-t.noise / t.elements, t.name)):
        if tensor.elements <= budget:
            budget -= tensor.elements
            chosen.add(tensor.name)
    return chosen
