"""How many channels each group gives up so that the whole meets its budget.

`global`: one greedy descent; each move removes the chunk of channels that costs least saliency
for what it saves (Liu et al., "Group Fisher Pruning", ICML 2021, weighs by cost likewise).
`uniform`: the group with the largest fraction left gives the next chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from compressor.pruning.costs import CostModel
from compressor.pruning.graph import ChannelGroup, spread

T = TypeVar("T")
TOLERANCE = 0.02
_AIM = 0.9 * TOLERANCE  # the model may differ a little from what is counted afterwards


@dataclass(frozen=True)
class Ladder:
    """One group's possible widths, widest first, and what each costs in saliency.

    `order` are the group's units, least salient first; `counts[i]` of them are removed at rung
    i, for a summed saliency of `losses[i]`.
    """

    group: ChannelGroup
    order: tuple[int, ...]
    counts: tuple[int, ...]
    losses: tuple[float, ...]

    def removed(self, rung: int) -> int:
        """Channels removed at `rung`, over all repeats."""
        return self.counts[rung] * self.group.repeats * self.group.block

    def indices(self, rung: int) -> list[int]:
        """The root layer's channels removed at `rung`."""
        return spread(self.group, self.order[: self.counts[rung]])


def ladder(group: ChannelGroup, saliency: np.ndarray, multiple: int, floor: float) -> Ladder:
    """Widths of `group` that are multiples of `multiple` and at least `floor` of the width.

    `saliency` holds one value a channel; those that go together are summed.
    """
    size = group.units
    scores = unit_scores(group, saliency)
    order = np.argsort(scores, kind="stable")
    step = max(1, multiple // int(np.gcd(multiple, group.repeats * group.block)))
    total = np.concatenate([[0.0], np.cumsum(scores[order])])
    counts = removals(size, step, floor)
    return Ladder(group, tuple(order.tolist()), counts, tuple(float(total[c]) for c in counts))


def unit_scores(group: ChannelGroup, saliency: np.ndarray) -> np.ndarray:
    """Saliency of each of the group's units, summed over its blocks and repeats."""
    values = np.asarray(saliency, np.float64)
    summed: np.ndarray = values.reshape(group.repeats, group.units, group.block).sum((0, 2))
    return summed


def removals(size: int, step: int, floor: float) -> tuple[int, ...]:
    """How many of `size` channels may go, so that widths are multiples and above the floor."""
    least = max(1, int(np.ceil(size * floor)))
    return (0, *[size - w for w in range(size - 1, least - 1, -1) if w % step == 0])


@dataclass
class Allocation:
    """The rung each ladder stands on."""

    ladders: Sequence[Ladder]
    cost: CostModel
    rungs: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rungs = self.rungs or [0] * len(self.ladders)

    def removed(self, change: Mapping[int, int] | None = None) -> dict[str, int]:
        """Group name → channels removed, with some rungs changed."""
        rungs = [(change or {}).get(i, rung) for i, rung in enumerate(self.rungs)]
        return {m.group.name: m.removed(r) for m, r in zip(self.ladders, rungs, strict=True)}

    def price(self, change: Mapping[int, int] | None = None) -> float:
        """Cost of the module with some rungs changed."""
        return self.cost(self.removed(change))

    def indices(self) -> dict[str, list[int]]:
        """Group name → channels of its root layer to remove; groups that keep all are left out."""
        pairs = zip(self.ladders, self.rungs, strict=True)
        return {m.group.name: m.indices(rung) for m, rung in pairs if rung}


Priority = Callable[[Allocation, int, int, float], float]


def by_saliency(state: Allocation, i: int, rung: int, saved: float) -> float:
    """Saliency lost for what is saved by lowering ladder `i` to `rung`; smallest goes first."""
    losses = state.ladders[i].losses
    return (losses[rung] - losses[state.rungs[i]]) / saved


def by_width(state: Allocation, i: int, rung: int, saved: float) -> float:  # noqa: ARG001
    """Largest fraction left goes first."""
    group = state.ladders[i].group
    return state.ladders[i].removed(rung) / group.width


def allocate(
    ladders: Sequence[Ladder], cost: CostModel, budget: float, priority: Priority
) -> Allocation | None:
    """Rungs that bring `cost` within `TOLERANCE` of `budget`; None where steps are too coarse.

    Where the plain descent does not end there, as attention heads are large steps, one does that
    takes no step below the budget as long as there are others, and gives back what was too much.
    """
    found = _descent(ladders, cost, budget, priority, careful=False)
    return found or _descent(ladders, cost, budget, priority, careful=True)


def _descent(
    ladders: Sequence[Ladder], cost: CostModel, budget: float, priority: Priority, careful: bool
) -> Allocation | None:
    state, least = Allocation(ladders, cost), budget * (1 - _AIM)
    while (price := state.price()) > budget * (1 + _AIM):
        moves = _moves(state, price, priority)
        if careful:
            moves = [m for m in moves if state.price({m[1]: m[2]}) >= least] or moves
        if not moves:
            return None
        _, i, rung = min(moves)
        state.rungs[i] = rung
    if careful:
        _give_back(state, budget)
    if state.price() >= least:
        return state
    return _nudge(state, budget)


def _give_back(state: Allocation, budget: float) -> None:
    """Return the chunks with most saliency for their cost, as long as the budget is met."""
    while True:
        price, found = state.price(), []
        for i, rung in enumerate(state.rungs):
            more = state.price({i: rung - 1}) - price if rung else 0.0
            if more > 0 and price + more <= budget * (1 + _AIM):
                losses = state.ladders[i].losses
                found.append(((losses[rung] - losses[rung - 1]) / more, i))
        if not found:
            return
        _, i = max(found)
        state.rungs[i] -= 1


def in_steps(
    multiple: int, attempt: Callable[[int], T | None], what: str, budget: object
) -> tuple[T | None, list[str]]:
    """`attempt(multiple)`, or of half of it and so on down to 1 where that is too coarse; notes.

    None where nothing fits.
    """
    step = multiple
    while (found := attempt(step)) is None and step > 1:
        step = max(1, step // 2)
    if found is None or step == multiple:
        return found, []
    coarse = f"steps of {multiple} are too coarse to meet {budget} within {TOLERANCE:.0%}"
    return found, [f"{what} are multiples of {step}, not {multiple}: {coarse}"]


def _moves(state: Allocation, price: float, priority: Priority) -> list[tuple[float, int, int]]:
    found = []
    for i, one in enumerate(state.ladders):
        rung = state.rungs[i] + 1
        if rung < len(one.counts):
            saved = price - state.price({i: rung})
            if saved > 0:
                found.append((priority(state, i, rung, saved), i, rung))
    return found


def _nudge(state: Allocation, budget: float) -> Allocation | None:
    """The last step went too far: give back chunks, or swap some, at the least saliency."""
    up = [{i: r - d} for i, r in enumerate(state.rungs) for d in (1, 2) if r >= d]
    lengths = [len(one.counts) for one in state.ladders]
    down = [{i: r + d} for i, r in enumerate(state.rungs) for d in (1, 2) if r + d < lengths[i]]
    changes = [*up, *[{**a, **b} for a in up for b in down if a.keys() != b.keys()]]
    fitting = [
        (_loss(state, change), sorted(change.items()))
        for change in changes
        if abs(state.price(change) - budget) <= _AIM * budget
    ]
    if not fitting:
        return None
    for i, rung in min(fitting)[1]:
        state.rungs[i] = rung
    return state


def _loss(state: Allocation, change: Mapping[int, int]) -> float:
    return sum(
        state.ladders[i].losses[rung] - state.ladders[i].losses[state.rungs[i]]
        for i, rung in change.items()
    )
