"""How long a training lasts: options checked, a budget in minutes turned into steps, once."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from compressor.recovery import loop
from compressor.sources.torch_io import batch_size, tensors
from runtimes.errors import UsageError

PLAN = "plan.json"
EPOCHS = 3.0  # of `recover` where nothing else is said
_TIMED = 8  # steps


class Budget(Protocol):
    """The options that every training step has."""

    @property
    def epochs(self) -> float: ...  # noqa: D102

    @property
    def minutes(self) -> float: ...  # noqa: D102

    @property
    def steps(self) -> int: ...  # noqa: D102

    @property
    def batch(self) -> int: ...  # noqa: D102

    @property
    def lr(self) -> float: ...  # noqa: D102

    @property
    def patience(self) -> int: ...  # noqa: D102

    @property
    def held_out(self) -> float: ...  # noqa: D102


def check_budget(options: Budget, where: str) -> None:
    """Raise `UsageError` where an option is out of range or two budgets are set."""
    given = [n for n in ("epochs", "minutes", "steps") if getattr(options, n)]
    if len(given) > 1:
        what = f"{' and '.join(given)} are both set"
        raise UsageError(what, where=where, fix="set one of them")
    least = {"epochs": 0, "minutes": 0, "steps": 0, "decay": 0, "batch": 1, "patience": 1}
    for name, low in least.items():
        if getattr(options, name, low) < low:
            raise out_of_range(f"{where}.{name}", f"at least {low}", getattr(options, name))
    if not options.lr > 0:
        raise out_of_range(f"{where}.lr", "above 0", options.lr)
    if not 0 < options.held_out < 1:
        raise out_of_range(f"{where}.held_out", "between 0 and 1", options.held_out)


def out_of_range(where: str, expected: str, got: float) -> UsageError:
    """The error for an option outside its range."""
    return UsageError("out of range", where=where, expected=expected, got=str(got))


def decide(
    options: Budget,
    task: loop.Task,
    checkpoint: Path,
    scratch: Path,
    *,
    seed: int,
    decay: float,
    bfloat16: bool,
    epochs: float,
) -> loop.Schedule:
    """The schedule of a training; a restart reads what the killed run wrote to `checkpoint`.

    `epochs` is what is trained where the options name no budget.
    """
    kept = checkpoint / PLAN
    if kept.is_file():
        return loop.Schedule(**json.loads(kept.read_text(encoding="utf-8")))
    batch = min(batch_size(task.inputs, task.data, options.batch), len(task.train))
    made = loop.Schedule(
        steps=1, batch=batch, peak=options.lr, decay=decay, patience=options.patience, seed=seed,
        bfloat16=bfloat16,
    )  # fmt: skip
    made = replace(made, steps=_steps(options, made, task, scratch, epochs))
    temporary = kept.with_suffix(".tmp")
    temporary.write_text(json.dumps(asdict(made)) + "\n", encoding="utf-8")
    os.replace(temporary, kept)  # noqa: PTH105 - atomic
    return made


def _steps(
    options: Budget, schedule: loop.Schedule, task: loop.Task, scratch: Path, epochs: float
) -> int:
    per_epoch = max(1, len(task.train) // schedule.batch)
    if options.steps:
        return options.steps
    if options.minutes:
        began = time.monotonic()
        pace = measure_pace(schedule, task, scratch)
        return pace.steps(options.minutes * 60 - (time.monotonic() - began), per_epoch)
    return max(1, round((options.epochs or epochs) * per_epoch))


@dataclass(frozen=True)
class Pace:
    """Seconds that the parts of a training take on this machine.

    Attributes:
        step: of the optimizer, where the original's outputs are there.
        teacher: more for a batch whose outputs have yet to be computed.
        held_out: to judge the weights, once an epoch.
    """

    step: float
    teacher: float
    held_out: float

    def steps(self, seconds: float, per_epoch: int) -> int:
        """Steps that fit: outputs are computed in the first epoch, and kept from then on."""
        first = per_epoch * (self.step + self.teacher) + self.held_out
        if seconds < first:
            left = seconds - self.held_out
            return max(1, int(left / (self.step + self.teacher)))
        later = self.step + self.held_out / per_epoch
        return per_epoch + int((seconds - first) / later)


def measure_pace(schedule: loop.Schedule, task: loop.Task, scratch: Path) -> Pace:
    """The pace of a few steps whose results are thrown away; the first two do not count."""
    import copy

    few = task.held_out[: schedule.batch]
    trial = replace(task, student=copy.deepcopy(task.student), held_out=few)
    train, teacher = partial(_train, trial, schedule, scratch), 0.0
    train(_TIMED)
    if task.teacher.kept is not None and not task.features:
        chosen = [int(i) for i in few]
        batch = tensors(task.inputs, task.data.feeds(chosen))
        alone = replace(task.teacher, kept=None)
        once = min(_seconds(lambda: alone.outputs(chosen, batch)) for _ in range(2))
        teacher = once * schedule.batch / len(few)
    started = _seconds(partial(train, 2))
    step = max(1e-4, (_seconds(partial(train, _TIMED)) - started) / (_TIMED - 2))
    judged = _seconds(lambda: loop.held_out_loss(trial, schedule))
    return Pace(step, teacher, judged * len(task.held_out) / len(few))


def _train(trial: loop.Task, schedule: loop.Schedule, scratch: Path, steps: int) -> None:
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        loop.train(trial, replace(schedule, steps=steps), Path(folder), _silent)


def _seconds(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def _silent(done: float, message: str) -> None:
    """No progress for what is thrown away."""


def done_facts(schedule: loop.Schedule, state: loop.State) -> dict[str, Any]:
    """What a training came to, for an artifact's facts."""
    return {
        "steps": schedule.steps,
        "steps_done": state.step,
        "best_step": state.best_step,
        "held_out": [state.start, *state.history],
    }


def budget_facts(options: Budget, schedule: loop.Schedule, where: str) -> dict[str, Any]:
    """What a budget in minutes became: another machine, or another day, gets other steps."""
    if not options.minutes:
        return {}
    told = f"{where}: {options.minutes:g} minutes became {schedule.steps} steps"
    return {
        "not_reproducible": f"{told}; `steps: {schedule.steps}` repeats them",
        "repeat": {"minutes": 0, "steps": schedule.steps},
    }
