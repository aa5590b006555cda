"""Judging: on which side of a limit an interval lies, and the sentence that says so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.result import Candidate, Check, Comparison, Figure, Reference, Score, Timing
from compressor.statistics import bonett_price
from compressor.verdict import combine, judge, parse_gate

REFERENCE = Reference(
    "net.onnx", "onnx", "d", 3_000_000, "net.onnx", score=Score("top1", 0.925, n=10_000)
)
TIMING = Timing(
    1, 1, "timed", 5.0, (4.9, 5.1), 5.5, 6.0, 6.4, 4.8, 1000, 5, 3.3, (3.2, 3.4), "twin",
    peak_rss_bytes=100_000_000,
)  # fmt: skip


def flips(b: int, c: int, n: int, **more: Any) -> Candidate:
    drop, low, high = bonett_price(b, c, n)
    rate = (b + c) / n
    comparison = Comparison(
        drop=drop, interval=(low, high), method="bonett-price", flip_rate=rate,
        agreement=1 - rate, n=n, sqnr_db=25.0,
    )  # fmt: skip
    score = Score("top1", 0.925 - drop, n=n)
    return Candidate("int8", "candidate", score=score, comparison=comparison, **more)


def verdict(gate: Any, candidate: Candidate, reference: Reference = REFERENCE) -> Check:
    return judge(parse_gate(gate), candidate, reference)


@pytest.mark.parametrize(
    ("b", "c", "n", "state"),
    [
        (100, 69, 10_000, "pass"),  # bound below the limit
        (250, 100, 10_000, "fail"),  # whole interval above
        (30, 20, 2_000, "inconclusive"),  # the limit lies inside
        (0, 0, 300, "pass"),
        (0, 0, 299, "inconclusive"),  # 3/n: not enough to certify one point
        (0, 60, 299, "inconclusive"),  # however good it looks
        (100, 0, 299, "fail"),  # a few samples can tell that it is bad
    ],
)
def test_accuracy_drop(b: int, c: int, n: int, state: str) -> None:
    assert verdict("accuracy_drop<=1%", flips(b, c, n)).state == state


def test_says_it_in_one_sentence() -> None:
    check = verdict("accuracy_drop<=1%", flips(100, 69, 10_000))
    assert check.text == "top1 dropped 0.31 points (≤ 0.52 at 95 %), limit 1.00: pass, n=10000"
    assert (check.value, check.limit) == (0.0031, 0.01)


def test_says_how_many_samples_would_decide() -> None:
    check = verdict("accuracy_drop<=1%", flips(30, 20, 2_000))
    assert check.needed == 6_177
    assert "inconclusive, n=2000, about 6,177 needed" in check.text
    few = verdict("accuracy_drop<=1%", flips(0, 0, 100))
    assert few.needed == 300
    assert "fewer than 300 samples cannot certify it" in few.text


def test_looser_limits_need_fewer_samples() -> None:
    assert verdict("accuracy_drop<=5%", flips(0, 0, 100)).state == "pass"


def test_relative_drop_is_a_share_of_the_original() -> None:
    check = verdict("relative_drop<=1%", flips(100, 69, 10_000))
    assert check.value == pytest.approx(0.0031 / 0.925)
    assert "top1 dropped 0.34 % of 92.50 (≤ 0.57 % at 95 %), limit 1.00 %: pass" in check.text
    worse = flips(100, 21, 10_000)  # upper bound 0.96 points: under one point, over one per cent
    assert verdict("accuracy_drop<=1%", worse).state == "pass"
    assert verdict("relative_drop<=1%", worse).state == "inconclusive"


def test_agreement_of_the_original_with_itself_is_whole() -> None:
    reference = replace(REFERENCE, score=Score("agreement", None, n=1000))
    candidate = replace(flips(2, 0, 1000), score=Score("agreement", None, n=1000))
    check = verdict("relative_drop<=1%", candidate, reference)
    assert check.state == "pass"
    assert check.text.startswith("agreement dropped 0.20 % of 100.00")


def test_error_metrics_rise() -> None:
    comparison = Comparison(drop=0.02, interval=(0.01, 0.03), method="paired-bootstrap", n=500)
    candidate = Candidate(
        "int8", "candidate", score=Score("mae", 2.02, False, 500), comparison=comparison
    )
    reference = replace(REFERENCE, score=Score("mae", 2.0, False, 500))
    check = verdict("accuracy_drop<=0.05", candidate, reference)
    assert check.text == "mae rose 0.02 (≤ 0.03 at 95 %), limit 0.05: pass, n=500"
    assert verdict("relative_drop<=0.1%", candidate, reference).state == "fail"
    close = verdict("relative_drop<=1.2%", candidate, reference)
    assert close.state == "inconclusive"
    assert close.needed is not None
    assert close.needed > 500


def test_a_perfect_original_leaves_no_room() -> None:
    reference = replace(REFERENCE, score=Score("wer", 0.0, False, 400))
    comparison = Comparison(drop=0.1, interval=(0.05, 0.2), method="paired-bootstrap", n=400)
    candidate = Candidate(
        "int8", "candidate", score=Score("wer", 0.1, False, 400), comparison=comparison
    )
    assert verdict("relative_drop<=1%", candidate, reference).state == "fail"


def test_no_interval_is_inconclusive_unless_allowed() -> None:
    comparison = Comparison(drop=0.001, n=0)
    candidate = Candidate("int8", "candidate", score=Score("bleu", 0.5), comparison=comparison)
    check = verdict("accuracy_drop<=1%", candidate)
    assert check.state == "inconclusive"
    assert "no outcome per sample" in check.text
    allowed = verdict({"gate": "accuracy_drop<=1%", "point_estimate": "allow"}, candidate)
    assert allowed.state == "pass"
    assert "a point estimate, as allowed" in allowed.text


@pytest.mark.parametrize("gate", ["accuracy_drop<=1%", "relative_drop<=1%", "agreement>=99%"])
def test_not_judged_has_a_reason(gate: str) -> None:
    assert verdict(gate, Candidate("w8", "candidate")).text == "not judged: no evaluation data"
    silent = Score("top1", None, status="not_judged", reason="no board")
    check = verdict(gate, Candidate("w8", "candidate", score=silent))
    assert (check.state, check.text) == ("not_judged", "not judged: no board")


def test_emulated_scores_are_said_and_not_judged() -> None:
    candidate = flips(0, 0, 1000)
    assert candidate.score is not None
    emulated = replace(candidate.score, status="emulated", engine="onnxruntime")
    check = verdict("accuracy_drop<=1%", replace(candidate, score=emulated))
    assert check.state == "not_judged"
    assert "only emulated by onnxruntime: top1 dropped 0.00 points" in check.text


def test_an_emulated_loss_is_a_loss() -> None:
    candidate = flips(60, 0, 1000)
    assert candidate.score is not None
    emulated = replace(candidate.score, status="emulated", engine="onnxruntime")
    check = verdict("accuracy_drop<=1%", replace(candidate, score=emulated))
    assert check.state == verdict("accuracy_drop<=1%", candidate).state == "fail"
    assert "only emulated by onnxruntime" in check.text


def test_a_score_that_is_no_number_fails() -> None:
    candidate = replace(flips(0, 0, 1000), score=Score("mae", None, n=1000))
    check = verdict("accuracy_drop<=1%", candidate)
    assert check.state == "fail"
    assert "not a number" in check.text


@pytest.mark.parametrize(
    ("b", "n", "state"),
    [(0, 300, "pass"), (0, 200, "inconclusive"), (100, 2000, "fail"), (12, 2000, "pass")],
)
def test_agreement(b: int, n: int, state: str) -> None:
    check = verdict("agreement>=99%", flips(b, 0, n))
    assert check.state == state
    assert "of answers equal the original's" in check.text


def test_sqnr() -> None:
    assert verdict("sqnr>=20dB", flips(0, 0, 300)).state == "pass"
    assert verdict("sqnr>=30dB", flips(0, 0, 300)).state == "fail"


@pytest.mark.parametrize(
    ("gate", "state"),
    [
        ("speedup>=3.0", "pass"),
        ("speedup>=3.3", "inconclusive"),
        ("speedup>=3.5", "fail"),
        ("speedup@1>=3.0", "pass"),
        ("speedup@16>=3.0", "not_judged"),
        ("p50<=5.2ms", "pass"),
        ("p50<=5ms", "inconclusive"),
        ("p50<=4ms", "fail"),
        ("p99<=6.4ms", "pass"),
        ("p99<=6.2ms", "inconclusive"),
        ("p99<=5ms", "fail"),
        ("memory<=100MB", "pass"),
        ("memory<=99MB", "fail"),
    ],
)
def test_latency(gate: str, state: str) -> None:
    assert verdict(gate, Candidate("int8", "candidate", timings=[TIMING])).state == state


def test_a_latency_gate_holds_at_every_batch() -> None:
    slow = replace(TIMING, batch=16, speedup=1.0, speedup_interval=(0.96, 1.04), doubts=["load 3"])
    check = verdict("speedup>=1.5", Candidate("int8", "candidate", timings=[TIMING, slow]))
    assert check.state == "fail"
    assert check.value == 1.0
    assert "batch 1: 3.30x over twin (3.2–3.4x at 95 %), limit 1.5x: pass; batch 16:" in check.text
    assert check.text.endswith("(in doubt: load 3)")


def test_p99_without_enough_values_is_inconclusive() -> None:
    short = replace(TIMING, p99_upper_ms=None, n=120)
    check = verdict("p99<=9ms", Candidate("int8", "candidate", timings=[short]))
    assert check.state == "inconclusive"
    assert "120 values cannot bound it" in check.text


def test_never_slower_is_the_lower_bound() -> None:
    def at(low: float, high: float) -> str:
        timing = replace(TIMING, speedup=(low * high) ** 0.5, speedup_interval=(low, high))
        return verdict("speedup>=0.97", Candidate("a", "candidate", timings=[timing])).state

    assert [at(0.98, 1.02), at(0.9, 1.1), at(0.8, 0.96)] == ["pass", "inconclusive", "fail"]


@pytest.mark.parametrize(
    ("gate", "size", "state"),
    [
        ("size_reduction>=90%", 290_000, "pass"),
        ("size_reduction>=90%", 310_000, "fail"),
        ("size_reduction>=0%", 3_000_000, "pass"),
        ("size_reduction>=0%", 3_000_001, "fail"),
        ("size<=3MB", 3_000_000, "pass"),
        ("size<=3MB", 3_000_001, "fail"),
    ],
)
def test_size(gate: str, size: int, state: str) -> None:
    assert verdict(gate, Candidate("int8", "candidate", size_bytes=size)).state == state


def test_a_byte_over_the_limit_is_said_in_bytes() -> None:
    check = verdict("size<=3MB", Candidate("int8", "candidate", size_bytes=3_000_001))
    assert check.text == "model has 3,000,001 B, limit 3,000,000 B: fail"


def test_size_of_the_package() -> None:
    candidate = Candidate("int8", "candidate", size_bytes=10, package_bytes=5_000_000)
    check = verdict({"gate": "size<=3MB", "of": "package"}, candidate)
    assert (check.state, check.text) == ("fail", "package has 5 MB, limit 3 MB: fail")


def test_fpga_gates_need_a_report() -> None:
    gate, candidate = parse_gate("luts<=20000"), Candidate("rtl", "candidate")
    assert judge(gate, candidate, REFERENCE).state == "not_judged"
    for luts, state in ((19_000, "pass"), (21_000, "fail")):
        built = replace(candidate, figures={"luts": Figure(luts, "post-route")})
        check = judge(gate, built, REFERENCE)
        assert (check.state, "(post-route)" in check.text) == (state, True)


def test_combine_is_the_worst_and_not_judged_changes_nothing() -> None:
    def checks(*states: str) -> list[Check]:
        return [Check("g", state, "") for state in states]  # type: ignore[arg-type]

    assert combine([]) == "not_judged"
    assert combine(checks("not_judged")) == "not_judged"
    assert combine(checks("pass", "not_judged")) == "pass"
    assert combine(checks("pass", "inconclusive")) == "inconclusive"
    assert combine(checks("pass", "inconclusive", "fail")) == "fail"
    assert combine(checks("pass", "not_judged"), require_judged=True) == "inconclusive"
    assert combine(checks("fail", "not_judged"), require_judged=True) == "fail"


@given(st.integers(0, 400), st.integers(0, 400), st.integers(800, 20_000), st.integers(1, 100))
def test_a_pass_never_depends_on_a_looser_limit(b: int, c: int, n: int, tenths: int) -> None:
    order = {"fail": 0, "inconclusive": 1, "pass": 2}
    tight = verdict(f"accuracy_drop<={tenths / 10}%", flips(b, c, n))
    loose = verdict(f"accuracy_drop<={tenths / 10 + 1}%", flips(b, c, n))
    assert order[tight.state] <= order[loose.state]
