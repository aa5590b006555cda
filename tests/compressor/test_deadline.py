"""`--minutes`: what a candidate may take, and how a step that takes longer is stopped."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from compressor.deadline import SPENT, Deadline, OutOfTime, Watched
from compressor.engine import Engine
from compressor.env import Silent
from compressor.plan import PlannedRung
from compressor.result import Reference
from compressor.targets import _Runner
from runtimes.types import Artifact
from tests.step_env import ArraySamples

DATA = ArraySamples({"x": np.zeros((8, 2), np.float32)})


def test_without_minutes_nothing_ends() -> None:
    assert Deadline().left() is None
    assert Deadline().of_candidate() is None


def test_a_candidate_gets_half_of_what_is_left() -> None:
    now = time.monotonic()
    assert Deadline(now + 1000, reserve=200).of_candidate() == pytest.approx(now + 400, abs=5)
    assert Deadline(now - 10).left() == 0


def test_a_step_is_stopped_where_it_reads_samples() -> None:
    def check() -> None:
        raise OutOfTime

    watched = Watched(DATA, check)
    assert len(watched) == 8
    assert watched.fingerprint == DATA.fingerprint
    with pytest.raises(OutOfTime):
        watched.feeds([0])
    with pytest.raises(OutOfTime):
        next(watched.batches(4))


def runner(deadline: Deadline, advance: Any) -> _Runner:
    planned: Any = SimpleNamespace(
        target=SimpleNamespace(name="x", runtime="onnxruntime", timed=True),
        runs_on=("onnxruntime", "CPU"),
        without="",
        rungs=(PlannedRung("a", "candidate"), PlannedRung("b", "candidate")),
    )
    engine: Any = SimpleNamespace(advance=advance, limit=None)
    judging: Any = None
    return _Runner(planned, engine, judging, Reference("", "", "", 1000, ""), deadline)


def test_candidates_that_were_stopped_are_skipped_and_the_next_is_tried() -> None:
    limits = []

    def advance(*_: Any) -> Artifact:
        limits.append(at.engine.limit)
        raise OutOfTime

    at = runner(Deadline(time.monotonic() + 1000), advance)
    tried = at.climb([], Artifact(Path(), "onnx", "model.onnx", (), (), {}, {}))
    assert [b.candidate.failure.message for b in tried if b.candidate.failure] == [SPENT, SPENT]
    assert len(limits) == 2
    assert at.engine.limit is None


def test_past_the_deadline_no_candidate_is_begun() -> None:
    def advance(*_: Any) -> Artifact:
        raise AssertionError("begun")

    at = runner(Deadline(time.monotonic() - 1), advance)
    source = Artifact(Path(), "onnx", "model.onnx", (), (), {}, {})
    tried = at.climb([], source)
    assert [b.candidate.failure.exit_code for b in tried if b.candidate.failure] == [1, 1]


def test_the_engine_stops_steps_past_its_limit() -> None:
    unused: Any = None
    data = {"calibration": DATA}
    engine = Engine(unused, unused, "", None, data, unused, Silent(), unused, unused)
    assert engine._watched("calibration") is DATA
    engine._told(0.5, "half")
    engine.limit = time.monotonic() - 1
    with pytest.raises(OutOfTime):
        engine._told(0.5, "half")
    with pytest.raises(OutOfTime):
        engine._watched("calibration").feeds([0])
