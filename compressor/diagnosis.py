"""Why a candidate lost accuracy, for its record: damage per layer, the first diverging tensor."""

from __future__ import annotations

import tempfile
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from compressor.engine import LOG, Engine
from compressor.env import StepEnv
from compressor.plan import PlannedStep, PlannedTarget
from compressor.quantization.damage import damage
from compressor.quantization.divergence import divergence
from compressor.quantization.sensitivity import Budget, profiled
from compressor.quantization.workbench import open_workbench
from compressor.result import Candidate, Damage, Divergence
from exporters._check import ort_errors
from exporters.base import Samples, Trial
from runtimes.errors import CompressError, UsageError
from runtimes.types import Artifact

SAMPLES = 64
SECONDS = {"quick": 20.0}  # by effort
DEFAULT_SECONDS = 60.0
LIFT_DB = 6.0  # a candidate that lost too much is to lose at most a quarter of that


def float_model(engine: Engine, planned: PlannedTarget, compressed: Artifact) -> Artifact:
    """`compressed` (the source after the shared steps) in the target's format, in float.

    These are the twin's steps, but at the device's default precision and with the recipe's `keep`.
    """
    steps = [_as_candidate(step, planned) for step in planned.twins[0].steps]
    if compressed.format == "onnx":
        steps = [step for step in steps if step.name != "to_onnx"]
    return engine.advance(compressed, tuple(steps), f"{planned.target.name} float")


def _as_candidate(step: PlannedStep, planned: PlannedTarget) -> PlannedStep:
    options = step.options
    if any(field.name == "execution" for field in fields(options)):
        options = replace(options, execution="default")
    return replace(step, options=options, context=replace(step.context, keep=planned.context.keep))


def calibration(engine: Engine, where: str) -> Samples:
    """The calibration data; `UsageError` without any."""
    found = engine.data.get("calibration")
    if found is None:
        raise UsageError(
            "sensitivity is measured on calibration data, and none is given",
            where=where,
            expected="about 300 samples as the model sees them",
            fix="add --calibration DATA, or data.calibration in the recipe",
        )
    return found


def measure_damage(
    engine: Engine,
    planned: PlannedTarget,
    source: Artifact,
    precision: str,
    *,
    samples: int = SAMPLES,
    minutes: float | None = None,
    **more: Any,
) -> Damage:
    """Damage per layer of the float model `source` of a target, as `quantization.damage` finds it.

    `more` is handed on: `target_db`, `lift_db` and `also`.
    """
    data = calibration(engine, planned.target.name)
    budget = Budget(minutes)
    with tempfile.TemporaryDirectory(prefix="compress-sensitivity-") as folder:
        env = _env(engine, planned, source, Path(folder))
        return damage(
            open_workbench(source, env, samples),
            precision,
            budget,
            profile=profiled(source, data, planned.context.device),
            told=engine.progress.update,
            **more,
        )


def _env(engine: Engine, planned: PlannedTarget, source: Artifact, folder: Path) -> StepEnv:
    work, scratch, checkpoint = (folder / name for name in ("work", "scratch", "kept"))
    for place in (work, scratch, checkpoint):
        place.mkdir()
    roles = {r: d for r, d in engine.data.items() if r in ("calibration", "selection")}
    return StepEnv(
        work,
        scratch,
        checkpoint,
        planned.context,
        roles,
        source,
        engine.factory,
        LOG,
        engine.progress.update,
        _no_trial,
        _no_build,
    )


def _no_build(_artifact: Artifact, _target: str | None) -> tuple[Artifact, str]:
    raise UsageError("measuring sensitivity times no builds", where="sensitivity")


def _no_trial(_artifact: Artifact) -> Trial:
    raise UsageError("measuring sensitivity builds no candidates", where="sensitivity")


def diagnosed(
    engine: Engine,
    planned: PlannedTarget,
    compressed: Artifact,
    candidate: Candidate,
    artifact: Artifact,
    *,
    effort: str = "default",
    deadline: float | None = None,
) -> Candidate:
    """`candidate`, which lost too much accuracy, with the damage of its layers and its divergence.

    What cannot be measured becomes a note: a diagnosis never fails a run. At most about 60 s
    (20 s with effort `quick`), and nothing past `deadline` (of the monotonic clock).
    """
    seconds = SECONDS.get(effort, DEFAULT_SECONDS)
    if deadline is not None:
        seconds = min(seconds, deadline - time.monotonic())
    if "calibration" not in engine.data or seconds <= 0:
        return candidate
    started = time.monotonic()
    # Libraries raise ValueError and KeyError for graphs they do not know: no reason to lose a run.
    cannot: tuple[type[Exception], ...] = (CompressError, ValueError, LookupError, *ort_errors())
    try:
        source = float_model(engine, planned, compressed)
        engine.progress.begin(f"{planned.target.name} {candidate.name}: damage per layer")
        found: Divergence = divergence(
            source, artifact, engine.data["calibration"], runtime=planned.runs_on[0]
        )
        candidate = replace(candidate, divergence=found)
        if precision := precision_of(candidate):
            made = measure_damage(
                engine,
                planned,
                source,
                precision,
                minutes=seconds / 60,
                target_db=0.0,
                lift_db=_missing_db(planned, candidate),
            )
            candidate = replace(candidate, damage=made)
        engine.progress.end(f"{time.monotonic() - started:.1f} s")
    except cannot as error:
        lines = [getattr(error, "what", ""), *str(error).splitlines(), type(error).__name__]
        what = next(filter(None, lines))
        engine.progress.end("not measured")
        note = f"why it lost accuracy could not be measured: {what}"
        return replace(candidate, notes=[*candidate.notes, note])
    return candidate


def _missing_db(planned: PlannedTarget, candidate: Candidate) -> float:
    """How much the outputs' SQNR is to rise: what an `sqnr` gate misses, at least `LIFT_DB`."""
    has = candidate.comparison.sqnr_db if candidate.comparison else None
    missing = [g.limit - has for g in planned.gates if g.metric == "sqnr" and has is not None]
    return max([LIFT_DB, *missing])


def precision_of(candidate: Candidate) -> str:
    """The precision that most of a candidate is in, from its bytes and steps; empty for float."""
    kinds = {row.kind: row.size_bytes for row in candidate.ledger}
    four = sum(size for kind, size in kinds.items() if "int4" in kind)
    eight = sum(size for kind, size in kinds.items() if "weights int8" in kind)
    integer = any(
        step.startswith(("quantize_static", "quantize_mixed", "train_quantized"))
        for step in candidate.steps
    )
    if integer:
        return "int8-w4" if four else "int8"
    if four or eight:
        return "w4" if four > eight else "w8"
    return "half" if any("half" in kind for kind in kinds) else ""
