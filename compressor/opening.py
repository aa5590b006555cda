"""Opens what a run is given, the model and its data, and finds what is wrong before any work."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compressor.env import Progress, split
from compressor.recipe import Recipe
from compressor.result import DataRecord, StepRecord
from compressor.schema import Problem, Problems
from compressor.sources import SourceSpec, identify, open_source, source_factory
from compressor.stateful import RecurrentState, Steps
from compressor.store import Store, key_of
from exporters._memory import release
from exporters.base import Samples
from runtimes.errors import CompressError
from runtimes.types import Artifact, TensorSpec, canonical

SOURCE_REV = 2
HELD_OUT = 0.25  # of the calibration data, when nothing else can tell how well outputs agree
HELD_OUT_LEAST = 128  # samples, up to half of them: fewer cannot show that 97 % agree
FROM_TRAINING = 512  # samples, when training data is given and calibration data is not


@dataclass(frozen=True)
class Opened:
    """The model and the data of a run.

    `data` holds what steps may see; `evaluation` is apart from it. `agreement_only` says that there
    is no evaluation data and a part of the calibration data, which no step sees, stands in to tell
    how far the outputs moved.
    """

    source: Artifact
    record: StepRecord
    identity: str
    factory: Callable[[], Any] | None
    data: dict[str, Samples]
    evaluation: Samples | None
    agreement_only: bool = False
    records: list[DataRecord] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def source_spec(recipe: Recipe, base_dir: Path, model: Any = None) -> SourceSpec:
    """What `model:` in the recipe, or an object handed to the API, says of the source."""
    inputs = {
        name: value if isinstance(value, Mapping) else {"shape": value}
        for name, value in recipe.model.inputs.items()
    }
    return SourceSpec(
        model=recipe.model.source if model is None else model,
        weights=recipe.model.weights,
        inputs=inputs,
        outputs=recipe.model.outputs,
        base_dir=base_dir,
        state=recipe.model.state,
    )


def open_model(
    spec: SourceSpec, store: Store, progress: Progress
) -> tuple[Artifact, str, StepRecord]:
    """The source as an artifact of the store, its identity, and how it got there."""
    started = time.monotonic()
    progress.begin("open the model")
    identity = hashlib.sha256(canonical(identify(spec))).hexdigest()
    parts = {"step": "source", "rev": SOURCE_REV, "identity": identity}
    key = key_of(parts)
    made, hit = store.build(key, parts, lambda place: open_source(spec, place.work))
    seconds = round(time.monotonic() - started, 3)
    release()
    progress.end("reused" if hit else f"{seconds} s")
    notes = [str(n) for n in made.facts.get("notes", [])]
    record = StepRecord(
        "source",
        None,
        None,
        key,
        "hit" if hit else "ran",
        seconds,
        "",
        made.digest(),
        made.size_bytes,
        notes=notes,
    )
    return made, identity, record


def open_all(
    recipe: Recipe,
    base_dir: Path,
    store: Store,
    progress: Progress,
    *,
    model: Any = None,
    data: Mapping[str, Any] | None = None,
) -> Opened:
    """The model and every data set of a run; `Problems` with all that is wrong with the data."""
    spec = source_spec(recipe, base_dir, model)
    source, identity, record = open_model(spec, store, progress)
    progress.begin("open the data")
    specs = {**recipe.data, **{k: v for k, v in (data or {}).items() if v is not None}}
    state = RecurrentState.of(source)
    sets = open_data_sets(specs, source.inputs, base_dir, state)
    progress.end(", ".join(f"{len(s):,} {role}" for role, s in sets.items()) or "none")
    records = [data_record(role, samples) for role, samples in sets.items()]
    warnings = data_warnings(sets)
    evaluation = sets.pop("evaluation", None)
    judged = evaluation is not None or recipe.evaluator is not None
    sets, held_out = _calibration_defaults(sets, judged, recipe.seed)
    if state is not None:  # steps see single steps; only scoring runs whole sequences
        from compressor.data.lint import FEW_CALIBRATION

        sets = {role: Steps(samples, state, recipe.seed) for role, samples in sets.items()}
        enough = len(sets.get("calibration", ())) >= FEW_CALIBRATION
        warnings = [w for w in warnings if not (enough and w.startswith("calibration data: only"))]
    return Opened(
        source=source,
        record=record,
        identity=identity,
        factory=source_factory(spec),
        data=sets,
        evaluation=evaluation or held_out,
        agreement_only=evaluation is None and held_out is not None,
        records=records,
        warnings=warnings,
    )


def _calibration_defaults(
    sets: dict[str, Samples], judged: bool, seed: int
) -> tuple[dict[str, Samples], Samples | None]:
    """Calibration data from training data if need be; a held-out part if nothing else judges."""
    if "calibration" not in sets and "training" in sets:
        whole = sets["training"]
        share = min(0.5, FROM_TRAINING / max(1, len(whole)))
        sets["calibration"] = split(whole, share, seed, "training data")[1]
    if not judged and "calibration" in sets and len(sets["calibration"]) >= 4:
        whole = sets["calibration"]
        share = min(0.5, max(HELD_OUT, HELD_OUT_LEAST / len(whole)))
        sets["calibration"], held_out = split(whole, share, seed, "calibration data")
        return sets, held_out
    return sets, None


def open_data_sets(
    specs: Mapping[str, Any],
    inputs: tuple[TensorSpec, ...],
    base_dir: Path,
    state: RecurrentState | None = None,
) -> dict[str, Samples]:
    """Every data set by role; `Problems` if one cannot be opened or evaluation overlaps another.

    With `state` they are sequences, see `compressor.stateful`.
    """
    from compressor.data import check_disjoint, open_data
    from compressor.data.lint import beside, require_varied
    from compressor.data.readers import array_names

    sets: dict[str, Any] = {}
    problems: list[Problem] = []
    for role, spec in specs.items():
        try:
            if state is not None:
                inputs = state.sequence_inputs(array_names(spec, base_dir))
            sets[role] = open_data(spec, role, inputs, base_dir)
            if role == "calibration":
                require_varied(sets[role])
        except CompressError as error:
            problems += error.problems if isinstance(error, Problems) else [Problem.of(error)]
    for role in sorted(set(sets) - {"evaluation"}):
        if "evaluation" in sets:
            try:
                check_disjoint(sets[role], sets["evaluation"])
            except CompressError as error:
                problems.append(Problem.of(error))
    if problems:
        raise Problems(problems)
    judges = sets.get("evaluation", sets.get("selection"))
    for samples in sets.values():
        if judges is not None and samples is not judges:
            new = [text for text in beside(samples, judges) if text not in samples.warnings]
            samples.warnings += new
    return sets


def data_warnings(sets: Mapping[str, Any]) -> list[str]:
    """What is suspicious about the data sets of a run, each sentence with its role."""
    return [f"{role} data: {text}" for role, s in sets.items() for text in s.warnings]


def data_record(role: str, samples: Any) -> DataRecord:
    """A data set as `run.json` keeps it."""
    return DataRecord(
        role,
        len(samples),
        samples.fingerprint,
        getattr(samples, "description", ""),
        list(getattr(samples, "warnings", [])),
    )


def typical_dims(source: Artifact, sets: Mapping[str, Samples]) -> dict[str, int]:
    """Named free dimension → its size in the first sample (2 for the batch), else what is known."""
    dims = {str(k): int(v) for k, v in dict(source.facts.get("dims", {})).items()}
    first = next(iter(sets.values()), None)
    feeds = first.feeds([0]) if first is not None and len(first) else {}
    batch = {spec.shape[0] for spec in source.inputs if spec.shape}
    for spec in source.inputs:
        if spec.name not in feeds:
            continue
        for dim, size in zip(spec.shape, feeds[spec.name].shape, strict=False):
            if isinstance(dim, str):  # a cache may be empty at first
                dims[dim] = 2 if dim in batch else max(1, int(size))
    return dims
