"""Gates against measurements: pass, fail, inconclusive, or not judged, each with its reason.

Pure functions of the plain values in `compressor.result`. A gate passes only when the bound of the
interval on its bad side keeps the limit, and fails only when the other bound breaks it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import NormalDist

from compressor import gates
from compressor.gates import Gate, check_gates, default_gates, parse_gate
from compressor.result import (
    Candidate,
    Check,
    Comparison,
    Figure,
    Interval,
    Reference,
    Score,
    State,
    Timing,
)
from compressor.statistics import Z_95, clopper_pearson, samples_needed

__all__ = ["Gate", "check_gates", "combine", "default_gates", "judge", "parse_gate"]

# 3/n is the exact 95 % bound of a proportion when nothing flipped: 300 samples for one point.
FLOOR = 300
_SEVERITY: Mapping[State, int] = {"not_judged": 0, "pass": 1, "inconclusive": 2, "fail": 3}


def judge(
    gate: Gate,
    candidate: Candidate,
    reference: Reference,
) -> Check:
    """One gate against one candidate.

    Args:
        gate: the limit.
        candidate: what was measured of it: score, comparison, sizes, timings, figures.
        reference: the original model: its size and score.
    """
    if gate.metric in gates.FPGA_NAMES:
        return _judge_resource(gate, candidate.figures)
    if gate.metric in ("size", "size_reduction"):
        return _judge_size(gate, candidate, reference)
    if gate.kind.batched:
        return _judge_timings(gate, candidate.timings)
    return _judge_accuracy(gate, reference, candidate.score, candidate.comparison)


def combine(checks: Sequence[Check], *, require_judged: bool = False) -> State:
    """The verdict over all gates: one failure fails, one doubt leaves it inconclusive.

    What could not be judged changes nothing, unless `require_judged`: then it leaves the verdict
    inconclusive. Nothing judged at all is `not_judged`.
    """
    states: list[State] = [check.state for check in checks]
    worst: State = max(states, key=lambda state: _SEVERITY[state], default="not_judged")
    if require_judged and "not_judged" in states and worst != "fail":
        return "inconclusive"
    return worst


def _not_judged(gate: Gate, reason: str) -> Check:
    return Check(str(gate), "not_judged", f"not judged: {reason}", limit=gate.limit)


def _keeps(gate: Gate, value: float) -> bool:
    return value <= gate.limit if gate.op == "<=" else value >= gate.limit


def _state(gate: Gate, interval: Interval) -> State:
    low, high = interval
    good, bad = (low, high) if gate.op == "<=" else (high, low)
    if _keeps(gate, bad):
        return "pass"
    return "inconclusive" if _keeps(gate, good) else "fail"


# ── sizes and FPGA resources: exact ──────────────────────────────────────────────────────────────


def _judge_size(gate: Gate, candidate: Candidate, reference: Reference) -> Check:
    size = candidate.package_bytes if gate.of == "package" else candidate.size_bytes
    if not size:
        return _not_judged(gate, f"no {gate.of} was built")
    if gate.metric == "size":
        value, shown, limit = float(size), _bytes(size), _bytes(gate.limit)
        if shown == limit:  # a few bytes decide
            shown, limit = f"{size:,} B", f"{gate.limit:,.0f} B"
    elif reference.size_bytes <= 0:
        return _not_judged(gate, "the original has no size")
    else:
        value = 1.0 - size / reference.size_bytes
        way = "smaller" if value >= 0 else "larger"
        shown = f"{_bytes(size)}, {abs(value):.2%} {way} than {_bytes(reference.size_bytes)}"
        limit = f"{gate.limit:.2%}"
    state: State = "pass" if _keeps(gate, value) else "fail"
    text = f"{gate.of} has {shown}, limit {limit}: {state}"
    return Check(str(gate), state, text, value=value, limit=gate.limit)


def _bytes(size: float) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return (
                f"{size / factor:.3g} {unit}"
                if size < 100 * factor
                else f"{size / factor:.0f} {unit}"
            )
    return f"{size:.0f} B"


def _judge_resource(gate: Gate, figures: Mapping[str, Figure]) -> Check:
    if gate.metric not in figures:
        return _not_judged(gate, f"no tool reported {gate.metric}")
    figure = figures[gate.metric]
    value = figure.value
    state: State = "pass" if _keeps(gate, value) else "fail"
    text = f"{gate.metric} {value:g} ({figure.provenance}), limit {gate.limit:g}: {state}"
    return Check(str(gate), state, text, value=value, limit=gate.limit)


# ── times and memory: at every measured batch size ───────────────────────────────────────────────


def _judge_timings(gate: Gate, timings: Sequence[Timing]) -> Check:
    if not timings:
        return _not_judged(gate, "nothing was timed here")
    wanted = [t for t in timings if gate.batch in (None, t.batch)]
    if not wanted:
        measured = ", ".join(str(t.batch) for t in timings)
        return _not_judged(gate, f"batch {gate.batch} was not measured, only {measured}")
    one = {"speedup": _speedup, "p50": _p50, "p99": _p99, "memory": _memory}[gate.metric]
    checks = [one(gate, timing) for timing in wanted]
    worst = max(checks, key=lambda c: (_SEVERITY[c.state], _badness(gate, c)))
    text = "; ".join(f"batch {t.batch}: {c.text}" for t, c in zip(wanted, checks, strict=True))
    doubts = list(dict.fromkeys(d for t in wanted for d in t.doubts))
    text += f" (in doubt: {'; '.join(doubts)})" if doubts else ""
    return replace(worst, state=combine(checks), text=text)


def _badness(gate: Gate, check: Check) -> float:
    value = -math.inf if check.value is None else check.value
    return value if gate.op == "<=" else -value


def _speedup(gate: Gate, timing: Timing) -> Check:
    value, interval, name = timing.speedup, timing.speedup_interval, timing.speedup_over
    if gate.over is not None:
        if gate.over not in timing.ratios:
            return _not_judged(gate, f"no {gate.over!r} was timed beside it")
        value, *bounds = timing.ratios[gate.over]
        interval, name = (bounds[0], bounds[1]), gate.over
    if value is None:
        return _not_judged(gate, "no twin was timed beside it")
    shown = f"{value:.2f}x" + (f" over {name}" if name else "")
    return _bounded(gate, value, interval, shown, "x", f"{gate.limit:g}x")


def _p50(gate: Gate, timing: Timing) -> Check:
    shown = f"p50 {_ms(timing.p50_ms)}"
    if timing.source != "timed":
        return _point(gate, timing.p50_ms, f"{shown} ({timing.source})", _ms(gate.limit))
    return _bounded(gate, timing.p50_ms, timing.p50_interval_ms, shown, " ms", _ms(gate.limit))


def _p99(gate: Gate, timing: Timing) -> Check:
    # A percentile has an upper bound only; its lower one is the value itself.
    upper = timing.p99_upper_ms
    shown = f"p99 {_ms(timing.p99_ms)}"
    if timing.source != "timed" or timing.p99_ms > gate.limit:
        how = "" if timing.source == "timed" else f" ({timing.source})"
        return _point(gate, timing.p99_ms, shown + how, _ms(gate.limit))
    if upper is None:
        text = f"{shown}, limit {_ms(gate.limit)}: inconclusive, {timing.n} values cannot bound it"
        text += " (299 can)"
        return Check(str(gate), "inconclusive", text, value=timing.p99_ms, limit=gate.limit)
    state: State = "pass" if upper <= gate.limit else "inconclusive"
    text = f"{shown} (≤ {_ms(upper)} at 95 %), limit {_ms(gate.limit)}: {state}"
    interval = (timing.p99_ms, upper)
    return Check(str(gate), state, text, timing.p99_ms, interval, gate.limit)


def _memory(gate: Gate, timing: Timing) -> Check:
    if timing.peak_rss_bytes is None:
        return _not_judged(gate, "memory was not measured")
    shown = f"peak memory {_bytes(timing.peak_rss_bytes)}"
    return _point(gate, float(timing.peak_rss_bytes), shown, _bytes(gate.limit))


def _ms(value: float) -> str:
    return f"{value:.3g} ms" if value < 1000 else f"{value:.0f} ms"


def _point(gate: Gate, value: float, shown: str, limit: str) -> Check:
    state: State = "pass" if _keeps(gate, value) else "fail"
    return Check(
        str(gate), state, f"{shown}, limit {limit}: {state}", value=value, limit=gate.limit
    )


def _bounded(
    gate: Gate, value: float, interval: Interval | None, shown: str, unit: str, limit: str
) -> Check:
    if interval is None:
        if gate.point_estimate:
            return _point(gate, value, f"{shown} (a point estimate, as allowed)", limit)
        text = f"{shown}, limit {limit}: inconclusive, it has no interval"
        return Check(str(gate), "inconclusive", text, value=value, limit=gate.limit)
    state = _state(gate, interval)
    text = f"{shown} ({interval[0]:.3g}–{interval[1]:.3g}{unit} at 95 %), limit {limit}: {state}"
    return Check(str(gate), state, text, value, interval, gate.limit)


# ── accuracy ─────────────────────────────────────────────────────────────────────────────────────


def _judge_accuracy(
    gate: Gate, reference: Reference, score: Score | None, comparison: Comparison | None
) -> Check:
    if score is not None and score.status == "not_judged":
        return _not_judged(gate, score.reason or "no evaluation data")
    if score is None and comparison is None:
        return _not_judged(gate, "no evaluation data")
    if _not_a_number(score):
        assert score is not None
        text = f"{score.metric} is not a number: {score.reason or 'the outputs are not finite'}"
        return Check(str(gate), "fail", f"{text}: fail", limit=gate.limit)
    if comparison is None:
        return _not_judged(gate, "it was not compared with the original")
    check = _compared(gate, reference, score, comparison)
    if score is not None and score.status == "emulated":
        # The same integers on another engine: what is lost there is lost, the rest is not proven.
        told = f"only emulated by {score.engine or 'another engine'}: {check.text}"
        if check.state == "pass":
            return replace(check, state="not_judged", text=f"not judged: {told}")
        return replace(check, text=told)
    return check


def _not_a_number(score: Score | None) -> bool:
    # What needs no labels is a comparison with the original and has no value of its own.
    if score is None or score.metric in ("agreement", "sqnr"):
        return False
    return score.status == "measured" and score.value is None


def _compared(
    gate: Gate, reference: Reference, score: Score | None, comparison: Comparison
) -> Check:
    if gate.metric == "agreement":
        return _judge_agreement(gate, comparison)
    if gate.metric == "sqnr":
        return _judge_sqnr(gate, comparison)
    return _judge_drop(gate, reference, score, comparison)


def _judge_agreement(gate: Gate, comparison: Comparison) -> Check:
    if comparison.agreement is None or comparison.n == 0:
        return _not_judged(gate, "the outputs are no classes to agree on")
    n, value = comparison.n, comparison.agreement
    same = math.floor(value * n + 1e-6)
    interval = clopper_pearson(same, n)
    state = _state(gate, interval)
    needed = None
    if state == "inconclusive":
        needed = samples_needed(1 - value, 1 - gate.limit, 1 - value)
    text = f"{value:.2%} of answers equal the original's (≥ {interval[0]:.2%} at 95 %), "
    text += f"limit {gate.limit:.2%}: {state}, n={n}{_and_needed(needed)}"
    return Check(str(gate), state, text, value, interval, gate.limit, needed)


def _judge_sqnr(gate: Gate, comparison: Comparison) -> Check:
    if comparison.sqnr_db is None:
        return _not_judged(gate, "the outputs were not compared")
    shown = f"outputs keep {comparison.sqnr_db:.1f} dB signal to noise"
    return _point(gate, comparison.sqnr_db, shown, f"{gate.limit:g} dB")


def _base(reference: Reference) -> float | None:
    if reference.score is not None and reference.score.metric == "agreement":
        return 1.0  # the original agrees with itself
    return reference.score.value if reference.score is not None else None


def _judge_drop(
    gate: Gate, reference: Reference, score: Score | None, comparison: Comparison
) -> Check:
    base = _base(reference)
    if comparison.drop is None:
        return _not_judged(gate, "; ".join(comparison.doubts) or "this metric has no drop")
    if base is None and gate.metric == "relative_drop":
        return _not_judged(gate, "the original has no score to be relative to")
    limit = gate.limit * abs(base or 0.0) if gate.metric == "relative_drop" else gate.limit
    state, why, needed = _decide(gate, limit, base, comparison)
    words = _Words(gate, score, base)
    text = f"{words.change(comparison.drop)}{words.bound(comparison.interval)}, "
    text += f"limit {words.amount(limit)}: {state}, n={comparison.n}{why}{_and_needed(needed)}"
    scale = abs(base) if gate.metric == "relative_drop" and base else 1.0
    interval = comparison.interval and (
        comparison.interval[0] / scale,
        comparison.interval[1] / scale,
    )
    return Check(str(gate), state, text, comparison.drop / scale, interval, gate.limit, needed)


def _decide(
    gate: Gate, limit: float, base: float | None, comparison: Comparison
) -> tuple[State, str, int | None]:
    """(state, why, samples needed) of a drop against its limit, both in the metric's units."""
    drop, interval, n = comparison.drop or 0.0, comparison.interval, comparison.n
    if interval is None:
        if gate.point_estimate:
            return ("pass" if drop <= limit else "fail"), ", a point estimate, as allowed", None
        return "inconclusive", ", no interval: no outcome per sample (point_estimate: allow)", None
    state = _state(replace(gate, limit=limit), interval)
    if state == "fail":
        return state, "", None
    floor = _floor(limit, base)
    if state == "pass" and n >= floor:
        return state, "", None
    needed = _needed(limit, comparison)
    if n < floor:
        why = f", fewer than {floor} samples cannot certify it"
        return "inconclusive", why, max(floor, needed or 0)
    return "inconclusive", "" if needed else ", no number of samples would decide it", needed


def _floor(limit: float, base: float | None) -> int:
    # A limit in the metric's own units (degrees, words) counts relative to the original's score.
    share = min(limit, limit / abs(base)) if base else limit
    return FLOOR if share <= 0.01 else min(FLOOR, math.ceil(3.0 / share - 1e-9))


def _needed(limit: float, comparison: Comparison) -> int | None:
    drop, interval, n = comparison.drop or 0.0, comparison.interval, comparison.n
    if comparison.method == "bonett-price" and comparison.flip_rate is not None:
        return samples_needed(drop, limit, comparison.flip_rate)
    if interval is None or limit == drop:
        return None
    error = (interval[1] - interval[0]) / (2 * Z_95)
    z = NormalDist().inv_cdf(0.95) + NormalDist().inv_cdf(0.80)
    return max(n + 1, math.ceil(n * (z * error / (limit - drop)) ** 2))


def _and_needed(needed: int | None) -> str:
    return f", about {needed:,} needed" if needed else ""


class _Words:
    """How a drop is said: in points, in per cent of the original, or in the metric's units."""

    def __init__(self, gate: Gate, score: Score | None, base: float | None) -> None:
        self.metric = score.metric if score is not None else "the metric"
        self.higher = score.higher_is_better if score is not None else True
        self.base = base
        self.relative = gate.metric == "relative_drop" and bool(base)
        self.points = gate.percent or gate.metric == "relative_drop"
        self.points = self.points or (base is not None and 0 <= base <= 1 and gate.limit < 0.2)

    def amount(self, value: float) -> str:
        if self.relative:
            return f"{100 * value / abs(self.base or 1.0):.2f} %"
        return f"{100 * value:.2f}" if self.points else f"{value:.4g}"

    def change(self, drop: float) -> str:
        worse = "dropped" if self.higher else "rose"
        verb = worse if drop >= 0 else "improved"
        unit = " points" if self.points and not self.relative else ""
        whole = f"{100 * (self.base or 0):.2f}" if abs(self.base or 0) <= 1 else f"{self.base:.4g}"
        of = f" of {whole}" if self.relative else ""
        return f"{self.metric} {verb} {self.amount(abs(drop))}{unit}{of}"

    def bound(self, interval: Interval | None) -> str:
        return f" (≤ {self.amount(interval[1])} at 95 %)" if interval is not None else ""
