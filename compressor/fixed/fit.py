"""From artifact to artifact for `quantize_fixed`: calibrate, train, write, and look again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from compressor.fixed.budget import narrowed
from compressor.fixed.build import build, calibrated
from compressor.fixed.read import FloatNet, read
from compressor.fixed.student import make_student
from compressor.recovery import loop
from compressor.recovery.schedule import budget_facts, decide, done_facts
from compressor.recovery.teacher import make_teacher
from compressor.sources.torch_io import tensors, threads
from compressor.training.original import original
from exporters._drop_in import require_drop_in
from exporters.base import Context, Env, Refusal, Samples
from runtimes.errors import BuildFailed, Unsupported, UsageError
from runtimes.fixed import reference
from runtimes.fixed.spec import SPEC, WEIGHTS, Format, Spec, write_spec, zeros
from runtimes.types import Artifact, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

STEP = "quantize_fixed"
EPOCHS = 30.0


def refusals(source: Artifact, options: Any, context: Context) -> list[Refusal]:  # noqa: ARG001
    """Reasons why this model has no fixed-point form."""
    return _read(source)[1]


def _read(source: Artifact) -> tuple[FloatNet | None, list[Refusal]]:
    if source.facts.get("state"):
        why = "it keeps a recurrent state between calls"
        return None, [Refusal("model", why, "use target openvino or onnxruntime")]
    return read(source)


def run(source: Artifact, options: Any, env: Env) -> Artifact:
    """The specification of `source`, with what it came to among the facts."""
    import torch

    net, found = _read(source)
    if net is None:
        raise Unsupported("has no fixed-point form", found, where=STEP)
    data = _calibration(env)
    with threads(env.context.threads), torch.random.fork_rng():
        student, notes, trained = _student(net, source.inputs, data, options, env)
        spec = build(student, options.overflow)
    write_spec(spec, env.work)
    notes = [*source.facts.get("notes", []), _told(spec, options), *notes]
    notes += _checked(spec, data, options)
    none, every = zeros(spec)
    facts = {**source.facts, **trained, "quantized": True, "notes": notes}
    facts["fixed"] = {"zero_weights": none, "weights": every, "bits": dict(student.bits)}
    facts["requested"] = [
        {"layer": layer.name, "op": layer.op, "requested": str(layer.format), "reason": ""}
        for layer in spec.layers
    ]
    facts["model_files"] = [SPEC, WEIGHTS]
    made = Artifact.write(env.work, "fixed", SPEC, source.inputs, source.outputs, facts)
    return require_drop_in(source, made)


def _calibration(env: Env) -> Samples:
    data = env.data.get("calibration") or env.data.get("training")
    if data is None or not len(data):
        raise UsageError(
            "no data to find formats with", where=STEP,
            fix="add data.training (trained in fixed point) or data.calibration (only rounded)",
        )  # fmt: skip
    return data


def _student(
    net: FloatNet, inputs: Sequence[TensorSpec], data: Samples, options: Any, env: Env
) -> tuple[Any, list[str], dict[str, Any]]:
    """The student as it ships, notes, and facts of its training."""
    bits = {layer.name: options.weight_bits for layer in net.weighted}
    few, given = _batches(inputs, data, options.samples), None
    if options.input_format:
        signed, integer, fraction = options.input_format
        given = Format(bool(signed), integer, fraction, options.rounding)

    def fresh(steps: int) -> Any:
        student = make_student(net, bits, options.per_channel, options.zeros, steps)
        calibrated(
            student, few, options.activation_bits, given, options.input_bits, options.rounding
        )
        return student

    if "training" not in env.data:
        notes = ["rounded without training: no data.training was given"]
        return fresh(1).eval(), notes, {}
    task = _task(fresh(1), inputs, options, env)
    schedule = decide(
        options, task, env.checkpoint, env.scratch,
        seed=env.context.seed, decay=0.0, bfloat16=False, epochs=EPOCHS,
    )  # fmt: skip
    task.student = fresh(schedule.steps)
    state = loop.train(
        task, schedule, env.checkpoint, lambda done, text: env.progress(0.95 * done, text)
    )
    notes = [_told_training(state, schedule, task)]
    if options.lut_budget:
        notes += narrowed(task, schedule, options, env)
    facts = {"training": done_facts(schedule, state)} | budget_facts(options, schedule, STEP)
    return task.student, notes, facts


def _batches(inputs: Sequence[TensorSpec], data: Samples, samples: int) -> list[Sequence[Tensor]]:
    rows = list(range(min(samples, len(data))))
    pieces = [rows[i : i + 64] for i in range(0, len(rows), 64)]
    return [tensors(inputs, data.feeds(piece)) for piece in pieces]


def _task(student: Any, inputs: Sequence[TensorSpec], options: Any, env: Env) -> loop.Task:
    data = env.data["training"]
    if len(data) < 2 or data.ragged:
        raise UsageError("too few samples, or of several shapes", where="data.training")
    teacher = make_teacher(original(env), inputs, data, False, env.checkpoint)
    order = np.random.default_rng([env.context.seed, 2**31]).permutation(len(data))
    held = min(2000, max(1, round(options.held_out * len(data))))
    scores = (0, -1) if options.aim == "scores" else None
    return loop.Task(
        student, teacher, inputs, data, order[held:], order[:held], STEP, scores=scores
    )


def _told_training(state: loop.State, schedule: loop.Schedule, task: loop.Task) -> str:
    epochs = state.step * schedule.batch / max(1, len(task.train))
    return (
        f"trained in fixed point without labels in {state.step} steps ({epochs:.1f} epochs): "
        f"distance to the original on {len(task.held_out)} held-out training samples "
        f"{state.start:.4g} → {state.best:.4g}"
    )


def _told(spec: Spec, options: Any) -> str:
    none, every = zeros(spec)
    bits = sorted({layer.attributes["weight"]["bits"] for layer in spec.layers
                   if "weight" in layer.attributes})  # fmt: skip
    wide = "–".join(str(b) for b in dict.fromkeys((bits[0], bits[-1]))) if bits else "0"
    return (
        f"fixed point: weights of {wide} bits, activations of {options.activation_bits}, inputs "
        f"{', '.join(str(i.format) for i in spec.inputs)}; {none:,} of {every:,} weights are zero "
        f"({none / max(1, every):.0%})"
    )


def _checked(spec: Spec, data: Samples, options: Any) -> list[str]:
    """What calibration data leaves its format; with WRAP that is an error."""
    feeds = data.feeds(list(range(min(options.samples, len(data)))))
    given = {i.name: reference.quantize(feeds[i.name], i.format) for i in spec.inputs}
    lost: dict[str, int] = {}
    found = reference.integers(spec, given, lost)
    over = {name: count / found[name].size for name, count in lost.items() if count}
    if over and options.overflow == "WRAP":
        worst = max(over, key=lambda name: over[name])
        raise BuildFailed(
            f"{len(over)} layers overflow on calibration data, and would wrap around: most in "
            f"{worst} ({over[worst]:.2%} of its values)",
            where=STEP,
            fix="set overflow: SAT, or more activation_bits",
        )
    return [f"{name} saturates on {share:.2%} of values" for name, share in over.items()
            if share > 0.01]  # fmt: skip
