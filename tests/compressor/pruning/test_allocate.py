"""Who gives how many channels, on costs small enough to work out by hand."""

import numpy as np
import pytest

from compressor.pruning import allocate
from compressor.pruning.budget import parse_budget
from compressor.pruning.costs import CostModel, Factor
from compressor.pruning.graph import ChannelGroup


def group(name: str, width: int = 32, repeats: int = 1) -> ChannelGroup:
    return ChannelGroup(name, width, repeats, ())


def cost_of(**base: float) -> CostModel:
    return CostModel(tuple((b, (Factor(32, ((n, 1.0),)),)) for n, b in base.items()))


def ladders(scores: dict[str, np.ndarray], multiple: int = 4, floor: float = 0.1):
    return [allocate.ladder(group(n), s, multiple, floor) for n, s in scores.items()]


def test_what_matters_least_for_what_it_saves_goes_first():
    scores = {"a": np.ones(32), "b": np.full(32, 100.0)}
    found = allocate.allocate(ladders(scores), cost_of(a=100, b=100), 150, allocate.by_saliency)
    assert {k: len(v) for k, v in found.indices().items()} == {"a": 16}


def test_an_expensive_layer_goes_before_a_cheap_one_of_equal_saliency():
    scores = {"cheap": np.ones(32), "dear": np.ones(32)}
    cost = cost_of(cheap=10, dear=190)
    found = allocate.allocate(ladders(scores), cost, 105, allocate.by_saliency)
    assert list(found.indices()) == ["dear"]


def test_uniform_takes_the_same_fraction_everywhere():
    scores = {"a": np.ones(32), "b": np.full(32, 100.0)}
    found = allocate.allocate(ladders(scores), cost_of(a=100, b=100), 100, allocate.by_width)
    assert [len(v) for v in found.indices().values()] == [16, 16]


def test_least_salient_channels_go_and_ties_are_broken_by_index():
    one = allocate.ladder(group("a", 8), np.array([3, 1, 1, 9, 0, 5, 5, 5.0]), 1, 0)
    assert one.indices(3) == [1, 2, 4]


def test_widths_are_multiples_above_the_floor():
    one = allocate.ladder(group("a", 30), np.ones(30), 8, 0.3)
    assert [30 - c for c in one.counts] == [30, 24, 16]


def test_repeats_share_offsets_and_their_widths_sum_to_multiples():
    one = allocate.ladder(group("a", 32, 4), np.arange(32.0), 8, 0)
    assert [32 - one.removed(i) for i in range(len(one.counts))] == [32, 24, 16, 8]
    assert one.indices(1) == [0, 1, 8, 9, 16, 17, 24, 25]


@pytest.mark.parametrize("budget", [150, 120, 80])
def test_the_budget_is_met_though_steps_are_coarse(budget):
    scores = {"a": np.ones(32), "b": np.arange(32.0), "c": np.arange(32.0)[::-1] ** 2}
    cost = cost_of(a=100, b=60, c=40)
    found = allocate.allocate(ladders(scores), cost, budget, allocate.by_saliency)
    assert found.price() == pytest.approx(budget, rel=allocate.TOLERANCE)


def test_steps_too_coarse_for_the_budget_give_none():
    scores = {"a": np.ones(32)}
    found = allocate.allocate(ladders(scores, 16), cost_of(a=100), 70, allocate.by_saliency)
    assert found is None


@pytest.mark.parametrize(
    ("given", "limit"),
    [("40%", 400), (0.4, 400), ("0.4", 400), (300, 300), ("0.3k", 300), ("300", 300)],
)
def test_amounts(given, limit):
    assert parse_budget({"macs": given}).limit(1000) == pytest.approx(limit)
