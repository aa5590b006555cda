"""A run as the comment on a merge request: the short table first, the rest folded."""

from __future__ import annotations

from collections.abc import Sequence

from compressor.report import boards, damage, show, view
from compressor.report.slower import Slower, sentences, slower
from compressor.report.text import headline_state
from compressor.result import Candidate, LayerRow, RunRecord, TargetResult

# A CI job finds its earlier comment by this line and replaces it.
MARKER = "<!-- edge-compressor report -->"
LIMIT = 56_000  # characters; GitHub refuses comments above 65,536
ROWS = 40
TEXT = 300


def markdown(record: RunRecord) -> str:
    """The run in GitHub-flavoured Markdown, under 60 kB whatever the model."""
    word, _ = headline_state(record)
    head = [
        MARKER,
        f"### {word}: {_cell(show.source_name(record.reference))}",
        "",
        f"Exit {record.exit_code}: {show.exit_meaning(record)}. {_original(record)}",
        "",
        *_summary(record),
        *_open(record),
    ]
    parts = [part for target in record.targets for part in _details(record, target)]
    parts += [_steps(record), _repeat(record)]
    return _within("\n".join(head) + "\n", parts)


def _within(head: str, parts: Sequence[str]) -> str:
    """`head` and as many whole `parts` as fit, with a note where some do not."""
    text, left = head[:LIMIT], 0
    for part in parts:
        if len((text + part).encode("utf-8")) <= LIMIT:
            text += "\n" + part
        else:
            left += 1
    note = f"\n{left} more sections did not fit: see report.html.\n" if left else ""
    return text + note


def _original(record: RunRecord) -> str:
    score, size = record.reference.score, show.size(record.reference.size_bytes)
    if score is None or score.value is None:
        return f"Original {size}."
    value = show.metric(score.metric, score.value)
    return f"Original {size}, {_cell(score.metric)} {value} on {score.n:,} samples."


def _summary(record: RunRecord) -> list[str]:
    """One row a target."""
    batches = sorted({batch for target in record.targets for batch in show.batches(target)})[:4]
    speeds = [f"Speed-up, batch {batch}" for batch in batches]
    rows = [_row(record, target, batches) for target in record.targets[:ROWS]]
    return _table(["Verdict", "Target", "Ships", "Size", "Accuracy drop", *speeds], rows)


def _row(record: RunRecord, target: TargetResult, batches: Sequence[int]) -> list[str]:
    chosen = show.subject(target)
    word = "ERROR" if target.failure else show.VERDICT[target.state]
    cells = [f"**{word}**", _cell(target.name), _cell(target.shipped or "nothing")]
    if chosen is None:
        return cells + ["—"] * (2 + len(batches))
    cells.append(f"{show.size(chosen.size_bytes)}, {_smaller(record, chosen.size_bytes)}")
    compared, score = chosen.comparison, chosen.score
    drop = "—"
    if compared is not None and score is not None:
        drop = show.drop(score.metric, compared.drop, compared.interval)
    timings = [show.timing_at(chosen, batch) for batch in batches]
    speeds = ["—" if t is None else show.ratio(t.speedup, t.speedup_interval) for t in timings]
    return [*cells, drop, *speeds]


def _smaller(record: RunRecord, size: int) -> str:
    return show.smaller(size, record.reference.size_bytes)


def _open(record: RunRecord) -> list[str]:
    """Gates that did not pass, errors and warnings, in the open."""
    lines: list[str] = []
    for target in record.targets:
        if target.failure is not None:
            lines.append(f"- **ERROR** {_cell(target.name)}: {_cell(target.failure.message)}")
        for check in [] if target.failure else show.open_checks(target):
            where = f"**{show.VERDICT[check.state]}** {_cell(target.name)}, {_code(check.gate)}"
            lines.append(f"- {where}: {_cell(show.check_text(check))}")
    shown = {line.partition(": ")[2] for line in lines}
    for what, text in view.notices(record):
        if _cell(text) not in shown and "not judged" not in what:
            lines.append(f"- {_cell(what)}: {_cell(text)}")
    more = [f"- and {len(lines) - ROWS} more, see report.html"] if len(lines) > ROWS else []
    return ["", *lines[:ROWS], *more] if lines else []


def _details(record: RunRecord, target: TargetResult) -> list[str]:
    chosen = show.subject(target)
    if chosen is None:
        return []
    table = view.before_after(record, target)
    head = ["", *(f"{name} ({text})" if text else name for name, _, text in table["columns"])]
    rows = [[_cell(label), *map(_figure, cells)] for label, cells in table["rows"]]
    gates = [
        [show.VERDICT[c.state], _code(c.gate), _cell(show.check_text(c))]
        for c in chosen.checks[:ROWS]
    ]
    lines = _table([_cell(h) for h in head], rows)
    if computes := show.integers(record, chosen):
        lines += ["", _cell(computes)]
    parts = [_folded(f"{target.name}: before and after", lines)]
    if gates:
        parts.append(
            _folded(f"{target.name}: gates", _table(["Verdict", "Gate", "Measured"], gates))
        )
    if told := boards.rows(target):
        lines = [*(f"- {_cell(text)}" for text in boards.sentences(target)), ""]
        lines += _table(boards.HEAD, [[_cell(cell) for cell in row] for row in told[:ROWS]])
        parts.append(_folded(f"{target.name}: on boards", lines))
    looked = damage.diagnosed(target)
    parts += [_lost(target.name, looked)] if looked is not None else []
    parts += [_slower(target.name, cost) for cost in slower(target)]
    kept = [
        [_cell(show.names(found, 5)), _cell(reason), _weights(found)]
        for reason, found in show.by_reason(show.kept_float(chosen)).items()
    ]
    if kept:
        lines = _table(["Layers", "Why", "Weights"], kept[:ROWS])
        parts.append(_folded(f"{target.name}: kept float", lines))
    return parts


def _lost(target: str, looked: Candidate) -> str:
    """The damage of single layers, what to keep float, and where the outputs left the original."""
    lines = []
    if looked.damage is not None and looked.damage.rows:
        head, rows = damage.table(looked.damage)
        cells = [[_cell(cell) for cell in row] for row in rows[:ROWS]]
        lines += [f"{_cell(damage.sentence(looked))}.", "", *_table(head, cells)]
        if looked.damage.keep:
            lines += ["", _code(damage.recipe_line(looked.damage))]
    if looked.divergence is not None:
        told = [*damage.divergence_lines(looked.divergence), damage.compared(looked.divergence)]
        lines += ["", *(f"- {_cell(line)}" for line in told)]
    return _folded(f"{target}: where {looked.name} lost its accuracy", lines)


def _slower(target: str, cost: Slower) -> str:
    """What made a candidate slower than its twin."""
    rows = [[kind, *(show.ms(ns / 1e6) for ns in pair)] for kind, pair in cost.times.items()]
    rows += [
        [_cell(name), show.ms(here / 1e6), show.ms(there / 1e6) if there else "inside another"]
        for name, here, there in cost.layers[:3]
    ]
    told = [f"{_cell(text)}." for text in sentences(cost)]
    table = _table(["Layers", _cell(cost.name), _cell(cost.over)], rows)
    return _folded(f"{target}: what cost {cost.name} its time", [*told, "", *table])


def _weights(rows: Sequence[LayerRow]) -> str:
    held = sum(row.weight_bytes for row in rows)
    return show.size(held) if held else "—"


def _figure(cell: tuple[str, str]) -> str:
    value, detail = cell
    return _cell(f"{value} ({detail})" if detail else value or "—")


def _steps(record: RunRecord) -> str:
    rows = [
        [
            _code(step.step),
            _cell(", ".join(part for part in (step.target, step.rung) if part) or "all"),
            "reused" if step.status == "hit" else show.seconds(step.seconds),
            show.size(step.size_bytes),
        ]
        for step in record.steps
    ]
    note = [f"\n{len(rows) - ROWS} more in run.json."] if len(rows) > ROWS else []
    return _folded("What was done", [*_table(["Step", "For", "Time", "Size"], rows[:ROWS]), *note])


def _repeat(record: RunRecord) -> str:
    # A fence longer than any run of backticks inside cannot be closed from inside.
    fence = "`" * 8
    command = " ".join(record.command.split())[:1000].replace(fence, "")
    lines = [
        fence,
        command,
        fence,
        "",
        f"{_cell(record.tool.get('version', ''))}, seed {record.seed}",
    ]
    return _folded("How to repeat it", lines)


def _folded(title: str, lines: Sequence[str]) -> str:
    body = "\n".join(lines)
    return f"<details><summary>{_cell(title)}</summary>\n\n{body}\n\n</details>\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def _cell(text: str) -> str:
    """`text` as inert Markdown on one line, cut where it is very long."""
    flat = " ".join(text.split())
    flat = flat if len(flat) <= TEXT else flat[: TEXT - 1] + "…"
    flat = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for mark in "\\`*_[]|~#@":
        flat = flat.replace(mark, f"&#{ord(mark)};" if mark in "@#" else "\\" + mark)
    return flat


def _code(text: str) -> str:
    flat = " ".join(text.split())[:TEXT].replace("`", "'").replace("|", "\\|")
    return f"`{flat}`"
