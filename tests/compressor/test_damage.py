"""Which layers to keep float: chosen from a table, measured as a whole, within a budget."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from compressor.quantization.damage import damage, decibels
from compressor.quantization.keep import exactly
from compressor.quantization.sensitivity import FLOAT, OPTIONS, STORED, Budget, Group
from compressor.report import html
from compressor.report.damage import flags, recipe_line
from compressor.result import Damage
from runtimes.base import LayerPrecision
from tests.run_records import candidate, record, target

BYTES = {FLOAT: 4000, "half": 2000, "w8": 1040, "int8": 1040, "w4": 540, "int8-w4": 540}


class FakeBench:
    """Outputs whose noise share is the sum of `noise` over the changed groups."""

    samples = 8

    def __init__(self, noise: Mapping[str, float], joint: float = 1.0) -> None:
        self.noise, self.joint, self.asked = dict(noise), joint, 0
        self.groups = tuple(
            Group(n, "Conv" if n != "embed" else "Gather", (n,), 1000,
                  OPTIONS if n != "embed" else STORED)
            for n in noise
        )  # fmt: skip

    def outputs(self, assign: Mapping[str, str]) -> list[dict[str, Any]]:
        self.asked += 1
        changed = [n for n, option in assign.items() if option != FLOAT]
        total = sum(self.noise[n] for n in changed) * (self.joint if len(changed) > 1 else 1)
        clean = np.random.default_rng(0).standard_normal((4000, 1))
        dirt = np.random.default_rng(1).standard_normal((4000, 1))
        return [{"y": (clean + np.sqrt(total) * dirt).astype(np.float32)}]

    def fewer(self, samples: int) -> int:
        self.samples = max(1, samples)
        return self.samples

    def size_bytes(self, _group: Group, option: str) -> int:
        return BYTES[option]


NOISE = {"a": 0.001, "b": 0.05, "c": 0.002, "embed": 0.0005, "d": 0.02}


def test_layers_are_ranked_and_the_fewest_kept() -> None:
    found = damage(FakeBench(NOISE), "int8", Budget(), target_db=20)
    assert [row.layer for row in found.rows][:3] == ["b", "d", "c"]
    assert found.rows[0].share == pytest.approx(0.685, abs=0.02)
    assert found.rows[0].sqnr_db["int8"] == pytest.approx(13.0, abs=0.3)
    # Without b 0.023 is left, which is 16 dB; without d as well 25 dB.
    assert found.keep == ["b", "d"]
    assert found.all_db == pytest.approx(11.4, abs=0.3)
    assert found.kept_db == pytest.approx(25.2, abs=0.3)
    assert found.keep_bytes == 2 * (4000 - 1040)


def test_a_layer_that_cannot_follow_does_no_damage() -> None:
    rows = {r.layer: r for r in damage(FakeBench(NOISE), "int8", Budget(), target_db=20).rows}
    assert rows["embed"].share == 0
    rows = {r.layer: r for r in damage(FakeBench(NOISE), "int8-w4", Budget(), target_db=20).rows}
    assert rows["embed"].sqnr_db == {"w4": pytest.approx(33, abs=0.5)}


def test_more_are_kept_where_the_sum_was_too_hopeful() -> None:
    found = damage(FakeBench(NOISE, joint=6.0), "int8", Budget(), target_db=20)
    assert found.keep[:3] == ["b", "d", "c"]
    assert found.kept_db is not None
    assert found.kept_db >= 20


def test_nothing_is_kept_where_nothing_is_needed() -> None:
    found = damage(FakeBench(NOISE), "int8", Budget(), target_db=5)
    assert found.keep == []
    assert found.keep_bytes == 0


def test_a_lift_counts_from_what_there_is() -> None:
    found = damage(FakeBench(NOISE), "int8", Budget(), target_db=0, lift_db=6)
    assert found.target_db == pytest.approx(17.4, abs=0.3)
    assert found.keep == ["b", "d"]


def test_without_time_nothing_is_claimed() -> None:
    bench = FakeBench(NOISE)
    found = damage(bench, "int8", Budget(minutes=0.0), target_db=20)
    assert (found.measured, found.groups) == (1, 5)  # what stays float needs no measuring
    assert found.all_db is None
    assert found.keep == []
    assert bench.asked == 0


def test_times_come_from_the_profile_by_any_of_a_layers_names() -> None:
    profile = [
        LayerPrecision("fused", "Conv", "float32", ("b", "relu"), 5000),
        LayerPrecision("a", "Conv", "float32", ("a",), 700),
    ]
    found = damage(FakeBench(NOISE), "int8", Budget(), target_db=20, profile=profile)
    times = {row.layer: row.time_ns for row in found.rows}
    assert (times["a"], times["b"], times["c"]) == (700, 5000, None)


def test_what_is_pasted_is_quoted() -> None:
    made = Damage("int8", [], 2, 2, 8, 1.0, 20.0, keep=["/layer/Conv", exactly("a[0]"), "fc"])
    assert recipe_line(made) == 'keep: {float: ["/layer/Conv", "a[[]0]", fc]}'
    assert flags(made) == "--keep-float /layer/Conv --keep-float 'a[[]0]' --keep-float fc"


def test_the_page_draws_a_bar_of_each_layers_share() -> None:
    found = damage(FakeBench(NOISE), "int8", Budget(), target_db=20)
    looked = candidate("int8", 0.03, None, damage=found, state="fail")
    failed = target(state="fail", candidates=[looked, candidate("twin", 0.0, None)])
    (chart,) = re.findall(r'<ol class="damage".*?</ol>', html(record(failed)), re.S)
    bars = re.findall(r'<rect class="k-\w+" x="0.0" y="0" width="([\d.]+)"', chart)
    names = re.findall(r"<li><span>(\w+) ", chart)
    figures = re.findall(r"<b>([\d.]+) %</b>", chart)
    assert names == [row.layer for row in found.rows]
    shares = np.array([row.share for row in found.rows])
    assert np.array(figures, float) / 100 == pytest.approx(shares, abs=6e-4)
    # The worst layer's bar spans the column; no bar vanishes.
    wanted = np.maximum(1000 * shares / shares[0], 0.6)
    assert np.array(bars, float) == pytest.approx(wanted, abs=0.06)


def test_decibels_stay_within_what_json_holds() -> None:
    assert decibels(0.0) == 200
    assert decibels(float("inf")) == -200
    assert decibels(0.01) == pytest.approx(20)
