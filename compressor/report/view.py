"""What the HTML report says, as plain data: texts, cells and drawings, nothing of HTML."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from compressor.report import boards, charts, damage, show
from compressor.report.figures import latency, ledger, ordered, pareto, role_of, slower_view
from compressor.report.slower import slower
from compressor.result import Candidate, Check, RunRecord, TargetResult, Timing

LAYER_LIMIT = 1500
Cells = list[str]


def target_view(record: RunRecord, target: TargetResult) -> dict[str, Any]:
    """Everything the page shows of one target."""
    chosen = show.subject(target)
    failed = target.failure is not None
    view: dict[str, Any] = {
        "name": target.name,
        "device": target.device,
        "word": "ERROR" if failed else show.VERDICT[target.state],
        "state": "fail" if failed else target.state,
        "exit_code": target.exit_code,
        "error": target.failure.message if target.failure else "",
        "shipped": target.shipped,
        "lead": _lead(target),
        "package": target.package,
        "subject": chosen.name if chosen else "",
        "is_shipped": chosen is not None and chosen.name == target.shipped,
        "passed_over": [
            (c.name, f"{k.gate}: {show.check_text(k)}") for c, k in show.passed_over(target)
        ],
        "failures": [(c.name, c.failure.message) for c in target.candidates if c.failure],
    }
    if chosen is None:
        empty: dict[str, Any] = dict.fromkeys(("table", "ledger", "layers", "damage"))
        lists = ("tiles", "gates", "charts", "slower", "notes", "boards", "told")
        return view | empty | {key: [] for key in lists}
    return view | {
        "tiles": _tiles(record, chosen),
        "gates": [gate_view(check) for check in _worst_first(chosen.checks)],
        "table": before_after(record, target),
        "charts": [c for c in (pareto(target), latency(target)) if c],
        "ledger": ledger(target),
        "layers": layer_view(chosen),
        "damage": damage.view(target),
        "slower": [slower_view(cost) for cost in slower(target)],
        "notes": show.notes(record, chosen),
        "boards": boards.rows(target),
        "told": boards.sentences(target),
    }


def gate_view(check: Check) -> dict[str, str]:
    """One gate: its verdict, its reason, and a bar where there is a number to draw."""
    bar = ""
    if check.value is not None and check.limit is not None:
        bar = charts.gate_bar(
            check.value, check.interval, check.limit, at_most="<" in check.gate, state=check.state
        )
    word = show.VERDICT[check.state]
    return {
        "word": word,
        "state": check.state,
        "gate": check.gate,
        "text": show.check_text(check),
        "bar": bar,
    }


def before_after(record: RunRecord, target: TargetResult) -> dict[str, Any]:
    """The table: one column for the original and each variant, one row for each quantity."""
    variants = ordered(target)
    reference = record.reference
    name = show.metric_name(target, reference)
    score = reference.score
    rows: list[tuple[str, Cells]] = [
        (
            "Model file",
            [show.size(reference.size_bytes), *(show.size(c.size_bytes) for c in variants)],
        ),
        ("Against the original", ["", *(_change(c, reference.size_bytes) for c in variants)]),
        ("Compressed for transport", ["", *(show.size(c.package_bytes) for c in variants)]),
        (
            "Parameters",
            [show.count(reference.parameters), *(show.count(c.parameters) for c in variants)],
        ),
        ("MACs", [show.count(reference.macs), *(show.count(c.macs) for c in variants)]),
        (
            name or "Metric",
            [show.metric(name, score.value) if score else "", *map(_score, variants)],
        ),
        ("Drop, 90 % interval", ["", *(_drop(name, c) for c in variants)]),
        ("Agreement", ["", *(_agreement(c) for c in variants)]),
        ("SQNR", ["", *(_sqnr(c) for c in variants)]),
        *(
            (f"After {n:,} steps", ["", *(_drift(c, n) for c in variants)])
            for n in _looks(variants)
        ),
        ("Real-time factor", ["", *(show.real_time(c) for c in variants)]),
    ]
    for batch in show.batches(target):
        rows += _timing_rows(batch, [show.timing_at(c, batch) for c in variants])
    hardware = [show.hardware(c) for c in variants]
    for label in dict.fromkeys(label for told in hardware for label in told):
        rows.append((label, ["", *(told.get(label, "") for told in hardware)]))
    rows.append(("Verdict", ["", *(_state(c) for c in variants)]))
    shown = [
        (label, [_split(cell) for cell in cells])
        for label, cells in rows
        if any(cell not in ("", "—") for cell in cells)
    ]
    columns = [("original", "", "")] + [
        (c.name, role_of(c, target), _role_text(c, target)) for c in variants
    ]
    return {"columns": columns, "rows": shown, "n": _samples(record, target)}


def layer_view(chosen: Candidate) -> dict[str, Any] | None:
    """Per layer: asked and run precision, bytes, time, reason."""
    if not chosen.layers:
        return None
    ran = show.executed(chosen.layers)
    tally: dict[str, int] = {}
    for row in ran:
        tally[row.achieved or "unknown"] = tally.get(row.achieved or "unknown", 0) + 1
    differ = sum(map(show.differs, chosen.layers))
    rows = [
        {
            "cells": [row.layer, row.op, row.requested or "—", row.achieved or "—"],
            "bytes": f"{row.weight_bytes:,}" if row.weight_bytes else "—",
            "time": "—" if row.time_ns is None else f"{row.time_ns / 1000:,.1f}",
            "differs": show.differs(row),
            "reason": row.reason,
        }
        for row in chosen.layers[:LAYER_LIMIT]
    ]
    counts = ", ".join(
        f"{number} {kind}" for kind, number in sorted(tally.items(), key=lambda i: -i[1])
    )
    inside = len(chosen.layers) - len(ran)
    more = f"; without a time of their own: {inside} more" if inside else ""
    return {
        "summary": f"{len(ran)} layers: {counts}{more}",
        "differ": differ,
        "rows": rows,
        "left_out": len(chosen.layers) - len(rows),
        "kept": [
            (show.names(found, 6), reason, show.size(sum(r.weight_bytes for r in found)))
            for reason, found in show.by_reason(show.kept_float(chosen)).items()
        ],
        "name": chosen.name,
    }


def headline_reasons(record: RunRecord) -> list[tuple[str, str]]:
    """Why the run did not simply pass: (target and gate, sentence), the worst first."""
    found: list[tuple[int, str, str]] = []
    for target in record.targets:
        if target.failure is not None:
            first = target.failure.message.splitlines()[:1]
            found.append((0, target.name, first[0] if first else target.failure.kind))
            continue
        for check in show.open_checks(target):
            rank = 1 if check.state == "fail" else 2
            found.append((rank, f"{target.name}: {check.gate}", show.check_text(check)))
    return [(what, text) for _, what, text in sorted(found, key=lambda item: item[0])][:8]


def notices(record: RunRecord) -> list[tuple[str, str]]:
    """Everything that could not be judged or is in doubt: (what, sentence)."""
    found = [("warning", text) for text in record.warnings]
    for data in record.data:
        found += [(f"{data.role} data", text) for text in data.warnings]
    if not record.reproducible:
        found.append(("not reproducible", record.not_reproducible_because or "no reason recorded"))
    for target in record.targets:
        found += _target_notices(target)
    return list(dict.fromkeys(found))


def _target_notices(target: TargetResult) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if told := show.not_here(target):
        found.append((f"{target.name}: not run here", told))
    chosen = show.subject(target)
    for check in [] if chosen is None else chosen.checks:
        if check.state == "not_judged":
            found.append((f"{target.name}: not judged", f"{check.gate}: {show.check_text(check)}"))
    for c in target.candidates:
        if c.failure is not None:
            found.append((f"{target.name}: {c.name} was not built", c.failure.message))
        if c.score is not None and c.score.status not in ("measured", "emulated"):
            found.append(
                (
                    f"{target.name}: {c.name} accuracy {c.score.status.replace('_', ' ')}",
                    c.score.reason,
                )
            )
    return found + _doubts(target)


def _doubts(target: TargetResult) -> list[tuple[str, str]]:
    """Doubts about measurements; those that differ in their numbers alone are said once."""
    alike: dict[str, tuple[list[str], str]] = {}
    for c in target.candidates:
        doubts = list(c.comparison.doubts) if c.comparison else []
        doubts += [f"batch {t.batch}: {doubt}" for t in c.timings for doubt in t.doubts]
        for doubt in doubts:
            names, _ = alike.setdefault(re.sub(r"\d+(\.\d+)?", "#", doubt), ([], doubt))
            names += [] if c.name in names else [c.name]
    return [(f"{target.name}: {', '.join(names)}", doubt) for names, doubt in alike.values()]


def _lead(target: TargetResult) -> str:
    """What ships and why, as one sentence that names it once."""
    shipped, reason = target.shipped or "nothing", target.reason.rstrip(".")
    if reason.startswith(shipped):
        return reason + "."
    return f"Ships {shipped}: {reason}." if reason else f"Ships {shipped}."


def _worst_first(checks: list[Check]) -> list[Check]:
    return sorted(
        checks, key=lambda c: ("fail", "inconclusive", "not_judged", "pass").index(c.state)
    )


def _tiles(record: RunRecord, chosen: Candidate) -> list[tuple[str, str, str]]:
    before = record.reference.size_bytes
    sizes = f"{show.size(before)} to {show.size(chosen.size_bytes)}"
    tiles = [("Size", show.smaller(chosen.size_bytes, before), sizes)]
    compared, score = chosen.comparison, chosen.score
    if compared is not None and compared.drop is not None and score is not None:
        bounds = show.drop(score.metric, compared.drop, compared.interval).partition(" (")[2][:-1]
        detail = f"90 % interval {bounds}, n = {compared.n:,}" if bounds else f"n = {compared.n:,}"
        tiles.append((f"{score.metric} drop", show.drop(score.metric, compared.drop), detail))
    for timing in chosen.timings:
        if timing.speedup is not None:
            low, high = timing.speedup_interval or (timing.speedup, timing.speedup)
            detail = f"{low:.2f} to {high:.2f} over the {timing.speedup_over or 'twin'}"
            for name, ratio in timing.ratios.items():
                if name != timing.speedup_over:
                    detail += f"; {ratio[0]:.2f}x over the {name}"
            tiles.append((f"Speed, batch {timing.batch}", f"{timing.speedup:.2f}x", detail))
    return tiles


def _role_text(c: Candidate, target: TargetResult) -> str:
    if c.name == target.shipped:
        return "shipped"
    if c.role != "candidate":
        return "uncompressed, FP32" if c.role == "twin" else "uncompressed, half"
    return "failed" if c.state == "fail" else "not shipped"


def _split(cell: str) -> tuple[str, str]:
    """A cell's figure and, on a line of its own, what stands in brackets after it."""
    value, _, detail = cell.partition(" (")
    return value, detail.rstrip(")")


def _samples(record: RunRecord, target: TargetResult) -> int:
    counts = [c.comparison.n for c in target.candidates if c.comparison]
    return max(counts, default=record.reference.score.n if record.reference.score else 0)


def _change(c: Candidate, before: int) -> str:
    return "same size" if c.size_bytes == before else show.smaller(c.size_bytes, before)


def _score(c: Candidate) -> str:
    return show.metric(c.score.metric, c.score.value) if c.score else ""


def _drop(name: str, c: Candidate) -> str:
    return show.drop(name, c.comparison.drop, c.comparison.interval) if c.comparison else ""


def _agreement(c: Candidate) -> str:
    return show.share(c.comparison.agreement, 2) if c.comparison else ""


def _sqnr(c: Candidate) -> str:
    found = c.comparison.sqnr_db if c.comparison else None
    return show.decibels(found)


def _looks(variants: Sequence[Candidate]) -> list[int]:
    return sorted({row.after for c in variants for row in c.drift})


def _drift(c: Candidate, after: int) -> str:
    row = next((row for row in c.drift if row.after == after), None)
    if row is None:
        return ""
    return f"{show.decibels(row.output_sqnr_db)} (state {show.decibels(row.state_sqnr_db)})"


def _state(c: Candidate) -> str:
    return "" if c.role != "candidate" else show.VERDICT[c.state].lower()


def _timing_rows(batch: int, timings: list[Timing | None]) -> list[tuple[str, Cells]]:
    def cells(read: Any) -> Cells:
        return ["", *("" if t is None else read(t) for t in timings)]

    return [
        (f"Batch {batch}: p50", cells(_median)),
        (f"Batch {batch}: p90", cells(lambda t: show.ms(t.p90_ms))),
        (f"Batch {batch}: p99", cells(_p99)),
        (f"Batch {batch}: speed-up", cells(lambda t: show.ratio(t.speedup, t.speedup_interval))),
        (f"Batch {batch}: peak memory", cells(lambda t: show.size(t.peak_rss_bytes))),
    ]


def _median(t: Timing) -> str:
    # The bounds take the unit of the figure above them: microseconds below 0.1 ms.
    low, high = (bound * (1000 if t.p50_ms < 0.1 else 1) for bound in t.p50_interval_ms)
    source = "" if t.source == "timed" else f" {t.source}"
    return f"{show.ms(t.p50_ms)}{source} ({low:.3g}–{high:.3g})"


def _p99(t: Timing) -> str:
    upper = "" if t.p99_upper_ms is None else f" (≤ {show.ms(t.p99_upper_ms)})"
    return show.ms(t.p99_ms) + upper
