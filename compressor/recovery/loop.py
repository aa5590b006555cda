"""The loop of `recover` and `train_quantized`: one cycle, best kept, continues after a kill.

Everything random is drawn from (seed, epoch) or (seed, step), and the optimizer's state is in the
checkpoint, so a run that was killed ends with the same weights as one that was not.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compressor.modules import frozen
from compressor.recovery.features import WEIGHT, Feature, tapped
from compressor.recovery.labels import TaskLoss
from compressor.recovery.losses import distance, divergence
from compressor.recovery.teacher import Teacher
from compressor.sources.torch_io import call, channels_last, tensors
from exporters.base import Samples
from runtimes.errors import BuildFailed
from runtimes.types import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

CHECKPOINT = "training.pt"
SAVE_EVERY_S = 20.0
Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Schedule:
    """What is decided before the first step, and kept over a kill.

    Attributes:
        steps: of the optimizer, in all.
        batch: samples a step.
        peak: highest learning rate of the cycle.
        decay: weight decay of AdamW.
        patience: epochs without a better held-out loss before training stops; see `over`.
        seed: of every random choice.
        bfloat16: compute in bfloat16 where torch's autocast allows it.
    """

    steps: int
    batch: int
    peak: float
    decay: float
    patience: int
    seed: int
    bfloat16: bool

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear up over a tenth, cosine down (Smith, 1708.07120)."""
        warm = max(1, self.steps // 10)
        if step < warm:
            return self.peak * (step + 1) / warm
        turn = (step - warm) / max(1, self.steps - warm)
        return self.peak * (0.005 + 0.995 * 0.5 * (1 + math.cos(math.pi * turn)))

    def over(self, state: State) -> bool:
        """Whether all steps are done, or nothing has become better for long.

        A plateau in the first half is of the high rate: what it gains shows when the rate falls.
        Epochs of few steps say little: a tenth of all must have passed too.
        """
        late = state.step > self.steps // 2 and state.step - state.best_step >= self.steps // 10
        return state.step >= self.steps or (late and state.stale >= self.patience)


@dataclass
class Task:
    """What is trained towards what, on which samples.

    `scores` are the place among the outputs and the axis of class scores, whose probabilities count
    beside the distance. Features are a means: they are no part of the held-out loss, which chooses
    the best weights.
    """

    student: nn.Module
    teacher: Teacher
    inputs: Sequence[TensorSpec]
    data: Samples
    train: np.ndarray  # indices
    held_out: np.ndarray
    step: str = "recover"  # whose training it is, for errors
    features: Sequence[Feature] = ()
    labels: TaskLoss | None = None
    scores: tuple[int, int] | None = None


@dataclass
class State:
    """Where training is."""

    step: int = 0
    best: float = math.inf
    best_step: int = 0
    start: float = math.inf
    history: list[float] = field(default_factory=list)  # held-out loss, one an epoch

    @property
    def stale(self) -> int:
        """Epochs since the best one."""
        return len(self.history) - 1 - int(np.argmin(self.history)) if self.history else 0


def train(task: Task, schedule: Schedule, folder: Path, progress: Progress) -> State:
    """Train `task.student` in place and leave it with its best weights, in eval mode."""
    import torch

    optimizer = torch.optim.AdamW(task.student.parameters(), schedule.peak)
    _group_decay(task.student, optimizer, schedule.decay)
    state, best = _resume(task, optimizer, folder)
    if state.start == math.inf:
        state.start = state.best = held_out_loss(task, schedule)
        best = _copy(task.student)
    per_epoch = max(1, len(task.train) // schedule.batch)
    clock, order = _Clock(schedule.steps, state.step), np.zeros(0, np.int64)
    while not schedule.over(state):
        epoch, place = divmod(state.step, per_epoch)
        if place == 0 or not order.size:
            order = np.random.default_rng([schedule.seed, epoch]).permutation(task.train)
        chosen = [int(i) for i in order[place * schedule.batch : (place + 1) * schedule.batch]]
        loss = _step(task, schedule, optimizer, state.step, chosen)
        state.step += 1
        if state.step % per_epoch == 0 or state.step == schedule.steps:
            state.history.append(held_out_loss(task, schedule))
            if state.history[-1] < state.best:
                state.best, state.best_step = state.history[-1], state.step
                best = _copy(task.student)
            _save(folder, state, task, optimizer, best)
        elif clock.save_due():
            _save(folder, state, task, optimizer, best)
        if clock.tell_due(state.step):
            progress(state.step / schedule.steps, clock.text(state.step, per_epoch, loss))
    task.student.load_state_dict(best)
    task.student.eval()
    return state


def _group_decay(student: nn.Module, optimizer: Any, decay: float) -> None:
    """Weight decay on matrices and kernels only: biases and norms have no scale to hold down."""
    matrices = [p for p in student.parameters() if p.requires_grad and p.dim() > 1]
    vectors = [p for p in student.parameters() if p.requires_grad and p.dim() <= 1]
    defaults = dict(optimizer.param_groups[0])
    defaults.pop("params")
    optimizer.param_groups.clear()
    for parameters, amount in ((matrices, decay), (vectors, 0.0)):
        if parameters:
            optimizer.add_param_group({**defaults, "params": parameters, "weight_decay": amount})


def _step(
    task: Task, schedule: Schedule, optimizer: Any, step: int, chosen: Sequence[int]
) -> float:
    import torch

    _training_mode(task.student, len(chosen))
    for group in optimizer.param_groups:
        group["lr"] = schedule.rate(step)
    with torch.random.fork_rng():
        torch.manual_seed(schedule.seed * 1_000_003 + step)
        loss = _loss(task, schedule, chosen, [f.name for f in task.features])
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(task.student.parameters(), 5.0)
    optimizer.step()
    value = float(loss.detach())
    if not math.isfinite(value):
        raise BuildFailed(
            f"training diverged at step {step} (loss {value})",
            where=task.step,
            fix=f"set a lower lr than {schedule.peak:g}",
        )
    return value


def _loss(
    task: Task, schedule: Schedule, chosen: Sequence[int], names: Sequence[str] = ()
) -> Tensor:
    """The loss on some samples; `names` are the modules whose features count in it."""
    import torch

    batch = tensors(task.inputs, task.data.feeds(chosen))
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=schedule.bfloat16),
        tapped(task.student, names) as found,
    ):
        outputs = call(task.student, [channels_last(x) for x in batch])
    if not names:
        return _aim(task, outputs, task.teacher.outputs(chosen, batch), chosen)
    wanted, inner = task.teacher.inside(batch, names)
    hints = [f.of_original(inner[f.name]) for f in task.features]
    return _aim(task, outputs, wanted, chosen) + WEIGHT * distance(
        [found[name] for name in names], hints
    )


def _aim(
    task: Task, outputs: Sequence[Tensor], wanted: Sequence[Tensor], chosen: Sequence[int]
) -> Tensor:
    """How far from the original, mixed with the loss on labels where there is one."""
    far = distance(outputs, wanted)
    if task.scores is not None:
        place, axis = task.scores
        far = far + divergence(outputs[place], wanted[place], axis)
    return far if task.labels is None else task.labels.mixed(far, outputs, chosen)


def _training_mode(student: nn.Module, samples: int) -> None:
    """Norms learn their statistics, frozen ones do not; dropout stays off, as in the teacher."""
    from torch import nn

    student.train()
    for layer in student.modules():
        norm = isinstance(layer, nn.modules.batchnorm._BatchNorm)
        still = norm and (samples < 2 or frozen(layer))
        if isinstance(layer, nn.modules.dropout._DropoutNd) or still:
            layer.eval()


def held_out_loss(task: Task, schedule: Schedule) -> float:
    """The loss on the held-out samples, in eval mode: mean over samples."""
    import torch

    task.student.eval()
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(task.held_out), schedule.batch):
            chosen = [int(i) for i in task.held_out[start : start + schedule.batch]]
            total += float(_loss(task, schedule, chosen)) * len(chosen)
    return total / len(task.held_out)


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


# ------------------------------------------------------------------------------- checkpoints


def _save(folder: Path, state: State, task: Task, optimizer: Any, best: dict[str, Tensor]) -> None:
    import torch

    task.teacher.save()
    temporary = folder / (CHECKPOINT + ".tmp")
    whole = {
        "state": json.dumps(asdict(state)),
        "student": task.student.state_dict(),
        "optimizer": optimizer.state_dict(),
        "best": best,
    }
    torch.save(whole, temporary)
    os.replace(temporary, folder / CHECKPOINT)  # noqa: PTH105 - atomic


def _resume(task: Task, optimizer: Any, folder: Path) -> tuple[State, dict[str, Tensor]]:
    import torch

    path = folder / CHECKPOINT
    if not path.is_file():
        return State(), {}
    whole = torch.load(path, weights_only=True)
    task.student.load_state_dict(whole["student"])
    optimizer.load_state_dict(whole["optimizer"])
    return State(**json.loads(whole["state"])), whole["best"]


class _Clock:
    """When to save and what to tell; nothing that training depends on."""

    def __init__(self, steps: int, done: int) -> None:
        self.steps, self.first = steps, done
        self.began = self.saved = self.told = time.monotonic()

    def save_due(self) -> bool:
        """Whether `SAVE_EVERY_S` seconds have passed since the last time this was true."""
        due = time.monotonic() - self.saved > SAVE_EVERY_S
        if due:
            self.saved = time.monotonic()
        return due

    def tell_due(self, step: int) -> bool:
        """About twice a second, and at the end."""
        due = step == self.steps or time.monotonic() - self.told > 0.5
        if due:
            self.told = time.monotonic()
        return due

    def text(self, step: int, per_epoch: int, loss: float) -> str:
        """Epoch, loss, and the time left at the pace so far."""
        pace = (time.monotonic() - self.began) / max(1, step - self.first)
        left = pace * (self.steps - step)
        epochs = self.steps / per_epoch
        return f"epoch {step / per_epoch:.1f} of {epochs:.1f}, loss {loss:.4f}, {left:.0f} s left"
