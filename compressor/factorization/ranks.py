"""Which rank each layer gets so that the whole meets its budget.

Every layer offers points (cost, share of energy lost, weighed): itself, and its pairs. Down their
convex hulls, the step that loses least for what it saves comes first (a layer's first step passes
over the ranks at which a pair saves too little to be worth its loss); what the last step saved too
much goes back to the ranks that gain most by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from compressor.pruning.allocate import TOLERANCE

_AIM = 0.9 * TOLERANCE


@dataclass(frozen=True)
class Offer:
    """What one layer may become, dearest first; `ranks[0]` is 0: the layer as it is."""

    name: str
    ranks: tuple[int, ...]
    costs: np.ndarray
    losses: np.ndarray


def offer(
    name: str,
    energies: np.ndarray,
    *,
    most: int,
    floor: float,
    multiple: int,
    cost: float,
    per_rank: float,
    weight: float = 1.0,
) -> Offer:
    """Ranks up to `most` that are multiples of `multiple` and at least `floor` of the full one.

    `weight` says how much a share of this layer's energy is worth beside others'.
    """
    least = max(1, int(np.ceil(len(energies) * floor)))
    steps = [r for r in range(most, least - 1, -1) if r % multiple == 0]
    left = np.concatenate([[0.0], np.cumsum(energies)])
    total = left[-1] if left[-1] > 0 else 1.0
    losses = [0.0, *[weight * float(left[-1] - left[r]) / total for r in steps]]
    prices = [cost, *[per_rank * r for r in steps]]
    return Offer(name, (0, *steps), np.array(prices), np.array(losses))


def allocate(offers: Sequence[Offer], fixed: float, limit: float) -> dict[str, int] | None:
    """Name → rank of the layers to replace, so that they and `fixed` cost `limit`.

    Less rather than more of it; None where the steps are too coarse to come within `TOLERANCE` of
    it, or cannot reach it.
    """
    places = [0] * len(offers)
    total = fixed + sum(float(o.costs[0]) for o in offers)
    edges = [edge for i, o in enumerate(offers) for edge in _edges(i, o)]
    for _, i, place in sorted(edges):
        if total <= limit:
            break
        total -= float(offers[i].costs[places[i]] - offers[i].costs[place])
        places[i] = place
    if total > limit:
        return None
    total = _give_back(offers, places, total, limit)
    if total < limit * (1 - TOLERANCE) and not _settle(offers, places, total, limit):
        return None
    return {o.name: o.ranks[p] for o, p in zip(offers, places, strict=True) if p}


def least(offers: Sequence[Offer], fixed: float) -> float:
    """What the whole costs with every layer at its floor."""
    return fixed + sum(float(o.costs.min()) for o in offers)


def _edges(index: int, one: Offer) -> list[tuple[float, int, int]]:
    """(loss for each saved, layer, place) down the lower convex hull of a layer's points."""
    hull: list[int] = []
    for place in range(len(one.ranks)):
        while len(hull) > 1 and _slope(one, hull[-1], place) <= _slope(one, hull[-2], hull[-1]):
            hull.pop()
        hull.append(place)
    return [(_slope(one, a, b), index, b) for a, b in pairwise(hull)]


def _slope(one: Offer, a: int, b: int) -> float:
    return float((one.losses[b] - one.losses[a]) / (one.costs[a] - one.costs[b]))


def _give_back(offers: Sequence[Offer], places: list[int], total: float, limit: float) -> float:
    """Raise ranks in place while that fits, each time where it gains most; the new total.

    By one step, or back to the whole layer: between them no step gains more.
    """
    while True:
        fitting = [
            (_slope(o, up, places[i]), i, up)
            for i, o in enumerate(offers)
            for up in {places[i] - 1, 0}
            if places[i] and total + float(o.costs[up] - o.costs[places[i]]) <= limit
        ]
        if not fitting:
            return total
        _, i, up = max(fitting, key=lambda found: (found[0], -found[1], -found[2]))
        total += float(offers[i].costs[up] - offers[i].costs[places[i]])
        places[i] = up


def _settle(offers: Sequence[Offer], places: list[int], total: float, limit: float) -> bool:
    """Change one layer or two in place so that the whole comes to `limit`, at the least loss.

    For small modules, where one rank more is more than the tolerance.
    """
    nothing = Offer("", (0,), np.zeros(1), np.zeros(1))
    every, at = [*offers, nothing], [*places, 0]
    found = []
    for j, other in enumerate(every):
        for i, one in enumerate(offers[:j]):
            change = np.add.outer(one.costs - one.costs[at[i]], other.costs - other.costs[at[j]])
            loss = np.add.outer(one.losses - one.losses[at[i]], other.losses - other.losses[at[j]])
            loss[np.abs(total + change - limit) > _AIM * limit] = np.inf
            best = np.unravel_index(int(loss.argmin()), loss.shape)
            found.append((float(loss[best]), i, int(best[0]), j, int(best[1])))
    loss_of_it, i, place, j, other_place = min(found)
    if not np.isfinite(loss_of_it):
        return False
    at[i], at[j] = place, other_place
    places[:] = at[:-1]
    return True
