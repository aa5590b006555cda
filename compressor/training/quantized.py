"""From artifact to artifact for `train_quantized`: quantize, train the graph, write it back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from compressor.env import StepEnv
from compressor.quantization.onnx_pass import static_refusals
from compressor.quantization.substeps import run_steps
from compressor.recovery import loop
from compressor.recovery.losses import distance
from compressor.recovery.masks import hold_zeros
from compressor.recovery.schedule import budget_facts, decide, done_facts
from compressor.recovery.teacher import make_teacher
from compressor.sources.torch_io import tensors, threads
from compressor.training.graph import trainable, untrainable
from compressor.training.original import original
from compressor.training.values import write_back
from exporters._check import onnx_session, run_onnx
from exporters._drop_in import require_drop_in
from exporters._onnx_cleanup import clean
from exporters._onnx_graph import load_model, normalise, save_model
from exporters._onnx_opset import quantized_ops
from exporters.base import Context, Env, Refusal
from runtimes.errors import BuildFailed, Unsupported, UsageError
from runtimes.types import Artifact

if TYPE_CHECKING:
    from torch import nn

STEP = "train_quantized"


def refusals(source: Artifact, options: Any, context: Context) -> list[Refusal]:
    """Reasons why this model cannot be trained in integers."""
    if source.facts.get("state"):
        why = "it keeps a recurrent state between calls, which training does not carry along"
        return [Refusal("model", why, "use quantize_static or quantize_dynamic")]
    model = load_model(source.path)
    normal, _ = normalise(model)
    if found := untrainable(normal):
        return found
    if quantized_ops(model):
        return []
    del options
    return static_refusals(source, (), _for_qdq(context))


def _for_qdq(context: Context) -> Context:
    """OpenVINO computes something else where a Concat reads Q/DQ tensors: it stays float there."""
    if context.target != "openvino" or context.scheme is None:
        return context
    scheme = replace(context.scheme, ops=context.scheme.ops - {"Concat"})
    return replace(context, scheme=scheme)


def run(source: Artifact, options: Any, env: Env) -> Artifact:
    """Quantize what is float, train, and write the model with its facts."""
    import torch

    env = _inner(env)
    start, floats = _quantized(source, options, env)
    model = load_model(start.path)
    if found := untrainable(model):
        raise Unsupported("cannot be trained in integers", found, where=STEP)
    with threads(env.context.threads), torch.random.fork_rng():
        narrow = bool(env.context.scheme and env.context.scheme.reduce_range)
        student = trainable(model, floats, narrow)
        if "pattern" in source.facts:
            _hold_zeros(student)
        task = _task(student, source, options, env)
        schedule = decide(
            options, task, env.checkpoint, env.scratch,
            seed=env.context.seed, decay=0.0, bfloat16=False, epochs=2,
        )  # fmt: skip
        state = loop.train(
            task, schedule, env.checkpoint, lambda done, text: env.progress(0.1 + 0.9 * done, text)
        )
        _require_better(state)
        write_back(model, student)
        save_model(model, env.work / source.entry)
        written = _written_loss(task, env, source)
    facts = _facts(start, schedule, task, state, written)
    facts |= budget_facts(options, schedule, STEP)
    made = Artifact.write(
        env.work, source.format, source.entry, source.inputs, source.outputs, facts
    )
    return require_drop_in(source, made)


def _inner(env: Env) -> Env:
    """The same environment with calibration data, from training's where none was given."""
    data = dict(env.data)
    data.setdefault("calibration", data["training"])
    return StepEnv(
        env.work, env.scratch, env.checkpoint, _for_qdq(env.context), data, env.reference,
        env.factory, env.log, env.progress, env.trial, env.built,
    )  # fmt: skip


def _quantized(source: Artifact, options: Any, env: Env) -> tuple[Artifact, dict[str, Any]]:
    """The quantized start, and the float weights it was rounded from, by name."""
    env.progress(0.0, "quantizing")
    plain = _folded(source, env)
    steps: list[tuple[str, Mapping[str, Any]]] = []
    if not quantized_ops(load_model(plain.path)):
        given = {"method": options.method, "samples": options.samples}
        steps.append(("quantize_static", given))
        if options.weight_bits == 4:
            four = {"bits": 4, "share": options.share, "samples": options.samples}
            steps.append(("quantize_weights", four))
    return run_steps(plain, steps, env, "start"), _float_weights(plain)


def _folded(source: Artifact, env: Env) -> Artifact:
    """The source with its batch norms folded; a target's own format has them folded already."""
    model = load_model(source.path)
    clean(model)
    model, _ = normalise(model)
    folder = env.scratch / "folded"
    folder.mkdir(parents=True, exist_ok=True)
    save_model(model, folder / source.entry)
    return Artifact.write(
        folder, source.format, source.entry, source.inputs, source.outputs, source.facts
    )


def _float_weights(artifact: Artifact) -> dict[str, Any]:
    import onnx

    return {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in load_model(artifact.path).graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    }


def _hold_zeros(student: Any) -> None:
    """What `prune_pattern` made zero stays so, and with it what was rounded to zero before."""
    values = student.values
    weights = [stored.units for stored in values.stored.values()]
    for weight in (*weights, *(p for p in values.plain.values() if p.dim() > 1)):
        hold_zeros(weight)


# ---------------------------------------------------------------------------------- training


def _task(student: nn.Module, source: Artifact, options: Any, env: Env) -> loop.Task:
    import torch

    data = env.data["training"]
    if len(data) < 2:
        raise UsageError("one training sample is too few", where="data.training")
    teacher = make_teacher(original(env), source.inputs, data, False, env.checkpoint)
    order = np.random.default_rng([env.context.seed, 2**31]).permutation(len(data))
    least = min(16, max(1, len(data) // 4))
    held = min(2000, max(least, round(options.held_out * len(data))))
    student.to(memory_format=torch.channels_last)
    task = loop.Task(student, teacher, source.inputs, data, order[held:], order[:held], STEP)
    _check_outputs(task)
    return task


def _check_outputs(task: loop.Task) -> None:
    import torch

    chosen = [int(task.held_out[0])]
    batch = tensors(task.inputs, task.data.feeds(chosen))
    wanted = task.teacher.outputs(chosen, batch)
    with torch.no_grad():
        found = task.student(*batch)
    if [o.shape for o in wanted] != [o.shape for o in found]:
        raise Unsupported(
            f"outputs have the shapes {[tuple(o.shape) for o in found]}, the original's "
            f"{[tuple(o.shape) for o in wanted]}",
            where=STEP,
        )
    if not any(o.is_floating_point() for o in wanted):
        raise Unsupported("no output holds floats to train towards", where=STEP)


def _require_better(state: loop.State) -> None:
    if state.best < state.start:
        return
    raise UsageError(
        "training did not bring the quantized model closer to the original",
        where=STEP,
        expected=f"a held-out loss below {state.start:.4g}",
        got=f"{min(state.history, default=state.start):.4g} at best",
        fix="leave the step out, or train longer or with a lower lr",
    )


def _written_loss(task: loop.Task, env: Env, source: Artifact) -> float:
    """The held-out loss of the file as ONNX Runtime runs it; it must be that of the training."""
    import torch

    session, total = onnx_session(env.work / source.entry, env.context.threads), 0.0
    for start in range(0, len(task.held_out), 64):
        chosen = [int(i) for i in task.held_out[start : start + 64]]
        for part in [chosen] if not task.data.ragged else [[i] for i in chosen]:
            feeds = task.data.feeds(part)
            wanted = task.teacher.outputs(part, tensors(task.inputs, feeds))
            made = run_onnx(session, feeds)
            found = [torch.from_numpy(made[spec.name]) for spec in source.outputs]
            total += float(distance(found, wanted)) * len(part)
    return total / len(task.held_out)


def _facts(
    start: Artifact, schedule: loop.Schedule, task: loop.Task, state: loop.State, written: float
) -> dict[str, Any]:
    if not written <= 1.5 * state.best + 1e-3:
        raise BuildFailed(
            "the written model computes something else than the trained one",
            where=STEP,
            expected=f"a held-out loss of {state.best:.4g}",
            got=f"{written:.4g} in ONNX Runtime",
        )
    epochs = state.step * schedule.batch / max(1, len(task.train))
    told = (
        f"trained in integers without labels in {state.step} steps ({epochs:.1f} epochs): distance "
        f"to the original on {len(task.held_out)} held-out training samples {state.start:.4g} → "
        f"{state.best:.4g}, and {written:.4g} as ONNX Runtime runs the file"
    )
    return {
        **start.facts,
        "quantized": True,
        "training": {**done_facts(schedule, state), "written": written},
        "notes": [*start.facts.get("notes", []), told, *_left(task.student)],
    }


def _left(student: Any) -> Sequence[str]:
    stays = student.parts.stays
    return (
        [f"{len(stays)} activation scales were not trained: they are part of a function"]
        if stays
        else []
    )
