"""What the rows of a (model, engine) pair reach, why not, and the counts over all pairs.

Pure functions of the rows in results.json. A speed goal is met where the lower bound of the paired
ratio is at least `SPEED_TOLERANCE`, missed where the upper bound is below 1, open in between.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = dict[str, Any]
Pair = Mapping[str, Any]

SIZE_GOAL = 0.75
MEDIAN_GOAL = 0.82
LOSS_GOAL = 0.01
SPEED_TOLERANCE = 0.97
LEAST_BYTES = 300_000  # references below do not count for the goal
SHOWN_LAYERS = 6


def ran(row: Row) -> bool:
    """Whether a variant gave the right outputs and could be timed."""
    return row["status"] == "ok" and row.get("p50_ms") is not None


def keeps(row: Row) -> bool:
    """Whether a variant keeps the metric within 1 % relative (a point estimate)."""
    loss = row.get("relative_loss")
    return ran(row) and loss is not None and loss <= LOSS_GOAL


def fastest_twin(rows: Sequence[Row]) -> Row | None:
    """The fastest twin that keeps the metric; the FP32 one always counts."""
    twins = [r for r in rows if ran(r) and (r["kind"] == "twin" or _half(r))]
    return min(twins, key=lambda r: r["p50_ms"], default=None)


def _half(row: Row) -> bool:
    return row["kind"] == "half_twin" and keeps(row)


def best_peer(rows: Sequence[Row]) -> Row | None:
    """The fastest peer that keeps the metric."""
    good = [r for r in rows if r["kind"] == "peer" and keeps(r)]
    return min(good, key=lambda r: r["p50_ms"], default=None)


def verdict(rows: Sequence[Row], reference_bytes: int) -> Row:
    """Every goal of one pair: `met`, `missed` or `open`, with its value; `all` where none is not.

    The goals: `size` and `loss` of what ships, `speed_twin` over the fastest twin that keeps the
    metric (`twins` has both), `speed_peer` over the fastest peer that keeps it.
    """
    ours = next((r for r in rows if r["kind"] == "ours"), None)
    made: Row = {"counts": reference_bytes >= LEAST_BYTES}
    if ours is None or not ran(ours):
        why = ours.get("reason", "") if ours else "nothing shipped"
        return made | {"all": "missed", "goals": {"runs": {"state": "missed", "why": why}}}
    goals = {"size": _size(ours), "loss": _loss(ours)}
    goals["speed_twin"] = _speed(ours, fastest_twin(rows))
    tried = any(r["kind"] == "peer" for r in rows)
    goals["speed_peer"] = _speed(ours, best_peer(rows)) if tried else _no_peers()
    states = [goal["state"] for goal in goals.values()]
    whole = "missed" if "missed" in states else "open" if "open" in states else "met"
    twins = [r["name"] for r in rows if r["kind"] in ("twin", "half_twin")]
    return made | {
        "all": whole,
        "goals": goals,
        "twins": {name: ours["ratios"][name] for name in twins if name in ours["ratios"]},
    }


def _no_peers() -> Row:
    return {"state": "open", "value": None, "over": "", "why": "no peer was tried"}


def _size(ours: Row) -> Row:
    state = "met" if ours["reduction"] >= SIZE_GOAL else "missed"
    return {"state": state, "value": ours["reduction"]}


def _loss(ours: Row) -> Row:
    loss = ours.get("relative_loss")
    if loss is None:
        return {"state": "open", "value": None, "why": "; ".join(ours.get("doubts", []))}
    made = {"state": "met" if loss <= LOSS_GOAL else "missed", "value": loss}
    made["certified"] = ours.get("certified") == "pass"
    made["needed"] = ours.get("needed")
    return made


def _speed(ours: Row, other: Row | None) -> Row:
    if other is None:
        return {"state": "met", "value": None, "over": "", "why": "nothing to be compared with"}
    ratio = ours["ratios"].get(other["name"])
    if ratio is None:
        return {"state": "open", "value": None, "over": other["name"], "why": "no paired ratio"}
    value, low, high = ratio
    state = "met" if low >= SPEED_TOLERANCE else "missed" if high < 1 else "open"
    return {"state": state, "value": value, "interval": [low, high], "over": other["name"]}


# ── why ──────────────────────────────────────────────────────────────────────────────────────────


def explain(goals: Mapping[str, Row], rows: Sequence[Row], run: Row) -> list[str]:
    """Per missed or open goal, what cost it, layer by layer, from the run's record."""
    found: list[str] = []
    if all(goal["state"] == "met" for goal in goals.values()):
        return found
    if run.get("reason"):
        found.append(f"run: {run['state']}, {run['reason']}")
    for row in rows:
        if row["kind"] == "candidate":
            why = row.get("reason") or "; ".join(row.get("stopped_by", [])) or "not needed"
            found.append(f"rung {row['name']}: {_shortly(row)}{why}")
    if _short(goals, "size"):
        found += _bytes_of(run)
    if _short(goals, "speed_twin") or _short(goals, "speed_peer"):
        found += _times_of(run)
    if _short(goals, "loss"):
        found += _floats_of(run)
    return found


def _short(goals: Mapping[str, Row], name: str) -> bool:
    return goals.get(name, {}).get("state", "met") != "met"


def _shortly(row: Row) -> str:
    if row.get("reduction") is None:
        return ""
    loss = row.get("relative_loss")
    lost = "" if loss is None else f", loss {100 * loss:.2f} %"
    return f"−{100 * row['reduction']:.1f} %{lost}; "


def _bytes_of(run: Row) -> list[str]:
    ledger = run.get("ledger", [])
    if not ledger:
        return []
    shown = ", ".join(f"{row['kind']} {row['size_bytes']:,}" for row in ledger[:SHOWN_LAYERS])
    found = [f"bytes of {run['shown']}: {shown}"]
    layers = [r for r in run["layers"] if r["achieved"] not in ("int8", "int4", "fused")]
    layers = [r for r in layers if r["weight_bytes"] > 0]
    for row in sorted(layers, key=lambda r: -r["weight_bytes"])[:SHOWN_LAYERS]:
        why = f": {row['reason']}" if row["reason"] else ""
        found.append(
            f"{row['layer']} ({row['op']}) holds {row['weight_bytes']:,} bytes and runs in "
            f"{row['achieved']}{why}"
        )
    return found


def _times_of(run: Row) -> list[str]:
    timed = [r for r in run.get("layers", []) if r.get("time_ns")]
    if not timed:
        return []
    before = {r["layer"]: r["time_ns"] for r in run.get("twin_layers", []) if r.get("time_ns")}
    now, then = sum(r["time_ns"] for r in timed), sum(before.values())
    found = [f"layers of {run['shown']} take {now / 1e6:.3g} ms, the twin's {then / 1e6:.3g} ms"]
    cost = sorted(timed, key=lambda r: before.get(r["layer"], 0) - r["time_ns"])
    for row in cost[:SHOWN_LAYERS]:
        was = before.get(row["layer"])
        if was is not None and was >= row["time_ns"]:
            break
        beside = "not in the twin" if was is None else f"{was / 1e3:.1f} µs in the twin"
        found.append(
            f"{row['layer']} ({row['op']}, {row['achieved']}) takes {row['time_ns'] / 1e3:.1f} µs, "
            f"{beside}"
        )
    return found


def _floats_of(run: Row) -> list[str]:
    kinds: dict[str, int] = {}
    for row in run.get("layers", []):
        kinds[row["achieved"]] = kinds.get(row["achieved"], 0) + 1
    shown = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return [f"layers of {run['shown']}: {shown}"] if shown else []


# ── counts ───────────────────────────────────────────────────────────────────────────────────────


def peer_counts(pairs: Iterable[Pair]) -> dict[str, int]:
    """How many of the peers' results ran, kept the metric, were not slower, and how small."""
    made = dict.fromkeys(
        ("tried", "ran", "kept", "kept_not_slower", "smaller_70", "smaller_74", "smaller_75"), 0
    )
    made |= {"pairs": 0, "pairs_without": 0}
    for pair in pairs:
        rows = pair["rows"]
        twin = fastest_twin(rows)
        peers = [r for r in rows if r["kind"] == "peer"]
        good = [r for r in peers if keeps(r) and _not_slower(r, twin)]
        made["tried"] += len(peers)
        made["ran"] += sum(ran(r) for r in peers)
        made["kept"] += sum(keeps(r) for r in peers)
        made["kept_not_slower"] += len(good)
        for percent in (70, 74, 75):
            made[f"smaller_{percent}"] += sum(r["reduction"] >= percent / 100 for r in good)
        made["pairs"] += 1
        made["pairs_without"] += not good
    return made


def _not_slower(row: Row, twin: Row | None) -> bool:
    ratio = row["ratios"].get(twin["name"]) if twin else None
    return ratio is not None and ratio[0] >= SPEED_TOLERANCE


def summary(models: Mapping[str, Row]) -> Row:
    """Goals over all models: pairs and models that reach everything, medians, what is recovered."""
    pairs = [(name, engine, p) for name, m in models.items() for engine, p in m["engines"].items()]
    counted = [(n, e, p) for n, e, p in pairs if p["verdict"]["counts"]]
    ours = [r for _, _, p in counted for r in p["rows"] if r["kind"] == "ours"]
    reductions = [r.get("reduction", 0.0) for r in ours]  # nothing shipped: nothing saved
    whole: dict[str, list[bool]] = {}
    for name, _, pair in counted:
        whole.setdefault(name, []).append(pair["verdict"]["all"] == "met")
    return {
        "pairs": len(counted),
        "pairs_met": sum(p["verdict"]["all"] == "met" for _, _, p in counted),
        "models": len(whole),
        "models_met": sum(all(states) for states in whole.values()),
        "median_reduction": round(statistics.median(reductions), 4) if reductions else None,
        "smallest_reduction": round(min(reductions), 4) if reductions else None,
        "goals": {
            goal: _met(counted, goal) for goal in ("size", "loss", "speed_twin", "speed_peer")
        },
        "certified": sum(_goal(p, "loss").get("certified", False) for _, _, p in counted),
        "recovered": recovered(pairs),
        "peers": peer_counts(p for _, _, p in pairs),
    }


def _goal(pair: Pair, name: str) -> Row:
    found = pair["verdict"]["goals"].get(name, {})
    return dict(found)


def _met(counted: Sequence[tuple[str, str, Pair]], goal: str) -> int:
    return sum(_goal(pair, goal).get("state") == "met" for _, _, pair in counted)


def recovered(pairs: Iterable[tuple[str, str, Pair]]) -> list[str]:
    """Pairs where INT8 by every peer loses more than 1 % and ours, compressed as far, does not."""
    found = []
    for name, engine, pair in pairs:
        peers = [r for r in pair["rows"] if r["kind"] == "peer" and ran(r)]
        ours = [r for r in pair["rows"] if r["kind"] == "ours" and keeps(r)]
        lost = [r for r in peers if r.get("relative_loss") is not None and not keeps(r)]
        most = max((r["reduction"] for r in lost), default=None)
        if ours and most is not None and ours[0]["reduction"] >= most:
            names = ", ".join(f"{r['name']} {100 * r['relative_loss']:.1f} %" for r in lost)
            found.append(
                f"{name} on {engine}: ours loses {100 * ours[0]['relative_loss']:.2f} %; {names}"
            )
    return found
