"""Train a compressed module back towards the original, without labels.

Knowledge distillation from `env.reference`: the original's outputs on the training data are the
aim (Hinton et al., arXiv 1503.02531, 2015; why squared error: `recovery/losses.py`), with features
inside it and a loss on labels beside them where the user asks for these. Outputs are computed once;
training is deterministic for a given number of threads, keeps the weights that do best on a
held-out part of the training data, and continues where it was killed. Zeros that `prune_pattern`
made stay zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from compressor.modules import load_module, reference_of, write_module
from compressor.recovery import loop
from compressor.recovery.features import choose_features
from compressor.recovery.labels import TaskLoss, check_labels, make_task_loss, scores_of
from compressor.recovery.masks import hold
from compressor.recovery.schedule import (
    EPOCHS,
    budget_facts,
    check_budget,
    decide,
    done_facts,
    out_of_range,
)
from compressor.recovery.teacher import make_teacher
from compressor.sources.torch_io import batch_size, call, tensors, threads
from exporters.base import Context, Env, Refusal, Samples, installed
from runtimes.errors import Unsupported, UsageError
from runtimes.types import Artifact

if TYPE_CHECKING:
    from torch import Tensor, nn

REV = 5
ACCEPTS = frozenset({"module"})
PRODUCES = "module"
NEEDS = frozenset({"training"})
USES: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Options:
    """How long and how.

    Attributes:
        epochs: passes over the training data (may be a fraction); 3 where nothing else is said.
        minutes: instead of epochs, a budget on this machine; it becomes a number of steps.
        steps: instead of both, the number of optimizer steps.
        batch: samples a step.
        lr: highest learning rate (AdamW, one cycle).
        decay: weight decay.
        patience: epochs without improvement on the held-out samples before it stops, in the second
            half only: a plateau at the high learning rate of the first is no reason to.
        held_out: fraction of the training data that only chooses the best weights.
        precision: `auto` computes in bfloat16 where the processor multiplies it faster.
        features: inner tensors to draw towards the original's as well: a number of them, found
            automatically and spread over the depth, or names of modules. The original then runs
            beside the student in every step. `auto` is none: at equal minutes three brought a
            residual network nothing clear (benchmarks/recovery).
        aim: what counts as close to the original: the distance of the `outputs`, or, of class
            `scores` among them, their probabilities as well. A step takes longer so: in 45 seconds
            neither a classifier nor a small GPT came closer (benchmarks/recovery).
        labels: share of the aim, 0 to 1, that is a loss on the training data's labels: the
            cross-entropy of class numbers, or `loss`.
        loss: `package.module:function`, called with (outputs by name, labels of a batch), torch
            tensors [n, …], for a scalar tensor.
        rounds: prune and recover in turns, of a `prune_channels` right before this step that keeps
            a fraction: each round keeps the same share of what the one before left, and the last
            recovery has half of the budget. `auto` is one round: more were worse where they were
            measured, with little time (benchmarks/recovery).
    """

    epochs: float = 0
    minutes: float = 0
    steps: int = 0
    batch: int = 128
    lr: float = 1e-3
    decay: float = 1e-2
    patience: int = 5
    held_out: float = 0.02
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    features: int | str | tuple[str, ...] = "auto"
    aim: Literal["outputs", "scores"] = "outputs"
    labels: float = 0
    loss: str = field(default="", metadata={"code": True})
    rounds: int | str = "auto"

    def __post_init__(self) -> None:
        check_budget(self, "recover")
        if not 0 <= self.labels <= 1:
            raise out_of_range("recover.labels", "between 0 and 1", self.labels)
        _check_number("features", self.features, 0, ("auto", "none"))
        _check_number("rounds", self.rounds, 1, ("auto",))
        if self.loss and not self.labels:
            raise UsageError(
                "a loss, and no share of the aim for it", where="recover.loss",
                fix="set labels: 0.5, or leave the loss out",
            )  # fmt: skip


def _check_number(name: str, value: object, least: int, words: Sequence[str]) -> None:
    """Raise `UsageError` for a number below `least`, and for text that is none of `words`."""
    if (isinstance(value, int) and value < least) or (
        isinstance(value, str) and value not in words
    ):
        expected = f"{' or '.join(words)}, or a number from {least}"
        raise UsageError(
            "not understood", where=f"recover.{name}", expected=expected, got=str(value)
        )


def tools() -> dict[str, str]:
    """Torch and safetensors; MissingTool where one is not installed."""
    return installed(("torch", "safetensors"), "recover", "pip install 'edge-compressor[torch]'")


def check_data(options: Options, data: Mapping[str, Samples]) -> None:
    """Raise `UsageError` before any work where labels are asked for that are not there."""
    if options.labels and "training" in data:
        check_labels(data["training"], options.loss)


def refusals(source: Artifact, options: Options, context: Context) -> list[Refusal]:  # noqa: ARG001
    """Formats that cannot be trained."""
    if source.format in ACCEPTS:
        return []
    return [
        Refusal(
            source.format,
            f"a model of format {source.format} cannot be trained",
            "give the torch module (source: 'package.module:function' and weights)",
        )
    ]


def run(source: Artifact, options: Options, env: Env) -> Artifact:
    """Distil the original into the module in `source`.

    Frozen weights stay as they are, and the statistics of frozen batch norms, unless all are, as
    after an export: then it says nothing about any of them, and all are trained, which a note says.
    The factory freezes them again.
    Raises `UsageError` where training changed nothing for the better, or there is nothing to train;
    `BuildFailed` where it diverged, `Unsupported` where the outputs hold nothing to train towards.
    """
    import torch

    data = env.data["training"]
    with threads(env.context.threads), torch.random.fork_rng():
        task, thawed = _task(source, options, env, data)
        schedule = decide(
            options, task, env.checkpoint, env.scratch,
            seed=env.context.seed, decay=options.decay, bfloat16=_bfloat16(options.precision),
            epochs=EPOCHS,
        )  # fmt: skip
        state = loop.train(task, schedule, env.checkpoint, env.progress)
    if not state.best < state.start:
        raise UsageError(
            "training did not bring the module closer to the original",
            where="recover",
            expected=f"a held-out loss below {state.start:.4g}",
            got=f"{min(state.history, default=state.start):.4g} at best",
            fix="leave the step out, or train longer or with a lower lr",
        )
    factory, facts = reference_of(source), _facts(source, schedule, task, state)
    facts["notes"] += thawed
    return write_module(
        env.work, task.student, source.inputs, source.outputs,
        factory=factory, facts=facts | budget_facts(options, schedule, "recover"),
    )  # fmt: skip


def _task(
    source: Artifact, options: Options, env: Env, data: Samples
) -> tuple[loop.Task, list[str]]:
    """What is trained, and notes."""
    import torch

    if len(data) < 2:
        raise UsageError("one training sample is too few", where="data.training")
    env.progress(0.0, "getting ready")
    student = load_module(source, env.factory)
    thawed = _thawed(student)
    original = load_module(env.reference, env.factory).eval()
    few = list(range(min(8, len(data))))[: _most(source, data)]
    batch = tensors(source.inputs, data.feeds(few))
    found = _check_outputs(student, original, batch)
    labels = _labels(source, options, env, data, (few, found))
    removed = source.facts.get("removed", {})
    features = choose_features(student, original, batch, removed, options.features)
    teacher = make_teacher(
        original, source.inputs, data, _bfloat16(options.precision), env.checkpoint
    )
    order = np.random.default_rng([env.context.seed, 2**31]).permutation(len(data))
    held = min(2000, max(1, round(options.held_out * len(data))))
    student.to(memory_format=torch.channels_last)
    hold(student, source.facts)
    task = loop.Task(
        student, teacher, source.inputs, data, order[held:], order[:held],
        features=features, labels=labels, scores=_scores(source, options, data, found),
    )  # fmt: skip
    return task, thawed


def _scores(
    source: Artifact, options: Options, data: Samples, outputs: Sequence[Tensor]
) -> tuple[int, int] | None:
    """The place among the outputs and the axis of class scores, where their probabilities count."""
    if options.aim == "outputs":
        return None
    names = [spec.name for spec in source.outputs]
    found = scores_of(dict(zip(names, outputs, strict=True)), data.labels)
    if found is not None:
        return names.index(found[0]), found[1]
    place = next(i for i, out in enumerate(outputs) if out.is_floating_point())
    return place, -1 if outputs[place].dim() == 3 else 1


def _thawed(student: nn.Module) -> list[str]:
    """Unfreeze a module whose weights are all frozen, and say so; `UsageError` where it has none.

    `prune_channels` takes such a module the same way.
    """
    weights = [p for p in student.parameters() if p.is_floating_point()]
    if not weights:
        raise UsageError(
            "the module has no weights to train", where="recover",
            expected="a parameter of floats", got="none", fix="leave the step out",
        )  # fmt: skip
    if any(p.requires_grad for p in weights):
        return []
    for p in weights:
        p.requires_grad_(True)
    return ["recover trained all weights: the module has them all frozen (requires_grad is False)"]


def _labels(
    source: Artifact,
    options: Options,
    env: Env,
    data: Samples,
    example: tuple[Sequence[int], Sequence[Tensor]],
) -> TaskLoss | None:
    if not options.labels:
        return None
    function = env.function(options.loss) if options.loss else None
    names = [spec.name for spec in source.outputs]
    return make_task_loss(options.labels, names, data, example, function, options.loss)


def _most(source: Artifact, data: Samples) -> int:
    return batch_size(source.inputs, data, 8)


def _check_outputs(
    student: nn.Module, original: nn.Module, batch: Sequence[Tensor]
) -> list[Tensor]:
    """The student's outputs, which have the shapes of the original's."""
    import torch

    with torch.no_grad():
        wanted, found = call(original, batch), call(student, batch)
    if [o.shape for o in wanted] != [o.shape for o in found]:
        raise Unsupported(
            f"outputs have the shapes {[tuple(o.shape) for o in found]}, the original's "
            f"{[tuple(o.shape) for o in wanted]}",
            where="recover",
        )
    if not any(o.is_floating_point() for o in wanted):
        raise Unsupported("no output holds floats to train towards", where="recover")
    return found


def _bfloat16(precision: str) -> bool:
    import torch

    if precision == "auto":  # without the instructions torch emulates it, slower than float32
        multiplies = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported() and multiplies)
    return precision == "bfloat16"


def _facts(
    source: Artifact, schedule: loop.Schedule, task: loop.Task, state: loop.State
) -> dict[str, Any]:
    epochs = state.step * schedule.batch / max(1, len(task.train))
    how = "without labels"
    if task.labels is not None:
        how = f"with {task.labels.told} on labels at {task.labels.weight:.0%}"
    near = "distance to the original" + (" and divergence from its scores" if task.scores else "")
    aim = near if task.labels is None else f"that mixed with the {near}"
    told = (
        f"recovered {how} in {state.step} steps ({epochs:.1f} epochs): {aim} on "
        f"{len(task.held_out)} held-out training samples {state.start:.4g} → {state.best:.4g}"
    )
    return {
        **source.facts,
        "recover": {
            **done_facts(schedule, state),
            "precision": "bfloat16" if schedule.bfloat16 else "float32",
            "features": [f.name for f in task.features],
        },
        "notes": [*source.facts.get("notes", []), told],
    }
