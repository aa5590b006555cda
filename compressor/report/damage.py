"""Where the accuracy went: the damage of single layers and the first tensor that left the original.

One place for the words and rows that the terminal, `explain`, the reports and
`compress sensitivity` share.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from typing import Any

from compressor.report import charts, show
from compressor.result import Candidate, Damage, Divergence, LayerDamage, TargetResult, TensorGap

WORDS = {
    "int8": "INT8",
    "int8-w4": "INT8 with 4-bit weights",
    "w8": "8-bit weights",
    "w4": "4-bit weights",
    "half": "half precision",
}
_COLOURS = {"int8": "int8", "w8": "int8", "w4": "int4", "int8-w4": "int4", "half": "half"}
_PLAIN = re.compile(r"[A-Za-z_][\w./-]*")  # needs no quotes in YAML's flow form
CHART_ROWS = 12
_NAMED = 3
_AMISS_DB = 3.0  # an engine whose own kernels lose so much more is told
_EQUAL_DB = 100.0  # what is left is the rounding of float32
_HALF_DB = 35.0  # above it, the device's half precision explains the difference


def diagnosed(target: TargetResult) -> Candidate | None:
    """The candidate of a target whose lost accuracy was looked into."""
    found = [c for c in target.candidates if c.damage is not None or c.divergence is not None]
    return found[0] if found else None


def recipe_line(damage: Damage) -> str:
    """What to paste into a recipe so that the layers stay float."""
    return f"keep: {{float: [{', '.join(map(_yaml, damage.keep))}]}}"


def flags(damage: Damage) -> str:
    """The same as flags of `compress run`."""
    return " ".join(f"--keep-float {shlex.quote(name)}" for name in damage.keep)


def sentence(candidate: Candidate) -> str:
    """The most damaging layers and the way to keep them float, in one line."""
    damage = candidate.damage
    if damage is None or not damage.rows:
        return ""
    worst = [row for row in damage.rows if row.share > 0][:_NAMED]
    if not worst:
        return "no single layer damages the outputs"
    shown = [f"{row.layer} ({row.share:.0%}, alone {_alone(row, damage)})" for row in worst]
    text = f"most of the damage of {WORDS[damage.precision]}: {', '.join(shown)}"
    if not damage.keep:
        return text
    if len(damage.keep) <= _NAMED:
        return f"{text}; to keep them float: {flags(damage)} ({effect(damage)})"
    return f"{text}; the report names {len(damage.keep)} to keep float ({effect(damage)})"


def effect(damage: Damage) -> str:
    """What keeping the layers float brings and costs."""
    before, after = show.decibels(damage.all_db), show.decibels(damage.kept_db)
    return f"SQNR {before} → {after}, {show.size(damage.keep_bytes)} more"


def divergence_lines(found: Divergence) -> list[str]:
    """First diverging tensor and largest fall, with how much was compared."""
    lines = []
    if found.first is not None:
        lines.append(f"first below {found.threshold_db:g} dB: {_gap(found.first)}")
    elif found.compared:
        lines.append(f"no tensor falls below {found.threshold_db:g} dB")
    if found.largest is not None and found.largest != found.first:
        lines.append(f"largest fall: {_gap(found.largest)}")
    if found.outputs_db is not None:
        lines.append(f"outputs as the engine runs them: {show.decibels(found.outputs_db)}")
        gap = (found.tapped_db or found.outputs_db) - found.outputs_db
        if gap > _AMISS_DB and found.outputs_db < _HALF_DB:
            lines.append(
                f"the engine's own kernels lose more than the graph: it gives "
                f"{show.decibels(found.tapped_db)} where inner tensors are outputs as well"
            )
    return lines


def compared(found: Divergence) -> str:
    """How much of the model was compared."""
    return (
        f"{found.compared} of {found.tensors} tensors exist in both and were compared, "
        f"on {found.samples} samples"
    )


def table(damage: Damage) -> tuple[list[str], list[list[str]]]:
    """Head and cells of the ranking, for text and for Markdown."""
    options = [o for o in WORDS if any(o in row.sqnr_db for row in damage.rows)]
    stored = [o for o in WORDS if any(o in row.size_bytes for row in damage.rows)]
    stored = [o for o in stored if o != "int8-w4"] if "w4" in stored else stored
    timed = any(row.time_ns is not None for row in damage.rows)
    head = ["layer", "op", "float bytes", *(f"{o} bytes" for o in stored)]
    head += [*(f"{o} alone" for o in options), "of the damage", *(["time"] if timed else [])]
    rows = []
    for row in damage.rows:
        cells = [row.layer, row.op, f"{row.size_bytes.get('float', 0):,}"]
        cells += [f"{row.size_bytes[o]:,}" if o in row.size_bytes else "—" for o in stored]
        cells += [show.decibels(row.sqnr_db.get(o)) for o in options]
        cells.append(show.share(row.share))
        cells += [show.ms(row.time_ns / 1e6) if row.time_ns is not None else "—"] if timed else []
        rows.append(cells)
    return head, rows


def view(target: TargetResult) -> dict[str, Any] | None:
    """What the HTML report shows of a target's lost accuracy."""
    candidate = diagnosed(target)
    if candidate is None:
        return None
    damage, found = candidate.damage, candidate.divergence
    return {
        "name": candidate.name,
        "chart": _chart(damage) if damage and damage.rows else None,
        "lines": [line[0].upper() + line[1:] for line in divergence_lines(found)] if found else [],
        "compared": compared(found) if found else "",
    }


def _chart(damage: Damage) -> dict[str, Any]:
    rows = damage.rows[:CHART_ROWS]
    full = max((row.share for row in rows), default=0.0) or 1.0
    colour = _COLOURS[damage.precision]
    drawn = [
        (
            row.layer,
            row.op,
            charts.bar([charts.Part(f"{row.layer}: {row.share:.1%}", colour, row.share)], full),
            show.share(row.share),
            _alone(row, damage),
            show.size(row.size_bytes.get("float")),
        )
        for row in rows
    ]
    return {
        "precision": WORDS[damage.precision],
        "all": show.decibels(damage.all_db),
        "rows": drawn,
        "left": len(damage.rows) - len(rows),
        "samples": damage.samples,
        "unmeasured": damage.groups - damage.measured,
        "keep": recipe_line(damage) if damage.keep else "",
        "flags": flags(damage) if damage.keep else "",
        "effect": effect(damage) if damage.keep else "",
        "kept": len(damage.keep),
    }


def _alone(row: LayerDamage, damage: Damage) -> str:
    """SQNR of the outputs with only this layer changed, and to what where it cannot follow."""
    if damage.precision in row.sqnr_db:
        return show.decibels(row.sqnr_db[damage.precision])
    other = "w4" if damage.precision == "int8-w4" else ""
    return f"{show.decibels(row.sqnr_db[other])} in {WORDS[other]}" if other in row.sqnr_db else "—"


def _gap(gap: TensorGap) -> str:
    name = gap.layer if gap.layer == gap.tensor else f"{gap.layer}, tensor {gap.tensor}"
    before = "equal" if gap.before_db > _EQUAL_DB else show.decibels(gap.before_db)
    return f"{name} ({gap.op}), {before} before it and {show.decibels(gap.sqnr_db)} after"


def _yaml(name: str) -> str:
    """`name` as a scalar of YAML's flow form."""
    return name if _PLAIN.fullmatch(name) and not _special(name) else json.dumps(name)


def _special(name: str) -> bool:
    return name.lower() in {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 2) -> list[str]:
    """Cells as plain text in columns: the first `left` to the left, figures to the right."""
    lines = [head, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
