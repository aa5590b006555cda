"""Numbers as people read them: one place for units, signs and rounding in every report."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from compressor.result import (
    INTEGERS,
    NOT_RUN,
    Candidate,
    Check,
    Interval,
    LayerRow,
    Reference,
    RunRecord,
    Score,
    State,
    TargetResult,
    Timing,
)

VERDICT: dict[State, str] = {
    "pass": "PASS",
    "fail": "FAIL",
    "inconclusive": "INCONCLUSIVE",
    "not_judged": "NOT JUDGED",
}
EXIT_MEANING = {
    0: "every gate passed",
    1: "a gate failed",
    2: "the recipe, a flag or the data is wrong",
    3: "a gate could not be decided",
    4: "unsupported, or a tool is missing",
    5: "a build failed",
    6: "a board failed",
    7: "an artifact is damaged or gives other numbers",
    70: "a bug",
    130: "interrupted",
    143: "interrupted",
}
# Metrics that are shares of one, so that their differences read as percentage points.
SHARES = frozenset(
    {
        "top1",
        "top5",
        "f1",
        "auc",
        "map50",
        "map50_95",
        "miou",
        "cer",
        "wer",
        "agreement",
        "accuracy",
    }
)
# Flags of /proc/cpuinfo for sums of four 8-bit products in 32 bits.
_MULTIPLIES = frozenset({"avx512_vnni", "avx_vnni", "avx10_1", "asimddp", "i8mm"})
FLOATS = ("float", "f32", "f16", "bf16", "fp", "half", "bfloat")


def source_name(reference: Reference) -> str:
    """The original's name for headings: a file without its folders, a factory as it is."""
    return reference.source.rstrip("/").rsplit("/", 1)[-1] or reference.source


def decibels(value: float | None) -> str:
    """A signal-to-noise ratio; beyond float's own precision the outputs are the same."""
    if value is None:
        return "—"
    return "identical" if value >= 200 else f"{value:.1f} dB"


def exit_meaning(record: RunRecord) -> str:
    """What the run's exit code says, in words."""
    if record.exit_code == 0 and record.state == "inconclusive":
        return "no gate failed, and what could not be decided only warns"
    shipped = [subject(target) for target in record.targets]
    unjudged = any(k.state == "not_judged" for c in shipped if c is not None for k in c.checks)
    if record.exit_code == 0 and (record.state != "pass" or unjudged):
        return "no gate failed, and not every gate could be judged"
    return EXIT_MEANING.get(record.exit_code, "")


def size(count: float | None) -> str:
    """Bytes in decimal units with three digits, as file managers show them: `2.83 MB`."""
    if count is None:
        return "—"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= scale:
            return f"{_digits(count / scale)} {unit}"
    return f"{count:.0f} B"


def count(value: int | None) -> str:
    """A count with thousands separated, millions and more in three digits."""
    if value is None:
        return "—"
    for unit, scale in ((" G", 1e9), (" M", 1e6)):
        if value >= scale:
            return f"{_digits(value / scale)}{unit}"
    return f"{value:,}"


def drift(candidate: Candidate) -> str:
    """How far a recurrent model has run from the original when last looked at; empty for others."""
    if not candidate.drift:
        return ""
    last = candidate.drift[-1]
    cosine = "" if last.output_cosine is None else f", cosine {last.output_cosine:.4f}"
    return (
        f"after {last.after:,} steps on its own state: outputs SQNR "
        f"{decibels(last.output_sqnr_db)}{cosine}, state {decibels(last.state_sqnr_db)}"
    )


def real_time(candidate: Candidate) -> str:
    """Time that a step needs over the time it lasts; empty where nobody said how long that is."""
    factor = candidate.real_time_factor
    return "" if factor is None else f"{factor:.3g}"


def ms(value: float | None) -> str:
    """Milliseconds with three digits, microseconds below 0.1 ms."""
    if value is None:
        return "—"
    return f"{_digits(value * 1000)} µs" if value < 0.1 else f"{_digits(value)} ms"


def seconds(value: float) -> str:
    """A duration: `0.4 s`, `48 s`, `3 min 5 s`, `2 h 10 min`."""
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def smaller(now: float, before: float) -> str:
    """`92.9 % smaller`, or larger."""
    if not before:
        return "—"
    share = 1 - now / before
    return f"{abs(share) * 100:.1f} % {'smaller' if share >= 0 else 'larger'}"


def ratio(value: float | None, interval: Interval | None = None) -> str:
    """A speed-up with its interval: `3.84x (3.76–3.92)`."""
    if value is None:
        return "—"
    bounds = "" if interval is None else f" ({interval[0]:.2f}–{interval[1]:.2f})"
    return f"{value:.2f}x{bounds}"


def metric(name: str, value: float | None) -> str:
    """A metric's value: percent for shares of one, four digits otherwise."""
    if value is None:
        return "—"
    return f"{value * 100:.2f} %" if name in SHARES else f"{value:.4g}"


def drop(name: str, value: float | None, interval: Interval | None = None) -> str:
    """A drop in the metric's units: `0.30 points (0.11 to 0.49)`."""
    if value is None:
        return "—"
    scale, unit, form = (100, " points", ".2f") if name in SHARES else (1, "", ".4g")
    zero = abs(value * scale) < 0.5 * 10**-2 if name in SHARES else value == 0
    shown = f"{0 if zero else value * scale:{form}}{unit}"
    if interval is None:
        return shown
    low, high = (bound * scale + 0.0 for bound in interval)
    return f"{shown} ({low:{form}} to {high:{form}})"


def share(value: float | None, digits: int = 1) -> str:
    """A ratio of 0–1 in percent."""
    return "—" if value is None else f"{value * 100:.{digits}f} %"


def is_float(precision: str) -> bool:
    """Whether a precision as engines name it computes in floating point."""
    return precision.lower().startswith(FLOATS)


_HARDWARE = {
    "luts": ("LUTs", "{:,.0f}"), "ffs": ("Registers", "{:,.0f}"), "dsps": ("DSPs", "{:,.0f}"),
    "brams": ("Block RAMs", "{:,.0f}"), "fmax_mhz": ("Clock", "{:.1f} MHz"),
    "latency_ns": ("Latency", "{:.1f} ns"), "latency_cycles": ("Latency in clocks", "{:,.0f}"),
}  # fmt: skip


def hardware(candidate: Candidate) -> dict[str, str]:
    """What tools say of the hardware, by label, each with what it is from; zeros are left out."""
    found = candidate.figures
    return {
        label: f"{form.format(found[name].value)} ({found[name].provenance})"
        for name, (label, form) in _HARDWARE.items()
        if name in found and found[name].value
    }


def subject(target: TargetResult) -> Candidate | None:
    """The candidate a report of `target` is about.

    What shipped; where the target failed, the candidate that came nearest to passing, since that
    is the one to be understood. None where nothing was built.
    """
    built = [c for c in target.candidates if c.failure is None]
    if target.state != "fail":
        named = [c for c in built if c.name == target.shipped]
        if named:
            return named[0]
    named = [c for c in built if c.path.startswith("candidates/")]
    tried = named or [c for c in built if c.role == "candidate"] or built
    failed = [sum(check.state == "fail" for check in c.checks) or 99 for c in tried]
    return tried[failed.index(min(failed))] if tried else None


def passed_over(target: TargetResult) -> list[tuple[Candidate, Check]]:
    """Candidates tried before the one that ships, each with the gate that stopped it."""
    chosen = subject(target)
    tried = [c for c in target.candidates if c.role == "candidate"]
    if chosen not in tried or target.state == "fail":
        return []
    found = []
    for c in tried[: tried.index(chosen)]:
        stopped = [check for check in c.checks if check.state in ("fail", "inconclusive")]
        found += [(c, check) for check in sorted(stopped, key=lambda k: k.state != "fail")[:1]]
    return found


def differs(row: LayerRow) -> bool:
    """Whether the engine ran a layer in another precision than was asked, where one was asked.

    A layer fused into another has none of its own; one kept float may run in half precision.
    """
    if not row.requested or row.achieved in ("fused", NOT_RUN):
        return False
    if is_float(row.requested) and is_float(row.achieved):
        return False
    return row.requested != row.achieved


def executed(rows: Sequence[LayerRow]) -> list[LayerRow]:
    """Layers with a time of their own, not those inside another; all from an engine without."""
    timed = [row for row in rows if row.time_ns is not None]
    return timed or list(rows)


def notes(record: RunRecord, candidate: Candidate) -> list[str]:
    """The candidate's notes; the one on its integers with what this CPU multiplies them by."""
    have = sorted(_MULTIPLIES & set(record.host.get("isa") or ()))
    by = f" ({', '.join(have)})" if have and candidate.format != "tensorrt" else ""
    return [note + by if note.startswith(INTEGERS) else note for note in candidate.notes]


def integers(record: RunRecord, candidate: Candidate) -> str:
    """Signs, scales and range of a quantized candidate's integers; empty for others."""
    return next((n for n in notes(record, candidate) if n.startswith(INTEGERS)), "")


def not_here(target: TargetResult) -> str:
    """That no engine ran, why, and what to do next; empty where it did."""
    if not target.without:
        return ""
    return (
        f"no engine was built ({target.without}): scores are {target.emulator}'s on the same file, "
        f"and nothing was timed. Carry {target.name}/ to the device and run there: "
        "python3 build_engine.py --result-json r.json"
    )


def twin_of(target: TargetResult) -> Candidate | None:
    """The target's FP32 twin, if it was built."""
    return next((c for c in target.candidates if c.role == "twin" and c.failure is None), None)


def kept_float(candidate: Candidate) -> list[LayerRow]:
    """Layers that compute in floating point although others of this candidate do not.

    Only those that matter: they hold weights, were asked to be integer, or carry a reason.
    """
    if all(is_float(row.precision) for row in candidate.layers):
        return []
    return [row for row in candidate.layers if is_float(row.precision) and _matters(row)]


def _matters(row: LayerRow) -> bool:
    if row.reason or row.achieved == NOT_RUN:
        return bool(row.reason)
    return bool(row.weight_bytes or (row.requested and not is_float(row.requested)))


def by_reason(rows: Iterable[LayerRow]) -> dict[str, list[LayerRow]]:
    """Rows grouped by their reason, the most bytes first."""
    groups: dict[str, list[LayerRow]] = {}
    for row in rows:
        silent = "the engine gives no reason" if row.requested else "no step asked for INT8 compute"
        groups.setdefault(row.reason or silent, []).append(row)
    weight = {reason: sum(r.weight_bytes for r in found) for reason, found in groups.items()}
    return dict(sorted(groups.items(), key=lambda item: (-weight[item[0]], item[0])))


def names(rows: Iterable[LayerRow], limit: int = 3) -> str:
    """Layer names, the first few of them."""
    found = [row.layer for row in rows]
    more = f" and {len(found) - limit} more" if len(found) > limit else ""
    return ", ".join(found[:limit]) + more


def check_text(check: Check) -> str:
    """A gate's sentence without the verdict word that every report shows beside it."""
    text = check.text.removeprefix("not judged: ")
    words = re.findall(r": (?:pass|fail|inconclusive)(?=,|;| \(|$)", text)
    if words == [f": {check.state}"]:
        text = text.replace(words[0], "")
    if check.needed is not None and not {f"{check.needed:,}", f"{check.needed}"} & set(
        re.findall(r"[\d,]*\d", text)
    ):
        text += f" ({check.needed:,} samples would decide it)"
    return text


def open_checks(target: TargetResult) -> list[Check]:
    """The gates of the target's subject that did not pass, the worst first."""
    chosen = subject(target)
    order = {"fail": 0, "inconclusive": 1, "not_judged": 2}
    found = [] if chosen is None else [c for c in chosen.checks if c.state != "pass"]
    return sorted(found, key=lambda check: order[check.state])


def metric_name(target: TargetResult, reference: Reference) -> str:
    """The run's metric as this target scored it, or an empty text."""
    scores: list[Score | None] = [reference.score, *(c.score for c in target.candidates)]
    return next((score.metric for score in scores if score is not None), "")


def timing_at(candidate: Candidate | None, batch: int | None) -> Timing | None:
    """The candidate's timing at a batch size."""
    timings = [] if candidate is None else candidate.timings
    return next((t for t in timings if t.batch == batch), None)


def batches(target: TargetResult) -> list[int]:
    """Batch sizes measured on a target, ascending."""
    return sorted({t.batch for c in target.candidates for t in c.timings})


def _digits(value: float) -> str:
    """Three significant digits, never in exponents."""
    magnitude = abs(value)
    places = (
        0 if magnitude >= 99.95 else 1 if magnitude >= 9.995 else 2 if magnitude >= 0.9995 else 3
    )
    return f"{value:.{places}f}"
