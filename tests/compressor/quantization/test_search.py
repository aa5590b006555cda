"""The search for mixed precision: what it refuses before it measures anything."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compressor.deadline import OutOfTime
from compressor.quantization.search import Found, Search
from compressor.quantization.sensitivity import Budget, Group
from compressor.steps import load_step
from exporters.base import Trial
from runtimes.errors import Unsupported
from tests.compressor.quantization.helpers import prepared
from tests.contract import subjects
from tests.step_env import make_env


class Bench:
    """A workbench that may be asked for bytes, and for nothing else."""

    groups = (
        Group("wide", "Conv", ("wide",), 8000, ("float", "w8", "int8", "w4", "int8-w4")),
        Group("narrow", "Add", ("narrow",), 10, ("float", "w8")),
    )

    def size_bytes(self, group: Group, option: str) -> int:
        bits = {"float": 32, "w8": 8, "int8": 8, "w4": 4, "int8-w4": 4}[option]
        return group.elements * bits // 8

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was used")


def test_a_size_that_the_weights_alone_break_is_refused_before_measuring(tmp_path: Path) -> None:
    given = prepared(tmp_path, "convnet", "onnxruntime")
    options = load_step("quantize_mixed").Options()
    context = subjects.context("quantize_mixed", given.format)
    env = make_env(
        tmp_path, reference=given, data=subjects.data(given), context=context, name="search"
    )
    search = Search(given, Bench(), env, options, Budget(None), limit_bytes=4009)  # type: ignore[arg-type]
    with pytest.raises(Unsupported, match=r"weights take 4,010 bytes .* size gate 4,009"):
        search.run()


def test_a_search_that_is_stopped_ends_with_the_best_so_far(monkeypatch: Any) -> None:
    def found(size: int, drop: float) -> Found:
        artifact: Any = SimpleNamespace(size_bytes=size)
        return Found({}, artifact, Trial(1.0, size, drop), 0.0)

    def stopped(*_: Any) -> None:
        raise OutOfTime

    nothing: Any = None
    options = load_step("quantize_mixed").Options(max_drop=0.01)
    search = Search(nothing, nothing, nothing, options, Budget(None), limit_bytes=100)
    monkeypatch.setattr(search, "_descend", stopped)
    search.tried = [found(60, 0.5), found(120, 0.0)]
    with pytest.raises(OutOfTime):
        search._descend_in_time([])
    search.tried += [found(90, 0.0), found(80, 0.0)]
    best = search._descend_in_time([])
    assert best is not None
    assert best.artifact.size_bytes == 80
    assert search.timed


@pytest.mark.parametrize(
    ("drop", "upper", "keeps"),
    [
        (0.005, None, True),  # half of what is allowed
        (0.005, 0.012, True),
        (0.007, None, False),
        (0.007, 0.0079, True),  # a metric with little noise
        (0.007, 0.0081, False),
        (None, None, False),
    ],
)
def test_an_attempt_keeps_its_distance_from_the_limit(
    drop: float | None, upper: float | None, keeps: bool
) -> None:
    nothing: Any = None
    options = load_step("quantize_mixed").Options(max_drop=0.01)
    search = Search(nothing, nothing, nothing, options, Budget(None), limit_bytes=100)
    artifact: Any = SimpleNamespace(size_bytes=100)
    assert search._keeps(Found({}, artifact, Trial(1.0, 100, drop, upper), 0.0)) is keeps
    assert not search._keeps(Found({}, artifact, Trial(1.0, 101, drop, upper), 0.0))


@pytest.mark.parametrize(("db", "keeps"), [(15.6, True), (15.4, False), (None, True)])
def test_an_attempt_keeps_the_noise_that_is_allowed(db: float | None, keeps: bool) -> None:
    nothing: Any = None
    options = load_step("quantize_mixed").Options(min_sqnr_db=15.0)
    search = Search(nothing, nothing, nothing, options, Budget(None), limit_bytes=100)
    artifact: Any = SimpleNamespace(size_bytes=100)
    assert search._keeps(Found({}, artifact, Trial(1.0, 100, 0.0, None, db), 0.0)) is keeps
