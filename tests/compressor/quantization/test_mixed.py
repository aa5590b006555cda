"""Assignments against exhaustive search, on random tables small enough for it."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest

from compressor.quantization import mixed
from compressor.quantization.mixed import Cell, Limits
from compressor.quantization.sensitivity import Group, Row, Sensitivity

SIZES = {"float": 400, "w8": 100, "int8": 100, "w4": 52, "int8-w4": 52}
OPTIONS = tuple(SIZES)


def table(seed: int, groups: int = 5) -> list[Cell]:
    rng = np.random.default_rng(seed)
    found = []
    for g in range(groups):
        base, factor = 10 ** rng.uniform(-5, -2), int(rng.integers(1, 9))
        damage = {"float": 0.0, "w8": base / 50, "int8": base, "w4": 8 * base, "int8-w4": 9 * base}
        fast = rng.uniform(0.2, 1.2) / groups
        for option, size in SIZES.items():
            time = fast if option.startswith("int8") else 1 / groups
            found.append(Cell(f"g{g}", option, damage[option], size * factor, time))
    return found


def best_by_force(cells: list[Cell], limits: Limits) -> float | None:
    names = list(dict.fromkeys(c.group for c in cells))
    total = sum(c.size_bytes for c in cells if c.option == "float")
    by_group = [[c for c in cells if c.group == name] for name in names]
    costs = [
        sum(c.size_bytes for c in choice) / total + sum(c.time for c in choice)
        for choice in itertools.product(*by_group)
        if sum(c.damage for c in choice) <= limits.damage
        and (limits.size_bytes is None or sum(c.size_bytes for c in choice) <= limits.size_bytes)
        and (limits.time is None or sum(c.time for c in choice) <= limits.time)
    ]
    return min(costs, default=None)


def cost(cells: list[Cell], assign: mixed.Assignment) -> float:
    total = sum(c.size_bytes for c in cells if c.option == "float")
    chosen = [c for c in cells if assign[c.group] == c.option]
    return sum(c.size_bytes for c in chosen) / total + sum(c.time for c in chosen)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("limit", [1.0, 3e-2, 3e-3, 3e-5])
def test_the_integer_program_finds_the_best_assignment(seed: int, limit: float) -> None:
    pytest.importorskip("scipy", reason="needs the optimize extra")
    cells = table(seed)
    floats = sum(c.size_bytes for c in cells if c.option == "float")
    for limits in (Limits(limit), Limits(limit, floats // 4), Limits(limit, floats // 3, 0.9)):
        found, wanted = mixed.solve(cells, limits), best_by_force(cells, limits)
        assert (found is None) == (wanted is None)
        if found is not None and wanted is not None:
            assert cost(cells, found) == pytest.approx(wanted, rel=1e-3)
            assert mixed.total_damage(cells, found) <= limit * (1 + 1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_the_greedy_path_keeps_the_limits(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    cells = table(seed)
    found = mixed.solve(cells, Limits(1e-2))
    assert found is not None
    assert mixed.total_damage(cells, found) <= 1e-2
    wanted = best_by_force(cells, Limits(1e-2))
    assert wanted is not None
    assert cost(cells, found) <= 1.5 * wanted
    assert mixed.solve(cells, Limits(0.0, size_bytes=1)) is None


def test_least_damage_within_a_size() -> None:
    pytest.importorskip("scipy", reason="needs the optimize extra")
    cells = table(1)
    room = sum(c.size_bytes for c in cells if c.option == "float") // 4
    found = mixed.least_damage(cells, Limits(0.0, room))
    assert found is not None
    assert mixed.total_bytes(cells, found) <= room
    for other in (mixed.solve(cells, Limits(level, room)) for level in (1e-3, 1e-2, 1.0)):
        if other is not None:
            floor = mixed.total_damage(cells, found)
            assert floor <= mixed.total_damage(cells, other) + 1e-9


def test_an_option_that_breaks_the_model_is_never_taken() -> None:
    cells = [
        Cell("g", "float", 0.0, 400, 0.0),
        Cell("g", "w4", float("inf"), 52, 0.0),
    ]
    assert mixed.solve(cells, Limits(1e9)) == {"g": "float"}
    assert mixed.solve(cells, Limits(1e9, size_bytes=100)) is None


def test_combined_options_cost_the_sum_of_their_parts() -> None:
    group = Group("g", "Conv", ("g",), 100, OPTIONS)
    rows = tuple(Row("g", o, d, 0) for o, d in (("float", 0.0), ("int8", 1e-3), ("w4", 1e-2)))
    sensitivity = Sensitivity((group,), rows, 8)
    sizes = {("g", o): SIZES[o] for o in OPTIONS}
    found = {c.option: c.damage for c in mixed.cells(sensitivity, sizes, {}, {"g": OPTIONS})}
    assert found["int8-w4"] == pytest.approx(1.1e-2)
    assert not {"w8", "half"} & set(found)  # not measured, and nothing to bound it with


def test_blocks_count_between_what_was_measured_of_them_and_of_plain_four_bits() -> None:
    group = Group("g", "MatMul", ("g",), 100, ("float", "w4", "w4-32"))
    rows = [Row("g", "float", 0.0, 400), Row("g", "w4", 4e-3, 50), Row("g", "w4-32", 1e-3, 56)]
    sizes = {("g", "float"): 400, ("g", "w4"): 50, ("g", "w4-32"): 56}
    found = mixed.cells(Sensitivity((group,), tuple(rows), 8), sizes, {}, {"g": group.options})
    assert {c.option: c.damage for c in found}["w4-32"] == pytest.approx(2e-3)
    assert mixed.solve(found, Limits(3e-3)) == {"g": "w4-32"}
    assert mixed.solve(found, Limits(5e-3)) == {"g": "w4"}
    del rows[1]  # time ran out
    found = mixed.cells(Sensitivity((group,), tuple(rows), 8), sizes, {}, {"g": group.options})
    assert {c.option: c.damage for c in found}["w4-32"] == pytest.approx(1e-3)


def test_half_is_bounded_by_eight_bits_and_taken_where_these_hurt() -> None:
    group = Group("g", "Conv", ("g",), 100, ("float", "half", "w8"))
    rows = (Row("g", "float", 0.0, 400), Row("g", "w8", 1e-2, 100))
    sizes = {("g", "float"): 400, ("g", "half"): 200, ("g", "w8"): 100}
    found = mixed.cells(Sensitivity((group,), rows, 8), sizes, {}, {"g": group.options})
    assert {c.option: c.damage for c in found}["half"] == pytest.approx(1e-2 / 32)
    assert mixed.solve(found, Limits(1e-3)) == {"g": "half"}
    assert mixed.solve(found, Limits(1e-1)) == {"g": "w8"}
