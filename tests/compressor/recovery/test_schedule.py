"""Minutes become steps: what the original's outputs cost is part of them."""
# ruff: noqa: E402

import time

import pytest

torch = pytest.importorskip("torch", reason="needs the torch extra")

from compressor.recovery import loop
from compressor.recovery.schedule import Pace, measure_pace
from compressor.recovery.teacher import make_teacher
from runtimes.types import TensorSpec
from tests.step_env import ArraySamples


@pytest.mark.parametrize("seconds", [3.0, 10.0, 31.0, 200.0])
def test_steps_fill_the_time_and_do_not_exceed_it(seconds):
    pace, per_epoch = Pace(step=0.1, teacher=0.2, held_out=1.0), 100

    def lasts(steps):
        full, early = divmod(steps, per_epoch)
        teacher = min(steps, per_epoch) * pace.teacher
        return steps * pace.step + teacher + pace.held_out * (full + bool(early))

    steps = pace.steps(seconds, per_epoch)
    assert lasts(steps) <= seconds + pace.held_out
    assert lasts(steps + 12) > seconds


def test_at_least_one_step():
    assert Pace(1.0, 1.0, 5.0).steps(-3.0, 10) == 1


class Slow(torch.nn.Module):
    """Takes a known time a call."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds, self.layer = seconds, torch.nn.Linear(4, 2)

    def forward(self, x):
        time.sleep(self.seconds)
        return self.layer(x)


@pytest.mark.parametrize("keep", [True, False])
def test_the_pace_tells_the_teacher_from_the_student(keep, tmp_path, monkeypatch):
    if not keep:
        monkeypatch.setattr("compressor.recovery.teacher.LIMIT_BYTES", 0)
    data = ArraySamples({"x": torch.randn(600, 4).numpy()})
    specs = [TensorSpec("x", "float32", ("n", 4))]
    teacher = make_teacher(Slow(0.1), specs, data, False, tmp_path)
    order = torch.randperm(600).numpy()
    task = loop.Task(Slow(0.02), teacher, specs, data, order[8:], order[:8])
    schedule = loop.Schedule(1, 8, 1e-3, 0.0, 5, 0, False)
    pace = measure_pace(schedule, task, tmp_path)
    if keep:
        assert pace.teacher >= 0.1
        assert 0.02 <= pace.step < 0.1
    else:
        assert pace.teacher == 0
        assert pace.step >= 0.12


def test_a_plateau_ends_training_only_where_the_rate_falls() -> None:
    schedule = loop.Schedule(
        steps=100, batch=8, peak=1e-3, decay=0, patience=3, seed=0, bfloat16=False
    )
    flat = [1.0] + [2.0] * 9
    assert not schedule.over(loop.State(step=50, best_step=5, history=flat))
    assert schedule.over(loop.State(step=51, best_step=5, history=flat))
    assert not schedule.over(loop.State(step=60, best_step=55, history=flat))  # epochs of one step
    assert not schedule.over(loop.State(step=99, best_step=5, history=flat[::-1]))
    assert schedule.over(loop.State(step=100, best_step=100, history=flat[::-1]))
