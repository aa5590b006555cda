"""Ranks under a budget: beside every other choice, on small numbers."""

from functools import reduce

import numpy as np
import pytest

from compressor.factorization.ranks import Offer, allocate, offer
from compressor.pruning.allocate import TOLERANCE

SIZE = 64


def flat(name="a", **more) -> Offer:
    """A square layer, all directions alike unless `energies` says otherwise."""
    told = {"floor": 0.0, "multiple": 1, "energies": np.ones(SIZE), **more}
    return offer(name, most=SIZE // 2 - 1, cost=SIZE**2, per_rank=2 * SIZE, **told)


def every_choice(arrays):
    return reduce(np.add.outer, arrays)


@pytest.mark.parametrize("seed", range(8))
def test_close_to_the_best_of_all_choices(seed):
    rng = np.random.default_rng(seed)
    energies = [np.sort(rng.random(SIZE) ** 6)[::-1] for _ in range(3)]
    offers = [flat(f"l{i}", energies=e) for i, e in enumerate(energies)]
    limit = 0.6 * 3 * SIZE**2
    chosen = allocate(offers, 0.0, limit)
    places = [o.ranks.index(chosen.get(o.name, 0)) for o in offers]
    cost = sum(o.costs[p] for o, p in zip(offers, places, strict=True))
    loss = sum(o.losses[p] for o, p in zip(offers, places, strict=True))
    fits = every_choice([o.costs for o in offers]) <= limit
    best = every_choice([o.losses for o in offers])[fits].min()
    assert (1 - TOLERANCE) * limit <= cost <= limit
    assert loss <= 1.1 * best


def test_a_layer_that_loses_nothing_goes_first():
    empty = flat("empty", energies=np.array([1.0, *[0.0] * (SIZE - 1)]))
    limit = SIZE**2 + 4 * 2 * SIZE
    assert allocate([flat("full"), empty], 0.0, limit) == {"empty": 4}


def test_what_saves_too_little_is_passed_over():
    steep = flat("steep", energies=np.arange(SIZE, 0, -1.0))
    assert list(allocate([flat("flat"), steep], 0.0, 1.6 * SIZE**2)) == ["steep"]


def test_what_is_fixed_counts():
    alone, beside = allocate([flat()], 0.0, 2048), allocate([flat()], 1000.0, 3048)
    assert alone == beside == {"a": 16}


def test_floor_and_multiple():
    assert flat(floor=0.25, multiple=5).ranks == (0, 30, 25, 20)


def test_small_modules_are_settled_layer_by_layer():
    offers = [flat("a", multiple=13), flat("b", multiple=9), flat("c", multiple=7)]
    limit = 2 * SIZE * (13 + 27 + 7)
    chosen = allocate(offers, 0.0, limit)
    places = [o.ranks.index(chosen.get(o.name, 0)) for o in offers]
    cost = sum(o.costs[p] for o, p in zip(offers, places, strict=True))
    assert cost == pytest.approx(limit, rel=TOLERANCE)


def test_none_where_the_steps_are_too_coarse_or_end_too_soon():
    assert allocate([flat(multiple=16)], 0.0, 3000) is None
    assert allocate([flat(floor=0.25)], 0.0, 1500) is None
