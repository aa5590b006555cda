"""What made a candidate slower than its twin, from the layer tables to every report."""

from __future__ import annotations

from dataclasses import replace

from compressor.explain import explain
from compressor.report import html, markdown, terminal
from compressor.report.slower import CONVERSIONS, FLOATS, INTEGER, sentences, slower
from compressor.result import Candidate, Check, LayerRow, TargetResult
from tests.run_records import candidate, record, target


def row(layer: str, op: str, achieved: str, time_us: int, *beside: str) -> LayerRow:
    asked = "" if beside else achieved
    return LayerRow(layer, op, asked, achieved, 0, 1000 * time_us, beside=list(beside))


TWIN = [
    row("a", "Conv", "float32", 100),
    row("b", "Conv", "float32", 50),
    row("reorder", "ReorderOutput", "float32", 10, "b"),
]
INT8 = [
    row("a", "QLinearConv", "int8", 40),
    row("q1", "QuantizeLinear", "float32", 150, "act", "a"),
    row("q2", "DequantizeLinear", "int8", 60, "act"),
    row("act", "HardSwish", "float32", 30),
    row("b", "QLinearConv", "int8", 90),
    row("reorder", "ReorderOutput", "float32", 10, "b"),
]


def slow(layers: list[LayerRow] | None = None, speedup: float = 0.55) -> TargetResult:
    gate = Check("speedup>=0.97", "fail", "0.55x as fast", speedup, None, 0.97)
    int8 = candidate("int8", 0.001, speedup, layers=layers or INT8, checks=[gate], state="fail")
    twin: Candidate = replace(candidate("twin", 0.0, None), layers=TWIN)
    return target(state="fail", candidates=[int8, twin])


def test_time_is_split_by_class_against_the_twin() -> None:
    (cost,) = slower(slow())
    assert cost.times == {
        INTEGER: (130_000, 0),
        CONVERSIONS: (220_000, 10_000),
        FLOATS: (30_000, 150_000),
    }
    assert cost.total == (380_000, 160_000)
    assert cost.layers == [("b", 90_000, 50_000), ("act", 30_000, 0)]


def test_the_sentence_names_conversions_their_neighbours_and_slower_layers() -> None:
    (cost,) = slower(slow())
    assert sentences(cost) == [
        (
            "int8 is slower here, 0.55x as fast as the twin: 0.220 ms of 0.380 ms goes into "
            "QuantizeLinear and DequantizeLinear around act, a (twin: 10.0 µs)"
        ),
        "slower than in float: b 50.0 µs → 90.0 µs",
        "no longer inside another layer: act 30.0 µs",
    ]


def test_a_gate_that_asks_for_more_does_not_call_it_slower() -> None:
    (cost,) = slower(slow(speedup=1.4))
    assert sentences(cost)[0].startswith("int8 is only 1.40x as fast as the twin: ")


def test_what_the_profile_does_not_show_is_not_made_up() -> None:
    fast = [row("a", "QLinearConv", "int8", 90), row("b", "QLinearConv", "int8", 50)]
    (cost,) = slower(slow(fast))
    assert sentences(cost) == [
        (
            "int8 is slower here, 0.55x as fast as the twin: its layers take 0.140 ms, the twin's "
            "0.160 ms: no conversion and no layer stands out"
        )
    ]


def test_nothing_is_said_without_a_failed_speed_gate_or_without_times() -> None:
    assert slower(target()) == []
    assert slower(slow([replace(r, time_ns=None) for r in INT8])) == []


def test_every_report_says_it() -> None:
    made = record(slow())
    words = "goes into QuantizeLinear and DequantizeLinear around act, a"
    flat = " ".join(" ".join(terminal(made)).split())
    assert words in flat
    assert words in " ".join(" ".join(explain(made)).split())
    assert words in html(made)
    assert "What cost int8 its time" in html(made)
    assert "what cost int8 its time" in markdown(made)
    assert "What cost" not in html(record())
