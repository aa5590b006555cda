"""The drawings of the HTML report: what each chart of a target is made of."""

from __future__ import annotations

import re
from typing import Any

from compressor.report import charts, show
from compressor.report.slower import CONVERSIONS, FLOATS, INTEGER, MOST, Slower, sentences
from compressor.result import Candidate, LedgerRow, TargetResult, Timing

# Class of layers → the style sheet's colour.
TIMES = {INTEGER: "int8", CONVERSIONS: "scale", FLOATS: "float"}


def pareto(target: TargetResult) -> dict[str, Any] | None:
    """Latency against metric drop, at the smallest batch measured."""
    found = [
        (c, c.timings[0], c.comparison)
        for c in ordered(target)
        if c.timings and c.comparison is not None and c.comparison.drop is not None
    ]
    if len(found) < 2:
        return None
    name = next((c.score.metric for c, _, _ in found if c.score), "metric")
    scale, unit = (100.0, " points") if name in show.SHARES else (1.0, "")
    largest = max(c.size_bytes for c, _, _ in found) or 1
    points = []
    for c, timing, compared in found:
        drop = (compared.drop or 0.0) * scale
        low, high = compared.interval or (compared.drop or 0.0, compared.drop or 0.0)
        bounds = (low * scale, high * scale)
        points.append(
            charts.Point(
                c.name,
                role_of(c, target),
                timing.p50_ms,
                drop,
                timing.p50_interval_ms,
                bounds,
                c.size_bytes / largest,
            )
        )
    limit = _limit(target, "accuracy_drop")
    batch = found[0][1].batch
    told = f"Median latency against {name} drop of {', '.join(p.name for p in points)}"
    drawing = charts.scatter(
        points,
        None if limit is None else limit * scale,
        f"ms at batch {batch} (log scale)",
        f"{name} drop{',' + unit if unit else ''}",
        told,
    )
    caption = "Lower and further left is better. Area is file size, crosses are intervals."
    return {"title": "Speed, accuracy and size", "svg": drawing, "caption": caption}


def latency(target: TargetResult) -> dict[str, Any] | None:
    """How long single calls took, at the largest batch a budget names or else the smallest."""
    chosen, twin = show.subject(target), show.twin_of(target)
    budgets = _budgets(chosen)
    batch = budgets[0][2] if budgets else 0
    timing = show.timing_at(chosen, batch) or (
        chosen.timings[0] if chosen and chosen.timings else None
    )
    if chosen is None or timing is None or not timing.histogram_ms:
        return None
    series = [_series(chosen.name, "shipped", timing)]
    beside = show.timing_at(twin, timing.batch)
    if twin is not None and twin.name != chosen.name and beside is not None and beside.histogram_ms:
        series.insert(0, _series(twin.name, "twin", beside))
    lines = [(text, limit) for text, limit, at in budgets if at in (None, timing.batch)]
    told = f"Latency distribution at batch {timing.batch} of {', '.join(s.name for s in series)}"
    parts = [f"{s.name} ({'grey' if s.role == 'twin' else 'blue'})" for s in series]
    slowest = show.ms(max(timing.histogram_ms))
    caption = f"{' and '.join(parts)}, {timing.n:,} calls in {timing.rounds} processes, "
    caption += f"the slowest {slowest}."
    drawing = charts.distribution(series, lines, told)
    return {
        "title": f"Latency at batch {timing.batch}",
        "svg": drawing,
        "caption": caption,
        "legend": [],
    }


def _series(name: str, role: str, timing: Timing) -> charts.Series:
    return charts.Series(name, role, sorted(timing.histogram_ms), timing.p50_ms, timing.p99_ms)


def ledger(target: TargetResult) -> dict[str, Any] | None:
    """Bytes by tensor class, before and after at one scale, and after once more, enlarged."""
    chosen, twin = show.subject(target), show.twin_of(target)
    if chosen is None or not chosen.ledger:
        return None
    shown = [twin] if twin is not None and twin.name != chosen.name and twin.ledger else []
    shown.append(chosen)
    full = float(max(c.size_bytes for c in shown)) or 1.0
    rows = [(c.name, show.size(c.size_bytes), charts.bar(_parts(c.ledger), full)) for c in shown]
    times = full / (chosen.size_bytes or 1)
    if times > 1.5:
        close = charts.bar(_parts(chosen.ledger), float(chosen.size_bytes))
        rows.append((f"{chosen.name}, {times:.1f} times as wide", "", close))
    legend = [
        (
            _colour(row.kind),
            row.kind,
            f"{row.size_bytes:,}",
            show.share(row.size_bytes / (chosen.size_bytes or 1)),
        )
        for row in sorted(chosen.ledger, key=lambda row: -row.size_bytes)
    ]
    total = f"{sum(row.size_bytes for row in chosen.ledger):,}"
    return {"name": chosen.name, "rows": rows, "legend": legend, "total": total}


def slower_view(cost: Slower) -> dict[str, Any]:
    """Time by class of layers, in the twin and in a candidate that its speed gate stopped."""
    full = float(max(cost.total)) or 1.0
    rows = []
    for at, name in ((1, cost.over), (0, cost.name)):
        parts = [
            charts.Part(f"{kind}: {show.ms(ns[at] / 1e6)}", TIMES[kind], float(ns[at]))
            for kind, ns in cost.times.items()
            if ns[at]
        ]
        rows.append((name, show.ms(cost.total[at] / 1e6), charts.bar(parts, full)))
    legend = [
        (TIMES[kind], kind, show.ms(here / 1e6), f"{cost.over} {show.ms(there / 1e6)}")
        for kind, (here, there) in cost.times.items()
    ]
    layers = [
        (name, show.ms(here / 1e6), show.ms(there / 1e6) if there else "inside another")
        for name, here, there in cost.layers[:MOST]
    ]
    return {
        "name": cost.name,
        "over": cost.over,
        "sentences": sentences(cost),
        "rows": rows,
        "legend": legend,
        "layers": layers,
    }


def ordered(target: TargetResult) -> list[Candidate]:
    """The report's subject, then twins, then the other candidates; only what was built."""
    chosen = show.subject(target)

    def rank(c: Candidate) -> int:
        return 0 if c is chosen else {"twin": 1, "half_twin": 2, "candidate": 3}[c.role]

    return sorted((c for c in target.candidates if c.failure is None), key=rank)


def role_of(c: Candidate, target: TargetResult) -> str:
    """The CSS class of a candidate: shipped (the one the report is about), twin or other."""
    chosen = show.subject(target)
    if chosen is not None and c.name == chosen.name:
        return "shipped"
    return "other" if c.role == "candidate" else "twin"


def _limit(target: TargetResult, gate: str) -> float | None:
    chosen = show.subject(target)
    found = [c.limit for c in (chosen.checks if chosen else []) if c.gate.startswith(gate)]
    return found[0] if found else None


def _budgets(chosen: Candidate | None) -> list[tuple[str, float, int | None]]:
    """Latency budgets among the gates: (text, ms, batch or None for every batch)."""
    found: list[tuple[str, float, int | None]] = []
    for check in [] if chosen is None else chosen.checks:
        match = re.match(r"(p50|p90|p95|p99)(?:@(\d+))?\s*<", check.gate)
        if match and check.limit is not None:
            found.append((check.gate, check.limit, int(match[2]) if match[2] else None))
    return found


def _parts(rows: list[LedgerRow]) -> list[charts.Part]:
    return [
        charts.Part(f"{row.kind}: {row.size_bytes:,} bytes", _colour(row.kind), row.size_bytes)
        for row in rows
    ]


def _colour(kind: str) -> str:
    """The style sheet's class for a tensor class."""
    known = {
        "int4": "int4",
        "int8": "int8",
        "half": "half",
        "bfloat16": "half",
        "float16": "half",
        "float": "float",
        "scale": "scale",
        "zero": "scale",
        "bias": "bias",
        "graph": "graph",
    }
    return next((colour for word, colour in known.items() if word in kind.lower()), "rest")
