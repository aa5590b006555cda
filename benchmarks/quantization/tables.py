"""`table.md` from results.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.quantization.verdicts import best_peer, fastest_twin, ran

Row = dict[str, Any]
SIGNS = {"met": "✓", "missed": "✗", "open": "?"}
ENGINES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


def document(models: Mapping[str, Row], summary: Row) -> str:
    """The whole file: what is reached, the main table, one table a model."""
    parts = [
        "# Quantization beside the peers' defaults",
        "",
        "Written by `python benchmarks/quantization/run.py`, from results.json. Batch 1, one",
        "thread; loss is relative to the given ONNX on the same evaluation samples (in brackets",
        "its one-sided 95 % bound, and how many samples would decide it); speed-ups are ratios of",
        "interleaved timings in one run. ✓ reached, ✗ missed, ? the interval decides neither way.",
        "",
        *reached(summary),
        "",
        *main_table(models),
    ]
    for name, model in models.items():
        parts += ["", *model_tables(name, model)]
    return "\n".join(parts) + "\n"


def reached(summary: Row) -> list[str]:
    """What ours and the peers' defaults reach, in sentences, and what ours recovers."""
    peers, goals = summary["peers"], summary["goals"]
    ours = (
        f"Of {summary['pairs']} (model, engine) pairs with a reference of 300 kB or more, "
        f"{summary['pairs_met']} reach all four goals ({summary['models_met']} of "
        f"{summary['models']} models on both engines): 75 % smaller {goals['size']}, the metric "
        f"within 1 % {goals['loss']} ({summary['certified']} certified), not slower than the "
        f"fastest twin {goals['speed_twin']}, not slower than the fastest default of a peer that "
        f"keeps the metric {goals['speed_peer']}. "
        f"Median reduction {_percent(summary['median_reduction'])}."
    )
    theirs = (
        f"The peers' defaults: {peers['tried']} tried, {peers['ran']} ran, {peers['kept']} kept "
        f"the metric within 1 %, {peers['kept_not_slower']} of those were not slower than the "
        f"float model; of these {peers['smaller_70']} were ≥ 70 % smaller, "
        f"{peers['smaller_74']} ≥ 74 %, {peers['smaller_75']} ≥ 75 %. For "
        f"{peers['pairs_without']} of {peers['pairs']} pairs no default was acceptable."
    )
    lines = [ours, "", theirs]
    if summary["recovered"]:
        lines += [
            "",
            "Recovered where a default of the same or less reduction loses more than 1 %:",
        ]
        lines += [f"- {line}" for line in summary["recovered"]]
    return lines


def main_table(models: Mapping[str, Row]) -> list[str]:
    """One line a pair."""
    lines = [
        "| model | engine | size | metric | loss | over twin | best peer | over it | ships | all |",
        "|---|---|--:|--:|--:|--:|---|--:|---|:-:|",
    ]
    for name, model in models.items():
        for engine, pair in model["engines"].items():
            lines.append(_line(name, engine, pair))
    return lines


def _line(name: str, engine: str, pair: Row) -> str:
    rows, judged = pair["rows"], pair["verdict"]
    ours = next((r for r in rows if r["kind"] == "ours"), None)
    if ours is None or not ran(ours):
        why = judged["goals"]["runs"]["why"].replace("|", "/")[:80]
        return f"| {name} | {ENGINES[engine]} | | | | | | | {why} | ✗ |"
    goals, peer = judged["goals"], best_peer(rows)
    small = "" if judged["counts"] else " (small)"
    beside = "none keeps it" if peer is None else f"{peer['name']} {_size(peer)}"
    return (
        f"| {name}{small} | {ENGINES[engine]} | {_size(ours)} "
        f"{SIGNS[goals['size']['state']]} | {_value(ours)} | {_loss(ours)} "
        f"{SIGNS[goals['loss']['state']]} | {_ratio(goals['speed_twin'])} | {beside} | "
        f"{_ratio(goals['speed_peer'])} | {ours['name']} | {SIGNS[judged['all']]} |"
    )


def model_tables(name: str, model: Row) -> list[str]:
    """Every variant of one model, an engine a table, and why a goal is missed."""
    card, host = model["card"], model["host"]
    about = (
        f"{card.get('architecture', '')}; {card.get('metric', '')} {card.get('score', '')}, "
        f"{card.get('n_evaluation', '?')} samples; {model['bytes']:,} bytes. {model['date']}, "
        f"commit {model['commit']}, {host['cpu']}, effort {model['settings']['effort']}."
    )
    lines = [f"## {name}", about]
    for engine, pair in model["engines"].items():
        lines += ["", f"**{ENGINES[engine]}**", ""]
        lines += ["| | bytes | size | metric | loss | SQNR dB | agree | p50 ms | over twin |"]
        lines += ["|---|--:|--:|--:|--:|--:|--:|--:|--:|"]
        twin = fastest_twin(pair["rows"])
        lines += [_variant(row, twin) for row in pair["rows"] if row["kind"] != "candidate"]
        if pair["why"]:
            lines += ["", *(f"- {_plain(text)}" for text in pair["why"])]
    return lines


def _variant(row: Row, twin: Row | None) -> str:
    title = f"**{row['name']}**" if row["kind"] == "ours" else row["name"]
    if row["status"] != "ok":
        size = f"{row['bytes']:,}" if row.get("bytes") else ""
        return f"| {title} | {size} | {_plain(row['reason'])[:120]} | | | | | | |"
    over = row.get("ratios", {}).get(twin["name"]) if twin else None
    speed = "1" if twin and row["name"] == twin["name"] else f"{over[0]:.2f}" if over else ""
    return (
        f"| {title} | {row['bytes']:,} | {_size(row)} | {_value(row)} | "
        f"{_loss(row)} | {_number(row.get('sqnr_db'), '.1f')} | {_percent(row.get('agreement'))} | "
        f"{_number(row.get('p50_ms'), '.3g')} | {speed} |"
    )


def _plain(text: Any) -> str:
    return " ".join(str(text).split()).replace("|", "/")


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _size(row: Row) -> str:
    sign = "−" if row["reduction"] >= 0 else "+"
    return f"{sign}{100 * abs(row['reduction']):.1f} %"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _value(row: Row) -> str:
    return _number(row.get("value"), ".4g")


def _loss(row: Row) -> str:
    if row.get("relative_loss") is None:
        return ""
    upper, needed = row.get("relative_loss_upper"), row.get("needed")
    bound = f" (≤ {100 * upper:.2f})" if upper is not None else ""
    more = f", n {needed:,}" if needed else ""
    return f"{100 * row['relative_loss']:.2f} %{bound}{more}"


def _ratio(goal: Row) -> str:
    if goal.get("value") is None:
        return "" if goal["state"] == "met" else SIGNS[goal["state"]]
    low, high = goal["interval"]
    return f"{goal['value']:.2f} ({low:.2f}–{high:.2f}) {SIGNS[goal['state']]}"
