"""What a lower precision cost in time: which conversions and layers made a candidate slower.

Read from the layer tables of the candidate and of the twin it was timed against. They come from the
engine's own profile, whose sums are no latencies: they say where, the interleaved timing says how
much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from compressor.report import show
from compressor.result import Candidate, LayerRow, TargetResult, Timing

INTEGER, CONVERSIONS, FLOATS = "integer kernels", "conversions", "float layers"
KINDS = (INTEGER, CONVERSIONS, FLOATS)
MOST = 3  # layers and neighbours named in a sentence
_WORTH = 0.05  # of a candidate's time: less is not worth a word
_NS = 1e6


@dataclass(frozen=True)
class Slower:
    """A candidate that its speed gate stopped.

    Attributes:
        name: of the candidate.
        over: the twin it was compared with.
        speedup: over that twin, at the smallest batch.
        times: class of layers → (candidate's, twin's) time in ns, by the engine's profile.
        by_op: operator of a conversion → ns it takes more than in the twin, most first.
        beside: layers that those conversions stand between, the most expensive first.
        layers: (layer, ns here, ns in the twin; 0 where it is no layer of its own there).
    """

    name: str
    over: str
    speedup: float | None
    times: dict[str, tuple[int, int]]
    by_op: dict[str, int] = field(default_factory=dict)
    beside: list[str] = field(default_factory=list)
    layers: list[tuple[str, int, int]] = field(default_factory=list)

    @property
    def total(self) -> tuple[int, int]:
        """The candidate's and the twin's layers together, in ns."""
        return sum(a for a, _ in self.times.values()), sum(b for _, b in self.times.values())


def slower(target: TargetResult) -> list[Slower]:
    """Candidates of `target` that a speed gate stopped, as far as their layers were timed.

    The one that the report is about comes first.
    """
    chosen = show.subject(target)
    stopped = [c for c in target.candidates if c.role == "candidate" and failed_speed(c)]
    stopped.sort(key=lambda c: c is not chosen)
    found = (compare(target, c) for c in stopped)
    return [cost for cost in found if cost is not None]


def failed_speed(candidate: Candidate) -> bool:
    """Whether a gate on speed stopped this candidate, or is open while it is surely slower."""
    words = ("speedup", "p50", "p90", "p95", "p99")
    states = {check.state for check in candidate.checks if check.gate.startswith(words)}
    ends = [t.speedup_interval[1] for t in candidate.timings if t.speedup_interval is not None]
    return "fail" in states or ("inconclusive" in states and min(ends, default=1.0) < 1)


def compare(target: TargetResult, candidate: Candidate) -> Slower | None:
    """The candidate's layers against its twin's; None where either has no times."""
    timing = candidate.timings[0] if candidate.timings else None
    twin = _twin(target, timing)
    if twin is None or not _timed(candidate.layers) or not _timed(twin.layers):
        return None
    here, there = _by_kind(candidate.layers), _by_kind(twin.layers)
    times = {kind: (here[kind], there[kind]) for kind in KINDS}
    more = {op: ns for op, ns in _more_conversions(candidate, twin).items() if ns > 0}
    converting = [row for row in candidate.layers if converts(row) and row.op in more]
    return Slower(
        name=candidate.name,
        over=twin.name,
        speedup=timing.speedup if timing else None,
        times=times,
        by_op=dict(sorted(more.items(), key=lambda item: -item[1])),
        beside=_beside(converting),
        layers=_slower_layers(candidate.layers, twin.layers),
    )


def converts(row: LayerRow) -> bool:
    """Whether a layer only converts between precisions or memory layouts."""
    return bool(row.beside)


def sentences(cost: Slower) -> list[str]:
    """What cost the time, in one to three sentences."""
    total, before = cost.total
    found = []
    spent, had = cost.times[CONVERSIONS]
    if spent - had > _WORTH * total:
        text = f"{_ms(spent)} of {_ms(total)} goes into {' and '.join(list(cost.by_op)[:2])}"
        beside = f" around {_some(cost.beside)}" if cost.beside else ""
        found.append(f"{text}{beside} ({cost.over}: {_ms(had)})")
    layers = [x for x in cost.layers if x[1] - x[2] > 0.01 * total]
    own = [f"{name} {_ms(b)} → {_ms(a)}" for name, a, b in layers if b]
    new = [f"{name} {_ms(a)}" for name, a, b in layers if not b]
    if own:
        found.append("slower than in float: " + ", ".join(own[:MOST]))
    if new:
        found.append(f"no longer inside another layer: {', '.join(new[:MOST])}")
    if not found:
        found.append(
            f"its layers take {_ms(total)}, the {cost.over}'s {_ms(before)}: no conversion and no "
            "layer stands out"
        )
    return [f"{cost.name} is {_how_fast(cost)}: {found[0]}", *found[1:]]


def _how_fast(cost: Slower) -> str:
    if cost.speedup is None:
        return "too slow here"
    ratio = f"{show.ratio(cost.speedup)} as fast as the {cost.over}"
    return f"slower here, {ratio}" if cost.speedup < 1 else f"only {ratio}"


def _twin(target: TargetResult, timing: Timing | None) -> Candidate | None:
    name = timing.speedup_over if timing is not None else None
    twins = [c for c in target.candidates if c.role != "candidate" and c.layers]
    named = [c for c in twins if c.name == name]
    return next(iter(named or twins), None)


def _timed(rows: Sequence[LayerRow]) -> bool:
    return any(row.time_ns for row in rows)


def _by_kind(rows: Sequence[LayerRow]) -> dict[str, int]:
    found = dict.fromkeys(KINDS, 0)
    for row in rows:
        kind = INTEGER if row.achieved == "int8" else FLOATS
        found[CONVERSIONS if converts(row) else kind] += row.time_ns or 0
    return found


def _more_conversions(candidate: Candidate, twin: Candidate) -> dict[str, int]:
    found: dict[str, int] = {}
    for rows, sign in ((candidate.layers, 1), (twin.layers, -1)):
        for row in rows:
            if converts(row):
                found[row.op] = found.get(row.op, 0) + sign * (row.time_ns or 0)
    return found


def _beside(rows: Sequence[LayerRow]) -> list[str]:
    """Layers next to conversions, by the time of the conversions they stand next to."""
    spent: dict[str, int] = {}
    for row in rows:
        for name in row.beside:
            spent[name] = spent.get(name, 0) + (row.time_ns or 0)
    return sorted((name for name, ns in spent.items() if ns), key=lambda name: -spent[name])


def _slower_layers(
    here: Sequence[LayerRow], there: Sequence[LayerRow]
) -> list[tuple[str, int, int]]:
    """Layers that take longer than in the twin, the largest difference first."""
    before: dict[str, int] = {}
    for row in there:
        before[row.layer] = before.get(row.layer, 0) + (row.time_ns or 0)
    found = [
        (row.layer, row.time_ns, before.get(row.layer, 0))
        for row in here
        if row.time_ns and not converts(row) and row.time_ns > before.get(row.layer, 0)
    ]
    return sorted(found, key=lambda x: x[2] - x[1])


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST} more layers" if len(names) > MOST else ""
    return ", ".join(names[:MOST]) + more


def _ms(ns: int) -> str:
    return show.ms(ns / _NS) if ns else "0"
