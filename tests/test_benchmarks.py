"""The benchmarks' pure functions: what a pair reaches, why not, counts and tables."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.children import run_child
from benchmarks.quantization import tables, verdicts
from benchmarks.quantization.measuring import cosine
from benchmarks.scale import run as large
from benchmarks.tensorrt import tables as compiled

Row = dict[str, Any]


def row(name: str, kind: str, **given: Any) -> Row:
    made = {
        "name": name,
        "kind": kind,
        "status": "ok",
        "bytes": 250_000,
        "reduction": 0.0,
        "relative_loss": 0.0,
        "certified": "pass",
        "p50_ms": 1.0,
        "ratios": {},
    }
    return made | given


def pair(**ours: Any) -> list[Row]:
    """Ours 80 % smaller and twice as fast; a half twin that loses the metric; two peers."""
    ratios = {"twin": [2.0, 1.9, 2.1], "half-twin": [0.8, 0.7, 0.9], "good": [1.0, 0.98, 1.02]}
    return [
        row("int8", "ours", **({"reduction": 0.8, "p50_ms": 0.5, "ratios": ratios} | ours)),
        row("twin", "twin"),
        row("half-twin", "half_twin", p50_ms=0.4, relative_loss=0.3),
        row("good", "peer", p50_ms=0.5, reduction=0.745, ratios={"twin": [2.0, 1.9, 2.1]}),
        row("fast but wrong", "peer", p50_ms=0.1, relative_loss=0.5, reduction=0.74),
        row("broken", "peer", status="failed", reason="it crashed", p50_ms=None),
    ]


def states(rows: list[Row]) -> dict[str, str]:
    return {n: g["state"] for n, g in verdicts.verdict(rows, 1_000_000)["goals"].items()}


def test_a_pair_that_reaches_everything() -> None:
    made = verdicts.verdict(pair(), 1_000_000)
    assert made["all"] == "met"
    assert made["counts"]
    assert made["goals"]["speed_twin"]["over"] == "twin", "a half twin that loses is no reference"
    assert made["goals"]["speed_peer"]["over"] == "good", "nor is a peer that loses"
    assert set(made["twins"]) == {"twin", "half-twin"}, "both are reported"


@pytest.mark.parametrize(
    ("ours", "goal", "state"),
    [
        ({"reduction": 0.7499}, "size", "missed"),
        ({"relative_loss": 0.0101}, "loss", "missed"),
        ({"relative_loss": None}, "loss", "open"),
        ({"ratios": {"twin": [0.9, 0.8, 0.99]}}, "speed_twin", "missed"),
        ({"ratios": {"twin": [1.0, 0.96, 1.04]}}, "speed_twin", "open"),
        ({"ratios": {"twin": [1.0, 0.97, 1.03]}}, "speed_twin", "met"),
        ({"ratios": {"good": [0.9, 0.89, 0.91]}}, "speed_peer", "missed"),
    ],
)
def test_one_goal_short(ours: Row, goal: str, state: str) -> None:
    if "ratios" in ours:
        ours = {"ratios": pair()[0]["ratios"] | ours["ratios"]}
    rows = pair(**ours)
    assert states(rows) == dict.fromkeys(states(rows), "met") | {goal: state}
    assert verdicts.verdict(rows, 1_000_000)["all"] == state


def test_without_peers_the_speed_over_them_is_open() -> None:
    assert states(pair()[:3])["speed_peer"] == "open"
    beaten = [r for r in pair() if r["name"] != "good"]
    assert states(beaten)["speed_peer"] == "met", "no peer keeps the metric"


def test_what_did_not_ship_and_what_is_small() -> None:
    failed = pair(status="failed", reason="SIGSEGV")
    made = verdicts.verdict(failed, 299_999)
    assert (made["all"], made["counts"]) == ("missed", False)
    assert made["goals"]["runs"]["why"] == "SIGSEGV"


def test_the_peers_are_counted_as_in_the_issue() -> None:
    found = verdicts.peer_counts([{"rows": pair()}])
    assert (found["tried"], found["ran"], found["kept"], found["kept_not_slower"]) == (3, 2, 1, 1)
    assert (found["smaller_70"], found["smaller_74"], found["smaller_75"]) == (1, 1, 0)
    assert (found["pairs"], found["pairs_without"]) == (1, 0)


def models() -> dict[str, Row]:
    def one(size: int, **ours: Any) -> Row:
        rows = pair(**ours)
        judged = verdicts.verdict(rows, size)
        why = verdicts.explain(judged["goals"], rows, run())
        both = {e: {"rows": rows, "verdict": judged, "why": why} for e in tables.ENGINES}
        about = {"card": {}, "date": "", "commit": "", "host": {"cpu": ""}}
        return {"bytes": size, "engines": both, "settings": {"effort": "quick"}, **about}

    return {"big": one(1_000_000), "lean": one(1_000_000, reduction=0.7), "tiny": one(1000)}


def run() -> Row:
    layer = {"op": "Conv", "achieved": "float32", "reason": "keep.float", "time_ns": 9000}
    return {
        "state": "pass",
        "reason": "int8 passes",
        "shown": "int8",
        "ledger": [{"kind": "weights float", "size_bytes": 300_000}],
        "layers": [layer | {"layer": "head", "weight_bytes": 200_000}],
        "twin_layers": [layer | {"layer": "head", "time_ns": 4000}],
    }


def test_the_summary_leaves_small_models_out() -> None:
    found = verdicts.summary(models())
    assert (found["pairs"], found["pairs_met"]) == (4, 2)
    assert (found["models"], found["models_met"]) == (2, 1)
    assert found["median_reduction"] == 0.75
    assert found["goals"]["size"] == 2
    assert [text.split(" on ")[0] for text in found["recovered"]] == ["big"] * 2 + ["tiny"] * 2


def test_a_run_that_failed_counts_as_nothing_saved() -> None:
    rows = [{"name": "ours", "kind": "ours", "status": "failed", "reason": "it crashed"}]
    judged = verdicts.verdict(rows, 1_000_000)
    found = verdicts.summary({"a": {"engines": {"openvino": {"rows": rows, "verdict": judged}}}})
    assert (found["pairs"], found["pairs_met"], found["median_reduction"]) == (1, 0, 0.0)


def test_a_miss_names_its_layers() -> None:
    rows = pair(reduction=0.7, ratios={"twin": [0.5, 0.4, 0.6]})
    goals = verdicts.verdict(rows, 1_000_000)["goals"]
    told = "\n".join(verdicts.explain(goals, rows, run()))
    assert "head (Conv) holds 200,000 bytes and runs in float32: keep.float" in told
    assert "head (Conv, float32) takes 9.0 µs, 4.0 µs in the twin" in told
    assert not verdicts.explain(verdicts.verdict(pair(), 1_000_000)["goals"], pair(), run())


def test_the_tables_show_every_row() -> None:
    all_models = models()
    text = tables.document(all_models, verdicts.summary(all_models))
    assert "| big | ONNX Runtime | −80.0 % ✓ |" in text
    assert "| lean | OpenVINO | −70.0 % ✗ |" in text
    assert "| tiny (small) |" in text
    assert "| broken | 250,000 | it crashed |" in text
    widths = {line.count("|") for line in tables.main_table(all_models)}
    assert widths == {11}


def test_the_cosine_is_the_worst_outputs() -> None:
    base = {"a": np.array([1.0, 0.0]), "b": np.array([1.0, 1.0]), "n": np.array([1])}
    assert cosine(base, base) == 1.0
    assert cosine(base, base | {"b": np.array([1.0, -1.0])}) == 0.0


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("raise ValueError('too bad')", "ValueError: too bad"),
        ("import os; os.kill(os.getpid(), 11)", "died of SIGSEGV"),
        ("import time; time.sleep(60)", "stopped after 1 s"),
        ("x = bytearray(2 << 30)", "MemoryError"),
    ],
)
def test_a_child_ends_for_a_reason(code: str, why: str) -> None:
    limit = 1.0 if "stopped" in why else 60.0
    ended = run_child([sys.executable, "-c", code], limit_s=limit, memory_bytes=1 << 30)
    assert ended.why == why


def test_a_childs_memory_is_seen() -> None:
    code = "import time; x = bytearray(b'1') * (100 << 20); time.sleep(0.5); print('done')"
    ended = run_child([sys.executable, "-c", code], limit_s=30.0)
    assert (ended.code, ended.why, ended.out.strip()) == (0, "", "done")
    assert 100 << 20 < ended.anonymous_bytes < ended.process_bytes <= ended.tree_bytes < 400 << 20


def test_a_large_run_is_held_to_its_goals() -> None:
    made = {"shipped": "int8-w4", "reduction": 0.86, "runs": True, "speedup": [2.0, 1.9, 2.1]}
    kept = {
        "seconds": 1700.0,
        "tree_bytes": 900_000_000,
        "process_bytes": 900_000_000,
        "targets": {"openvino": made},
    }
    found = large.goals(100_000_000, kept)
    assert found.pop("allowed_bytes") == 900_000_000
    assert all(found.values())
    slow = {
        "seconds": 1801.0,
        "tree_bytes": 900_000_001,
        "process_bytes": 900_000_001,
        "targets": {"a": made, "b": {**made}},
    }
    slow["targets"]["b"] |= {"reduction": 0.74, "runs": False, "speedup": None}
    assert not any(v for k, v in large.goals(100_000_000, slow).items() if k != "allowed_bytes")


def test_the_table_of_large_runs_shows_what_failed() -> None:
    run = {
        "seconds": 60.0,
        "tree_bytes": 10**9,
        "process_bytes": 10**9,
        "targets": {},
        "failed": "it ran out of memory",
    }
    memory = {"tree_bytes": 10**9, "anonymous_bytes": 10**8, "seconds": 30.0}
    row = {"bytes": 10**8, "run": run, "calibration": {"entropy": memory | {"failed": "killed"}}}
    text = large.table({"resnet50": row})
    assert "| resnet50 | 100,000,000 | 1.0 | 1000 | 1000 | 900 | | it ran out of memory |" in text
    assert "| resnet50 | entropy | 1000 | 100 | 0.5 | killed |" in text


def test_the_readme_says_what_the_quantization_benchmark_found() -> None:
    from benchmarks.quantization import readme

    text = (readme.ROOT / "README.md").read_text()
    assert "\n".join(readme.lines()) in text


def test_the_table_of_compiled_models_is_what_its_results_say():
    folder = Path(compiled.__file__).parent
    results = json.loads((folder / "results.json").read_text())
    assert compiled.table(results) == (folder / "table.md").read_text()
    worst = copy.deepcopy(results)
    worst["models"]["resnet"]["ours"]["int8"] = 16  # fewer than NNCF's default
    assert "on 10 no peer's default has more" in compiled.table(worst)
