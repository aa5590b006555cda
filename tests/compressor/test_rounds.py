"""Rounds: one pair of steps becomes several within the same budgets, or says why it cannot."""

from __future__ import annotations

from typing import Any

import pytest

from compressor.recipe import parse_steps
from compressor.recovery.schedule import EPOCHS
from compressor.rounds import expanded
from runtimes.errors import UsageError

HALF = {"keep": {"macs": "50%"}}


def pair(prune: dict[str, Any], recover: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    steps = parse_steps([{"prune_channels": prune}, {"recover": recover}], "steps")
    return [(place, dict(spec.options)) for place, spec in expanded(steps, "steps")]


@pytest.mark.parametrize("measure", ["macs", "params", "bytes", "latency"])
@pytest.mark.parametrize("rounds", [2, 3, 4])
def test_fractions_multiply_to_what_was_asked(measure: str, rounds: int) -> None:
    made = pair({"keep": {measure: 0.3}, "floor": 0.1}, {"minutes": 4, "rounds": rounds})
    assert len(made) == 2 * rounds
    kept = 1.0
    for _, options in made[::2]:
        kept *= options["keep"][measure]
        assert options["floor"] == 0.1
    assert kept == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("budget", "unit", "whole"),
    [({"minutes": 4}, "minutes", 4), ({"steps": 101}, "steps", 101), ({}, "epochs", EPOCHS)],
)
@pytest.mark.parametrize("rounds", [2, 3])
def test_the_training_is_shared_out_and_the_last_has_half(
    budget: dict[str, Any], unit: str, whole: float, rounds: int
) -> None:
    parts = [o[unit] for _, o in pair(HALF, {**budget, "lr": 0.01, "rounds": rounds})[1::2]]
    assert sum(parts) == pytest.approx(whole)
    assert parts[-1] == pytest.approx(whole / 2, abs=2)
    assert all(isinstance(p, int) for p in parts) == (unit == "steps")


def test_places_tell_the_round_and_no_two_are_equal() -> None:
    places = [place for place, _ in pair(HALF, {"rounds": 2})]
    assert places[1] == "steps[1] recover, round 1 of 2"
    assert len(set(places)) == 4


def test_expanding_again_changes_nothing() -> None:
    steps = parse_steps([{"prune_channels": HALF}, {"recover": {"rounds": 3}}], "steps")
    once = [spec for _, spec in expanded(steps, "steps")]
    assert [spec for _, spec in expanded(once, "steps")] == once


def test_one_round_and_other_steps_stay_as_they_are() -> None:
    steps = parse_steps(
        [{"prune_channels": HALF}, {"recover": {"rounds": 1}}, "to_onnx", "recover"], "steps"
    )
    made = expanded(steps, "steps")
    assert [spec for _, spec in made] == list(steps)
    assert [place for place, _ in made][2:] == ["steps[2] to_onnx", "steps[3] recover"]


def test_amounts_cannot_be_split() -> None:
    with pytest.raises(UsageError, match="what share of the model stays") as caught:
        pair({"keep": {"macs": "30M"}}, {"rounds": 2})
    assert "fraction" in caught.value.fix
    assert len(pair({"keep": {"macs": "30M"}}, {})) == 2


@pytest.mark.parametrize(
    "steps", [[{"recover": {"rounds": 2}}], [{"factorize_layers": {}}, {"recover": {"rounds": 2}}]]
)
def test_rounds_of_nothing(steps: list[Any]) -> None:
    with pytest.raises(UsageError, match="No prune_channels stands right before"):
        expanded(parse_steps(steps, "steps"), "steps")


def test_a_broken_option_is_left_to_planning() -> None:
    made = pair({"keep": {"mac": 0.5}}, {"rounds": 2})
    assert len(made) == 2
