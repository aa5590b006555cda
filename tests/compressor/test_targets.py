"""What ships, and with which exit code, from what was tried."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compressor.gates import parse_gate
from compressor.result import Candidate, Check, Failure, Reference, State, TargetResult
from compressor.shipping import Built, Outcome, choose
from compressor.targets import _Runner
from runtimes.types import Artifact

BLANK = TargetResult("onnxruntime", "fail", 1)


def artifact(name: str) -> Artifact:
    return Artifact(Path(name), "onnx", "model.onnx", (), (), {}, {})


def built(name: str, *states: State) -> Built:
    worst = next((s for s in ("fail", "inconclusive", "pass") if s in states), "not_judged")
    checks = [Check(f"gate{i}", s, f"{name} {s}") for i, s in enumerate(states)]
    return Built(Candidate(name, "candidate", checks=checks, state=worst), artifact(name))


def broken(name: str, code: int) -> Built:
    failure = Failure("Unsupported", f"{name} is refused", code)
    return Built(Candidate(name, "candidate", failure=failure), None)


TWIN = Built(Candidate("twin", "twin"), artifact("twin"))


def chosen(*tried: Built, explicit: bool = False) -> Outcome:
    return choose(BLANK, [TWIN], TWIN, list(tried), explicit)


@pytest.mark.parametrize(
    ("tried", "ships", "code"),
    [
        ([built("a", "pass")], "a", 0),
        ([built("a", "fail"), built("b", "pass")], "b", 0),
        ([built("a", "inconclusive"), built("b", "pass")], "b", 0),
        ([built("a", "inconclusive"), built("b", "inconclusive")], "a", 3),
        ([built("a", "fail"), built("b", "inconclusive")], "b", 3),
        ([built("a", "not_judged")], "a", 0),
        ([built("a", "fail"), built("b", "fail")], "twin", 1),
        ([broken("a", 4), built("b", "fail")], "twin", 1),
        ([broken("a", 4), broken("b", 5)], "twin", 5),
    ],
)
def test_what_ships(tried: list[Built], ships: str, code: int) -> None:
    outcome = chosen(*tried)
    assert outcome.result.shipped == ships
    assert outcome.result.exit_code == code
    assert outcome.shipped is not None
    assert outcome.shipped.root == Path(ships)


def test_the_best_failing_one_is_kept_apart() -> None:
    outcome = chosen(built("a", "fail", "fail"), built("b", "fail", "pass"))
    assert outcome.failed is not None
    assert outcome.failed.candidate.name == "b"
    assert "closest is b, stopped by gate0" in outcome.result.reason


def test_of_two_with_one_failed_gate_the_one_with_fewer_open_is_closer() -> None:
    outcome = chosen(built("a", "fail", "not_judged"), built("b", "fail", "pass"))
    assert outcome.failed is not None
    assert outcome.failed.candidate.name == "b"


def test_what_was_not_judged_is_not_said_to_have_passed() -> None:
    reason = chosen(built("a", "pass", "not_judged")).result.reason
    assert reason == "a fails no gate; not every gate could be judged"


def test_every_reason_why_nothing_could_be_built_is_given() -> None:
    reason = chosen(broken("a", 4), broken("b", 4)).result.reason
    assert "a: a is refused; b: b is refused" in reason


def test_an_explicit_list_that_broke_has_its_own_code() -> None:
    outcome = chosen(broken("candidate", 4), explicit=True)
    assert outcome.result.exit_code == 4
    assert "candidate is refused" in outcome.result.reason


def test_a_candidate_that_does_not_run_here_never_passes() -> None:
    """It is small and keeps accuracy, and its process dies while it is timed."""
    died = Failure("BoardError", "the process died", 6)
    result = SimpleNamespace(batches=(1,), failure=lambda name, batch: died)
    planned: Any = SimpleNamespace(
        target=SimpleNamespace(name="x", runtime="onnxruntime", timed=True),
        runs_on=("onnxruntime", "CPU"),
        without="",
        context=SimpleNamespace(device="CPU"),
        gates=(parse_gate("size_reduction>=50%"), parse_gate("speedup>=0.97")),
    )
    judging: Any = SimpleNamespace(time=lambda *args, **options: result)
    engine: Any = None
    runner = _Runner(planned, engine, judging, Reference("", "", "", 1000, ""))
    small = Built(Candidate("a", "candidate", size_bytes=10), artifact("a"))
    judged = runner._judged(small, [TWIN])
    assert judged.candidate.state == "fail"
    assert "the process died" in judged.candidate.checks[-1].text
