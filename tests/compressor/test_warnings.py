"""What a run warns of beside its results."""

from __future__ import annotations

from types import SimpleNamespace

from compressor.quantization.convergence import Point, convergence_note
from compressor.run import _Run
from tests.run_records import candidate, target


def test_calibration_that_has_not_converged_is_a_warning_of_the_run() -> None:
    growing = convergence_note([Point(75, 0.5, 0.2), Point(150, 0.69, 0.4)], 300)
    still = convergence_note([Point(150, 0.9, 0.7)], 300)
    made = [
        candidate("int8-w4", 0.0, 2.0, notes=[*growing, "another"]),
        candidate("int8", 0.0, 2.0, notes=growing),
        candidate("twin", 0.0, 2.0, notes=still),
    ]
    opened = SimpleNamespace(warnings=["first"], evaluation=None)
    run = SimpleNamespace(
        opened=opened, plan=SimpleNamespace(warnings=()), judge=SimpleNamespace(labelled=True)
    )
    said = (
        "onnxruntime: calibration has not converged: the median range grew by 31% over the last "
        "half of 300 samples, the most by 60% (median width: 50% after 75, 69% after 150); at most "
        "20% was expected: hand in 300 more, drawn at random"
    )
    assert _Run._warnings(run, [target(candidates=made)]) == ["first", said]


def test_too_few_samples_tell_nothing_of_convergence() -> None:
    assert convergence_note([], 16) == []
    assert convergence_note([Point(16, 0.1, 0.1)], 24) == []
