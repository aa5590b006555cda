"""The reports of a run: pure functions of its record.

`html` is one page that needs no network and no JavaScript; `markdown` and `junit` are for merge
requests and build servers; `terminal` is what `compress run` prints last.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from compressor.record import record_text, write_atomic
from compressor.report import boards, show, view
from compressor.report.junit import OnInconclusive, junit
from compressor.report.markdown import markdown
from compressor.report.text import headline_state, terminal
from compressor.result import RunRecord, StepRecord

__all__ = ["html", "junit", "markdown", "terminal", "write_reports"]

TEMPLATES = Path(__file__).parent / "templates"


def write_reports(
    record: RunRecord, out: Path, *, on_inconclusive: OnInconclusive | None = None
) -> None:
    """Write `report.html`, `report.md` and `junit.xml` into `out`.

    Raises:
        UsageError: `out` cannot be written.
    """
    write_atomic(out / "report.html", html(record).encode("utf-8"))
    write_atomic(out / "report.md", markdown(record).encode("utf-8"))
    write_atomic(out / "junit.xml", junit(record, on_inconclusive=on_inconclusive).encode("utf-8"))


def html(record: RunRecord) -> str:
    """The run as one self-contained page; the record itself is embedded as JSON."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja").render(page(record))


def page(record: RunRecord) -> dict[str, Any]:
    """What the template is filled with."""
    word, state = headline_state(record)
    targets = [view.target_view(record, target) for target in record.targets]
    return {
        "title": show.source_name(record.reference),
        "facts": _facts(record),
        "word": word,
        "state": state,
        "exit_code": record.exit_code,
        "meaning": show.exit_meaning(record),
        "reasons": view.headline_reasons(record),
        "notices": view.notices(record),
        "targets": targets,
        "boards_head": boards.HEAD,
        "overview": _overview(targets),
        "steps": [_step(step) for step in record.steps],
        "data": record.data,
        "command": record.command,
        "seed": record.seed,
        "reproducible": record.reproducible,
        "not_reproducible_because": record.not_reproducible_because,
        "pairs": _pairs(record),
        "recipe": _recipe(record.recipe),
        "digests": _digests(record),
        "tool": " ".join(record.tool.get(key, "") for key in ("name", "version")).strip(),
        "started": record.started_utc,
        "style": (TEMPLATES / "report.css").read_text(encoding="utf-8"),
        # No "<" survives, so that no name can close the script element or open a comment.
        "json": record_text(record).replace("<", "\\u003c"),
    }


def _facts(record: RunRecord) -> str:
    facts = [record.reference.format, show.size(record.reference.size_bytes)]
    if record.reference.parameters is not None:
        facts.append(f"{show.count(record.reference.parameters)} parameters")
    score = record.reference.score
    if score is not None and score.value is not None:
        value = show.metric(score.metric, score.value)
        facts.append(f"{score.metric} {value} on {score.n:,} samples")
    facts.append(f"run took {show.seconds(record.seconds)}")
    return ", ".join(fact for fact in facts if fact)


def _overview(targets: list[dict[str, Any]]) -> dict[str, Any]:
    """Tile values by label and target, for the table over several targets."""
    labels = list(dict.fromkeys(label for t in targets for label, _, _ in t["tiles"]))
    cells = [
        {t["name"]: next((v for name, v, _ in t["tiles"] if name == label), "—") for t in targets}
        for label in labels
    ]
    return {"labels": labels, "cells": cells}


def _step(step: StepRecord) -> dict[str, str]:
    where = [part for part in (step.target, step.rung) if part]
    return {
        "name": step.step,
        "target": ", ".join(where) or "all targets",
        "options": json.dumps(step.options, sort_keys=True)[1:-1] or "defaults",
        "time": "reused" if step.status == "hit" else show.seconds(step.seconds),
        "size": show.size(step.size_bytes),
        "notes": "; ".join(step.notes),
    }


def _pairs(record: RunRecord) -> list[tuple[str, str]]:
    """Versions and host facts, one line each."""
    tool = record.tool.get("name", "edge-compressor")
    rest = [
        f"{key} {value}" for key, value in record.tool.items() if key not in ("name", "version")
    ]
    pairs = [("tool", ", ".join([f"{tool} {record.tool.get('version', '')}".strip(), *rest]))]
    versions: dict[str, str] = {}
    for target in record.targets:
        versions |= target.versions
    for step in record.steps:
        versions |= step.tools
    shown = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    pairs += [("versions", shown)] if shown else []
    facts = [(str(name), _fact(str(name), value)) for name, value in record.host.items()]
    return pairs + [pair for pair in facts if pair[1]]


def _fact(name: str, value: Any) -> str:
    """A host fact as text; empty for what is not known."""
    if value is None or value in ({}, []):
        return ""
    if name.endswith("_bytes") and isinstance(value, (int, float)):
        return show.size(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return "; ".join(f"{key}: {item}" for key, item in value.items())
    return str(value)


def _digests(record: RunRecord) -> list[tuple[str, str]]:
    found = [("original", record.reference.digest)]
    found += [
        (f"{target.name}, {candidate.name}", candidate.digest)
        for target in record.targets
        for candidate in target.candidates
    ]
    return [pair for pair in found if pair[1]]


def _recipe(recipe: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=90)
