"""Why a run's result is not smaller, faster or more accurate, and what to try: ten lines.

Everything is read from the record: the byte ledger, the engine's own precision table and times,
and the candidates that were scored beside what shipped.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from compressor.report import damage, show
from compressor.report.slower import sentences, slower
from compressor.result import Candidate, LedgerRow, RunRecord, TargetResult

WIDTH = 100
LABEL = 15
# A batch of 16 that gains this much more than one sample points at fixed costs per call.
BATCH_GAIN = 1.2


def explain(record: RunRecord, target: str | None = None) -> list[str]:
    """About ten lines a target, each at most 100 columns.

    Args:
        record: the run.
        target: only this one; None: all of them.

    Raises:
        KeyError: the run has no such target.
    """
    chosen = record.targets if target is None else [record.target(target)]
    lines: list[str] = []
    for one in chosen:
        lines += [""] if lines else []
        lines += _target(record, one)
    return lines or ["the run holds no target"]


def _target(record: RunRecord, target: TargetResult) -> list[str]:
    chosen = show.subject(target)
    if target.failure is not None or chosen is None:
        message = target.failure.message if target.failure else target.reason
        return _row(target.name, message or "nothing was built")
    size = show.smaller(chosen.size_bytes, record.reference.size_bytes)
    lines = _row(target.name, f"{chosen.name}, {size}; {target.state.replace('_', ' ')}")
    if computes := show.integers(record, chosen):
        lines += _row("integers", computes)
    lines += _rows("not smaller", _not_smaller(target, chosen))
    lines += _rows("not faster", _not_faster(target, chosen))
    lines += _rows("not accurate", _not_accurate(record, target, chosen))
    return lines + _rows("try", _suggestions(record, target, chosen)[:4])


def _not_smaller(target: TargetResult, chosen: Candidate) -> list[str]:
    """The largest classes of bytes, and the weights that stay float."""
    if not chosen.ledger:
        return ["the bytes of this artifact were not counted"]
    total = chosen.size_bytes or 1
    largest = sorted(chosen.ledger, key=lambda row: -row.size_bytes)[:3]
    parts = [
        f"{row.kind} {show.size(row.size_bytes)} ({row.size_bytes / total:.0%})" for row in largest
    ]
    lines = [f"its bytes are {', '.join(parts)}"]
    kept = [row for row in show.kept_float(chosen) if row.weight_bytes]
    if kept:
        reason, rows = next(iter(show.by_reason(kept).items()))
        held = show.size(sum(row.weight_bytes for row in rows))
        lines.append(f"{held} of weights in {show.names(rows)} stay float: {reason}")
    for other, check in show.passed_over(target)[:1]:
        what = show.smaller(other.size_bytes, chosen.size_bytes)
        still = " still" if what.endswith("smaller") else ""
        lines.append(
            f"{other.name} is {what}{still}, stopped by {check.gate}: {show.check_text(check)}"
        )
    return lines


def _not_faster(target: TargetResult, chosen: Candidate) -> list[str]:
    """Where the time goes that did not shrink."""
    lines = [text for cost in slower(target)[:1] for text in sentences(cost)]
    timed = [row for row in chosen.layers if row.time_ns]
    total = sum(row.time_ns or 0 for row in timed)
    slow = sorted(show.kept_float(chosen), key=lambda row: -(row.time_ns or 0))
    slow = [row for row in slow if row.time_ns]
    if chosen.layers and all(show.is_float(row.achieved) for row in chosen.layers):
        lines.append("every layer computes in float: only the storage of its weights is smaller")
    elif slow and total:
        spent = sum(row.time_ns or 0 for row in slow)
        lines.append(f"{spent / total:.0%} of the layers' time is in {show.names(slow)}, in float")
    elif timed:
        first = max(timed, key=lambda row: row.time_ns or 0)
        part = (first.time_ns or 0) / total
        lines.append(
            f"every layer with weights runs as asked; {first.layer} takes {part:.0%} of the time"
        )
    speeds = [(t.batch, t.speedup) for t in chosen.timings if t.speedup is not None]
    if len(speeds) > 1:
        (low, one), (high, many) = min(speeds), max(speeds)
        text = f"{one:.2f}x at batch {low}, {many:.2f}x at batch {high}"
        if many > one * BATCH_GAIN:
            text += ": at small batches the fixed cost of each call weighs more"
        lines.append(text)
    elif speeds:
        lines.append(f"{speeds[0][1]:.2f}x at batch {speeds[0][0]}, the only one measured")
    return lines or [f"nothing was timed on {target.name}"]


def _not_accurate(record: RunRecord, target: TargetResult, chosen: Candidate) -> list[str]:
    """How the drop splits between steps, and which layers it comes from where that was measured."""
    return _split(record, target, chosen) + _lost_by(target)


def _lost_by(target: TargetResult) -> list[str]:
    looked = damage.diagnosed(target)
    if looked is None:
        return []
    found = looked.divergence
    lines = [damage.sentence(looked), *(damage.divergence_lines(found) if found else [])]
    return [f"{looked.name}: {lines[0]}", *lines[1:]] if lines[0] else lines[1:]


def _split(record: RunRecord, target: TargetResult, chosen: Candidate) -> list[str]:
    """How the drop splits between the shared steps and this candidate's own quantization."""
    compared, score = chosen.comparison, chosen.score
    if compared is None or compared.drop is None or score is None:
        return ["accuracy was not judged: no evaluation data, or no metric"]
    name = score.metric
    lines = [f"drop {show.drop(name, compared.drop, compared.interval)} on {compared.n:,} samples"]
    base = least_quantized(target, chosen)
    if base is not None and base.comparison is not None and base.comparison.drop is not None:
        before = base.comparison.drop
        shared = "pruning and recovery" if _ran(record, "prune") else ""
        own = show.drop(name, compared.drop - before)
        so = f", so {shared} cost about that much" if shared else ""
        lines.append(
            f"{base.name} loses {show.drop(name, before)}{so} and {chosen.name} adds {own}"
        )
    elif _ran(record, "prune"):
        lines.append("no candidate of higher precision was scored, so pruning and quantization "
                     "cannot be told apart here")  # fmt: skip
    if compared.agreement is not None and compared.agreement < 0.98 and abs(compared.drop) < 0.005:
        lines.append(f"only {show.share(compared.agreement)} of answers equal the original's, "
                     "more changes than the drop shows")  # fmt: skip
    return lines


def least_quantized(target: TargetResult, chosen: Candidate) -> Candidate | None:
    """The largest other scored candidate: the closest to float after the same shared steps.

    Twins do not count: they skip those steps. Neither does one that loses more: it is less exact
    for reasons of its own.
    """
    drop = (chosen.comparison.drop if chosen.comparison else None) or 0.0
    others = [
        c
        for c in target.candidates
        if c.role == "candidate"
        and c.name != chosen.name
        and c.comparison is not None
        and c.comparison.drop is not None
        and c.size_bytes > chosen.size_bytes
        and c.comparison.drop <= drop
    ]
    return max(others, key=lambda c: c.size_bytes, default=None)


def _suggestions(record: RunRecord, target: TargetResult, chosen: Candidate) -> list[str]:
    """Concrete lines for the recipe, the most useful first."""
    failed = {check.gate for check in chosen.checks if check.state != "pass"}
    accuracy = any(gate.startswith(("accuracy", "relative", "agreement")) for gate in failed)
    found = _for_samples(chosen)
    found += _for_accuracy(record, target, chosen) if accuracy else []
    found += _for_size(record, chosen) if not chosen.format.startswith("tensorrt") else []
    found += _for_speed(chosen)
    return list(dict.fromkeys(found)) or [
        "nothing obvious is left: every layer with weights is small and fast"
    ]


def _for_samples(chosen: Candidate) -> list[str]:
    needed = [c.needed for c in chosen.checks if c.state == "inconclusive" and c.needed]
    return (
        [f"data: {{evaluation: …}} with {max(needed):,} samples decides the open gate"]
        if needed
        else []
    )


def _tried_4_bits(record: RunRecord, chosen: Candidate) -> bool:
    """Whether the target that `chosen` belongs to was built with 4-bit weights already."""
    targets = [t for t in record.targets if chosen in t.candidates]
    return any("int4" in row.kind for t in targets for c in t.candidates for row in c.ledger)


def _for_size(record: RunRecord, chosen: Candidate) -> list[str]:
    total = chosen.size_bytes or 1
    found = []
    if _bytes(chosen.ledger, ("int8",)) > 0.4 * total and not _tried_4_bits(record, chosen):
        found.append("quantize_weights: {bits: 4} in the target's steps halves the int8 weights")
    if _bytes(chosen.ledger, ("float", "half")) > 0.25 * total:
        found.append(
            "quantize_weights: {bits: 8} in the target's steps stores float weights in 8 bits"
        )
    trainable = record.reference.format not in ("onnx", "exported")
    if not _ran(record, "prune") and trainable:
        found.append("steps: [prune_channels: {keep: {macs: 50%}}, recover: {epochs: 3}]")
    heavy = _bytes(chosen.ledger, ("graph",)) > 0.25 * total
    # OpenVINO's XML has been through its own simplification already.
    if heavy and chosen.format != "openvino" and not _ran(record, "simplify_graph"):
        found.append("simplify_graph in steps: the graph itself is a large part of the file")
    if _ran(record, "prune") and not found:
        found.append(
            "prune_channels: a smaller keep, such as {macs: 30%}, with one more epoch of recover"
        )
    return found


def _for_speed(chosen: Candidate) -> list[str]:
    kept = show.kept_float(chosen)
    asked = [row for row in kept if show.is_float(row.requested) and row.weight_bytes]
    if asked and any("recipe" in row.reason for row in asked):
        return [f"keep: {{float: […]}} without {show.names(asked)}, if accuracy allows"]
    fell_back = [row for row in kept if not show.is_float(row.requested)]
    if fell_back:
        return [
            f"`compress check` says what to change so that {show.names(fell_back)} can run in INT8"
        ]
    return []


def _for_accuracy(record: RunRecord, target: TargetResult, chosen: Candidate) -> list[str]:
    found = []
    base = least_quantized(target, chosen)
    drop = (chosen.comparison.drop if chosen.comparison else None) or 0.0
    before = (base.comparison.drop if base and base.comparison else None) or 0.0
    if _ran(record, "prune") and before >= drop / 2:
        found.append(
            "recover: {epochs: …} with more epochs: most of the drop comes before quantization"
        )
    if base is not None and drop > 0 and before < drop / 2:
        first = next((row.layer for row in chosen.layers if row.weight_bytes), "")
        if first:
            found.append(
                f"keep: {{float: [{first}]}}: first and last layers are the most sensitive"
            )
    return found


def _ran(record: RunRecord, name: str) -> bool:
    return any(step.step.startswith(name) for step in record.steps)


def _bytes(rows: Iterable[LedgerRow], words: tuple[str, ...]) -> int:
    return sum(row.size_bytes for row in rows if any(word in row.kind for word in words))


def _rows(label: str, texts: list[str]) -> list[str]:
    lines: list[str] = []
    for text in texts:
        lines += _row("" if lines else label, text)
    return lines


def _row(label: str, text: str) -> list[str]:
    flat = "".join(c if c.isprintable() else " " for c in text)
    head = f"{label} ".ljust(LABEL)
    return textwrap.wrap(
        flat, WIDTH, initial_indent=head, subsequent_indent=" " * LABEL, break_on_hyphens=False
    )
