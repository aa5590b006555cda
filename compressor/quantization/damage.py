"""Which layers lower precision costs the accuracy, and which to keep float: `compress sensitivity`.

The table is that of `compressor.quantization.sensitivity` (one group of layers changed at a time);
here it becomes a ranking, and a set of layers to keep float that is then measured as a whole,
because damages add up to first order only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from compressor.quantization.keep import exactly
from compressor.quantization.sensitivity import (
    FLOAT,
    Budget,
    Group,
    Outputs,
    Sensitivity,
    Workbench,
    group_times,
    measure,
    noise_share,
)
from compressor.result import Damage, LayerDamage
from runtimes.base import LayerPrecision

# What a whole model in one precision makes of each group: the first that the group can become.
BECOMES = {
    "int8-w4": ("int8-w4", "w4"),
    "int8": ("int8",),
    "w4": ("w4",),
    "w8": ("w8",),
    "half": ("half",),
}
_SHARE_FOR_TABLE = 0.8  # of the time; the rest is for what the ranking leads to
_TRIES = 6
_MOST_DB = 200.0

Told = Callable[[float, str], None]


def damage(
    bench: Workbench,
    precision: str,
    budget: Budget,
    *,
    target_db: float,
    lift_db: float = 0.0,
    profile: Sequence[LayerPrecision] = (),
    also: Sequence[str] = (),
    told: Told | None = None,
) -> Damage:
    """The layers of `bench`, the most damaging first, and what to keep float.

    Args:
        bench: the float model of a target.
        precision: `int8`, `int8-w4`, `w4`, `w8` or `half`: what the layers become.
        budget: measuring ends here, with what is known by then.
        target_db: SQNR of the outputs that keeping layers float is to reach.
        lift_db: at least so much above the SQNR without keeping any.
        profile: the float model's layers with times.
        also: further precisions to show beside, if time is left.
        told: is called with the share done and a sentence.
    """
    minutes = None if budget.minutes is None else budget.minutes * _SHARE_FOR_TABLE
    limited = replace(budget, minutes=minutes)
    narrow = _Narrowed(bench, precision)
    table = measure(narrow, limited, options=BECOMES[precision], told=told)
    if more := [option for option in also if option != precision]:
        beside = measure(bench, limited, options=more, told=told)
        table = replace(table, rows=(*table.rows, *beside.rows))
    times = group_times(bench.groups, profile)
    known = {g.name: _noise(table, g, precision) for g in bench.groups}
    noise = {name: value for name, value in known.items() if value is not None}
    ranked = sorted(bench.groups, key=lambda g: -noise.get(g.name, -1.0))
    whole = sum(noise.values())
    found = Damage(
        precision=precision,
        rows=[
            LayerDamage(
                g.name,
                g.op,
                list(g.layers),
                _decibels_by_option(table, g),
                {o: bench.size_bytes(g, o) for o in (FLOAT, *_shown(g, precision, also))},
                _share(noise[g.name], whole),
                times.get(g.name),
            )
            for g in ranked
            if g.name in noise
        ],
        groups=len(bench.groups),
        measured=len(noise),
        samples=bench.samples,
        seconds=0.0,
        target_db=target_db,
    )
    found = _with_kept(found, bench, noise, budget, lift_db)
    return replace(found, seconds=round(budget.seconds, 1))


class _Narrowed:
    """A workbench whose groups can only become what a whole model in one precision makes of them.

    The column that the ranking rests on is then measured first and alone.
    """

    def __init__(self, bench: Workbench, precision: str) -> None:
        self.outputs, self.size_bytes, self.fewer = bench.outputs, bench.size_bytes, bench.fewer
        self._bench = bench
        self.groups = tuple(
            replace(g, options=(FLOAT, becomes(g, precision))) for g in bench.groups
        )

    @property
    def samples(self) -> int:
        """Of the workbench itself, which may go on with fewer."""
        return self._bench.samples


def becomes(group: Group, precision: str) -> str:
    """What a whole model in `precision` makes of a group; `float` where it cannot follow."""
    return next((o for o in BECOMES[precision] if o in group.options), FLOAT)


def decibels(noise: float) -> float:
    """SQNR of a noise share, within ±200 dB (an infinite one has no place in JSON)."""
    if not math.isfinite(noise):
        return -_MOST_DB
    limit: float = 10 ** (-_MOST_DB / 10)
    return round(min(_MOST_DB, max(-_MOST_DB, -10 * math.log10(max(noise, limit)))), 2)


def _noise(table: Sensitivity, group: Group, precision: str) -> float | None:
    """A group's noise share in a precision; None where it was not measured."""
    option = becomes(group, precision)
    if option == FLOAT:
        return 0.0
    row = table.row(group.name, option)
    return None if row is None else row.damage


def _share(noise: float, whole: float) -> float:
    if not math.isfinite(whole):
        return 0.0 if math.isfinite(noise) else 1.0
    return noise / whole if whole > 0 else 0.0


def _decibels_by_option(table: Sensitivity, group: Group) -> dict[str, float]:
    rows = [row for row in table.rows if row.group == group.name and row.option != FLOAT]
    return {row.option: decibels(row.damage) for row in rows}


def _shown(group: Group, precision: str, also: Sequence[str]) -> list[str]:
    wanted = dict.fromkeys([becomes(group, precision), *also])
    return [o for o in wanted if o in group.options and o != FLOAT]


def _with_kept(
    found: Damage, bench: Workbench, noise: Mapping[str, float], budget: Budget, lift_db: float
) -> Damage:
    """`found` with the fewest most damaging layers that, kept float, reach the target.

    How many is first predicted from the sum, then measured and raised until it is reached.
    """
    if not noise or not budget.left():
        return found
    groups = {g.name: g for g in bench.groups}
    reference = bench.outputs({})

    def measured(kept: Sequence[str]) -> float:
        return decibels(noise_share(_outputs(bench, groups, found.precision, kept), reference))

    before = measured(())
    target = max(found.target_db, before + lift_db) if lift_db else found.target_db
    found = replace(found, all_db=before, target_db=round(target, 2))
    ranked = [row.layer for row in found.rows if noise[row.layer] > 0]
    most = len(ranked) - 1  # all of them would be the float model
    if before >= target or most < 1:
        return found
    count, after = min(most, _predicted(ranked, noise, target)), before
    for _ in range(_TRIES):
        after = measured(ranked[:count])
        if after >= target or count == most or not budget.left():
            break
        count = min(most, max(count + 1, math.ceil(count * 1.5)))
    kept = ranked[:count]
    more = sum(
        bench.size_bytes(groups[n], FLOAT)
        - bench.size_bytes(groups[n], becomes(groups[n], found.precision))
        for n in kept
    )
    patterns = [exactly(layer) for name in kept for layer in groups[name].layers]
    return replace(found, keep=list(dict.fromkeys(patterns)), kept_db=after, keep_bytes=more)


def _outputs(
    bench: Workbench, groups: Mapping[str, Group], precision: str, kept: Sequence[str]
) -> Outputs:
    return bench.outputs(
        {name: becomes(g, precision) for name, g in groups.items() if name not in kept}
    )


def _predicted(ranked: Sequence[str], noise: Mapping[str, float], target_db: float) -> int:
    """How many of the most damaging must go for the rest to sum up to no more than the target."""
    rest = sum(value for value in noise.values() if math.isfinite(value))
    for count, name in enumerate(ranked, 1):
        rest -= noise[name] if math.isfinite(noise[name]) else 0.0
        if rest <= 10 ** (-target_db / 10):
            return count
    return len(ranked)
