"""A run for people at a terminal, and for a comment on a merge request."""

from __future__ import annotations

import textwrap

from compressor.report import boards, damage, show
from compressor.report.slower import sentences, slower
from compressor.result import Candidate, RunRecord, State, TargetResult

WIDTH = 100
LABEL = 13


def terminal(record: RunRecord) -> list[str]:
    """What a person sees at the end of a run: plain lines of at most 100 columns.

    Verdict words stand in capitals (PASS, FAIL, INCONCLUSIVE, NOT JUDGED, ERROR), so that the
    caller may colour them.
    """
    lines = _headline(record)
    for target in record.targets:
        lines += ["", *_target(record, target)]
    lines.append("")
    for warning in record.warnings:
        lines += _wrapped("warning", warning, indent=0)
    word, _ = headline_state(record)
    took = show.seconds(record.seconds)
    lines.append(f"{word}  exit {record.exit_code}: {show.exit_meaning(record)}  ({took})")
    return lines


def headline_state(record: RunRecord) -> tuple[str, State]:
    """The run's verdict word and its state for colours; an error is a `fail` there."""
    word = _verdict(record.state, record.exit_code)
    return word, "fail" if word == "ERROR" else record.state


def _headline(record: RunRecord) -> list[str]:
    reference, facts = record.reference, [show.size(record.reference.size_bytes)]
    if reference.parameters is not None:
        facts.append(f"{show.count(reference.parameters)} parameters")
    score = reference.score
    if score is not None and score.value is not None:
        value = show.metric(score.metric, score.value)
        facts.append(f"{score.metric} {value} on {score.n:,} samples")
    return _wrapped("original", f"{show.source_name(reference)}: {', '.join(facts)}", indent=0)


def _target(record: RunRecord, target: TargetResult) -> list[str]:
    name = f"{target.name} on {target.device}" if target.device else target.name
    word = _verdict(target.state, target.exit_code if target.failure else 0)
    lines = [_cut(f"{word}  {name}", WIDTH)]
    if target.failure is not None:
        return lines + _wrapped("why", target.failure.message)
    chosen = show.subject(target)
    if chosen is None:
        return lines + _wrapped("why", target.reason or "nothing was built")
    lines += _why(target) + _ships(target, chosen)
    if told := show.not_here(target):
        lines += _wrapped("engine", told)
    looked = damage.diagnosed(target)
    if looked is not None and (text := damage.sentence(looked)):
        lines += _wrapped("lost by", f"{looked.name}: {text}")
    for cost in slower(target)[:1]:
        lines += _wrapped("slower", "; ".join(sentences(cost)))
    lines += _numbers(record, chosen)
    if computes := show.integers(record, chosen):
        lines += _wrapped("integers", computes)
    for told in boards.sentences(target):
        lines += _wrapped("board", told)
    return lines + _kept(chosen) + _passed(chosen)


def _why(target: TargetResult) -> list[str]:
    """The gates that did not pass: the reason comes first."""
    lines: list[str] = []
    for check in show.open_checks(target):
        word = "" if check.state == "fail" else show.VERDICT[check.state] + " "
        lines += _wrapped("" if lines else "why", f"{word}{check.gate}: {show.check_text(check)}")
    return lines


def _ships(target: TargetResult, chosen: Candidate) -> list[str]:
    shipped, reason = target.shipped or "nothing", target.reason
    text = reason if reason.startswith(shipped) else f"{shipped}: {reason}" if reason else shipped
    lines = _wrapped("ships", text)
    if chosen.name != target.shipped:
        lines += _wrapped("closest", f"{chosen.name}, which did not pass:")
    for other, check in show.passed_over(target)[:2]:
        word = "" if check.state == "fail" else f" {show.VERDICT[check.state]}"
        text = f"{other.name}:{word} {check.gate}: {show.check_text(check)}"
        lines += _wrapped("not taken", text)
    return lines


def _numbers(record: RunRecord, chosen: Candidate) -> list[str]:
    before = record.reference.size_bytes
    change = f"{show.size(before)} -> {show.size(chosen.size_bytes)}"
    coded = (
        "" if chosen.package_bytes is None else f", {show.size(chosen.package_bytes)} compressed"
    )
    lines = _wrapped("size", f"{show.smaller(chosen.size_bytes, before)}: {change}{coded}")
    # The files of hardware are a description: what counts is what it takes.
    if hardware := show.hardware(chosen):
        lines = _wrapped("hardware", ", ".join(f"{k} {v}" for k, v in hardware.items()))
    lines += _accuracy(chosen)
    for timing in chosen.timings:
        speed = f"p50 {show.ms(timing.p50_ms)}, p99 {show.ms(timing.p99_ms)}"
        if timing.source != "timed":
            speed += f" ({timing.source})"
        if timing.speedup is not None:
            faster = show.ratio(timing.speedup, timing.speedup_interval)
            also = [
                f"{r[0]:.2f}x the {n}" for n, r in timing.ratios.items() if n != timing.speedup_over
            ]
            over = ", ".join([f"the {timing.speedup_over or 'twin'}", *also])
            speed = f"{faster} as fast as {over}: {speed}"
        lines += _wrapped(f"batch {timing.batch}", speed)
    factor = show.real_time(chosen)
    told = [show.drift(chosen), f"real-time factor {factor}" if factor else ""]
    if any(told):
        lines += _wrapped("state", "; ".join(filter(None, told)))
    return lines


def _accuracy(chosen: Candidate) -> list[str]:
    score, compared = chosen.score, chosen.comparison
    label = "accuracy" if score is None else score.metric
    if (
        score is not None
        and score.value is not None
        and compared is not None
        and compared.drop is not None
    ):
        moved = show.drop(score.metric, compared.drop, compared.interval)
        value = show.metric(score.metric, score.value)
        status = "" if score.status == "measured" else f", {score.status}"
        agree = (
            f", agrees on {show.share(compared.agreement)}"
            if compared.agreement is not None
            else ""
        )
        return _wrapped(label, f"drop {moved}: now {value}, n = {compared.n:,}{agree}{status}")
    if compared is not None and (compared.agreement is not None or compared.sqnr_db is not None):
        parts = []
        if compared.agreement is not None:
            parts.append(f"answers as the original on {show.share(compared.agreement)}")
        if compared.sqnr_db is not None:
            parts.append(f"SQNR {show.decibels(compared.sqnr_db)}")
        return _wrapped("accuracy", f"no labels: {', '.join(parts)}, n = {compared.n:,}")
    reason = score.reason if score is not None and score.reason else "no evaluation data"
    return _wrapped(label, f"not judged: {reason}")


def _kept(chosen: Candidate) -> list[str]:
    rows = show.kept_float(chosen)
    if not rows:
        asked = sum(row.requested == "int8" for row in chosen.layers)
        ran = sum(row.requested == "int8" and row.achieved == "int8" for row in chosen.layers)
        text = f"nothing: each of the {ran} layers asked to run in INT8 does"
        return _wrapped("kept float", text) if asked and ran == asked else []
    lines: list[str] = []
    groups = list(show.by_reason(rows).items())
    for reason, found in groups[:3]:
        label = "" if lines else "kept float"
        lines += _wrapped(label, f"{show.names(found)}: {reason}")
    left = sum(len(found) for _, found in groups[3:])
    return lines + (_wrapped("", f"and {left} more layers, see the report") if left else [])


def _passed(chosen: Candidate) -> list[str]:
    passed = [check.gate for check in chosen.checks if check.state == "pass"]
    if not passed:
        return []
    all_of = "all " if len(passed) == len(chosen.checks) else ""
    return _wrapped("gates", f"{all_of}{len(passed)} passed: {', '.join(passed)}")


def _verdict(state: State, exit_code: int) -> str:
    return show.VERDICT[state] if exit_code in (0, 1, 3) else "ERROR"


def _wrapped(label: str, text: str, indent: int = 2) -> list[str]:
    """`label` and `text` in two columns, the text wrapped at 100 columns."""
    head = " " * indent + label.ljust(LABEL - indent)
    return textwrap.wrap(
        _plain(text),
        WIDTH,
        initial_indent=head,
        subsequent_indent=" " * LABEL,
        break_on_hyphens=False,
    ) or [head.rstrip()]


def _plain(text: str) -> str:
    """Without control characters: names come from models, and terminals obey escape codes."""
    return "".join(c if c.isprintable() else " " for c in text)


def _cut(text: str, width: int) -> str:
    text = _plain(text)
    return text if len(text) <= width else text[: width - 1] + "…"
