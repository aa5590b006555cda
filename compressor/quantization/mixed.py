"""Which precision each group gets: the smallest and fastest assignment within a damage budget.

Sensitivity table in, assignment out, as an integer program (HAWQ-V3, Yao et al. 2021) solved by
HiGHS; where scipy is not installed, by the greedy marginal path, which comes close to it in the
zone where a model is still of use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compressor.quantization.sensitivity import BLOCKS, FLOAT, Group, Sensitivity

Assignment = dict[str, str]
_SECONDS = 10.0  # of the solver
# A combined option's damage is the sum of its parts: noise adds up to first order.
_PARTS = {"int8-w4": ("int8", "w4"), "half": ("w8",)}
# Half rounds a weight 20 times finer than 8 bits, but no bias takes its mean error back: on test
# models its noise was 1/45 to 1/4000 of theirs (tests/compressor/quantization/test_workbench.py).
_OF_PARTS = {"half": 1 / 32}


@dataclass(frozen=True)
class Cell:
    """One group in one option as the solver sees it.

    Attributes:
        damage: noise share of the outputs.
        size_bytes: stored bytes.
        time: share of the float model's time.
    """

    group: str
    option: str
    damage: float
    size_bytes: int
    time: float


@dataclass(frozen=True)
class Limits:
    """What an assignment must keep.

    Attributes:
        damage: sum over all groups (1/SQNR of the outputs, to first order).
        size_bytes: of all groups' weights together; None: any.
        time: sum of the cells' shares of time; None: any.
    """

    damage: float
    size_bytes: int | None = None
    time: float | None = None


def cells(
    table: Sensitivity,
    sizes: Mapping[tuple[str, str], int],
    times: Mapping[tuple[str, str], float],
    allowed: Mapping[str, Sequence[str]],
) -> list[Cell]:
    """The solver's input: every group in every option that is known and allowed.

    Args:
        table: measured damages; an option without a row is left out, unless its parts have one.
        sizes: (group, option) → bytes.
        times: (group, option) → share of the float model's time; 0 where the engine does not tell.
        allowed: group → options.
    """
    found = []
    for group in table.groups:
        for option in allowed[group.name]:
            damage = _damage(table, group, option)
            if damage is not None:
                key = (group.name, option)
                found.append(Cell(*key, damage, sizes[key], times.get(key, 0.0)))
    return found


def _damage(table: Sensitivity, group: Group, option: str) -> float | None:
    if (row := table.row(group.name, option)) is not None:
        plain = table.row(group.name, "w4") if option == BLOCKS else None
        # The table rounds to nearest. The build reconstructs, which spares one scale a channel more
        # noise than blocks: of what blocks gain there, about half (in decibels) is left.
        return row.damage if plain is None else float(np.sqrt(row.damage * plain.damage))
    parts = [table.row(group.name, part) for part in _PARTS.get(option, ())]
    if not parts or None in parts:
        return None
    return float(sum(part.damage for part in parts if part)) * _OF_PARTS.get(option, 1.0)


def solve(options: Sequence[Cell], limits: Limits) -> Assignment | None:
    """The assignment with the least bytes and time within `limits`; None where there is none.

    Bytes count as a share of the float bytes, time as a share of the float time, both the same.
    Where no assignment keeps the damage and the size, None; `least_damage` then tells how far off.
    """
    return _solve(options, limits, _costs(options))


def least_damage(options: Sequence[Cell], limits: Limits) -> Assignment | None:
    """The assignment with the least damage within the size and time of `limits`."""
    finite = [c.damage for c in options if np.isfinite(c.damage)]
    scale = max(finite, default=0.0) or 1.0
    costs = [
        c.damage / scale + 1e-6 * cost for c, cost in zip(options, _costs(options), strict=True)
    ]
    return _solve(options, Limits(float("inf"), limits.size_bytes, limits.time), costs)


def _costs(options: Sequence[Cell]) -> list[float]:
    total = sum(c.size_bytes for c in options if c.option == FLOAT) or 1
    return [c.size_bytes / total + c.time for c in options]


def _solve(options: Sequence[Cell], limits: Limits, costs: Sequence[float]) -> Assignment | None:
    usable = [(c, w) for c, w in zip(options, costs, strict=True) if np.isfinite(c.damage + w)]
    if not usable:
        return None
    try:
        from scipy import optimize
    except ImportError:
        return greedy(options, limits)
    return _milp(optimize, [c for c, _ in usable], limits, [w for _, w in usable])


def _milp(
    optimize: Any, options: Sequence[Cell], limits: Limits, costs: Sequence[float]
) -> Assignment | None:
    from scipy.sparse import csr_matrix

    groups = list(dict.fromkeys(c.group for c in options))
    rows = [groups.index(c.group) for c in options]
    one = csr_matrix((np.ones(len(options)), (rows, range(len(options)))))
    bounds = [optimize.LinearConstraint(one, 1, 1)]
    for values, limit in _limited(options, limits):
        scale = float(np.abs(values).max()) or 1.0  # HiGHS' tolerance is absolute
        bounds.append(optimize.LinearConstraint(values / scale, -np.inf, limit / scale))
    found = optimize.milp(
        np.asarray(costs),
        constraints=bounds,
        integrality=np.ones(len(options)),
        bounds=optimize.Bounds(0, 1),
        options={"time_limit": _SECONDS, "mip_rel_gap": 1e-4},
    )
    if found.x is None:
        return None
    return {c.group: c.option for c, x in zip(options, found.x, strict=True) if x > 0.5}


def _limited(options: Sequence[Cell], limits: Limits) -> list[tuple[Any, float]]:
    found = []
    if np.isfinite(limits.damage):
        found.append((np.array([c.damage for c in options]), limits.damage))
    if limits.size_bytes is not None:
        found.append((np.array([c.size_bytes for c in options], float), limits.size_bytes))
    if limits.time is not None:
        found.append((np.array([c.time for c in options]), limits.time))
    return found


def greedy(options: Sequence[Cell], limits: Limits) -> Assignment | None:
    """From all-float down the marginal path: each move saves the most for the damage it adds.

    Stops where the next move would break the damage limit; None where the size or time is then
    still above its limit.
    """
    costs = dict(zip(((c.group, c.option) for c in options), _costs(options), strict=True))
    cell = {(c.group, c.option): c for c in options}
    now = {c.group: c for c in options if c.option == FLOAT}
    damage = 0.0
    while True:
        moves = []
        for (name, option), c in cell.items():
            gain = costs[name, now[name].option] - costs[name, option]
            more = c.damage - now[name].damage
            if gain > 1e-12 and damage + more <= limits.damage:
                moves.append((max(more, 0.0) / gain, name, option, more))
        if not moves:
            break
        _, name, option, more = min(moves)
        now[name], damage = cell[name, option], damage + more
    size, time = sum(c.size_bytes for c in now.values()), sum(c.time for c in now.values())
    if limits.size_bytes is not None and size > limits.size_bytes:
        return None
    if limits.time is not None and time > limits.time + 1e-9:
        return None
    return {name: c.option for name, c in now.items()}


def total_damage(options: Sequence[Cell], assign: Assignment) -> float:
    """What the table predicts for an assignment."""
    return float(sum(c.damage for c in options if assign[c.group] == c.option))


def total_bytes(options: Sequence[Cell], assign: Assignment) -> int:
    """Stored bytes of all groups' weights under an assignment."""
    return sum(c.size_bytes for c in options if assign[c.group] == c.option)
