"""The Python API: the same engine as the command, and the same result."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from compressor.choosing import choose_metric, load_evaluator
from compressor.env import Progress, Silent
from compressor.gates import check_gates
from compressor.metrics import Metric
from compressor.opening import open_all, source_spec, typical_dims
from compressor.plan import Plan, make_plan
from compressor.recipe import Recipe, load_recipe, recipe_folder
from compressor.result import Candidate, LedgerRow, RunRecord, TargetResult, Timing
from compressor.run import execute
from compressor.session import Request, step_threads
from compressor.sources import SourceSpec, source_kind
from compressor.stateful import RecurrentState
from compressor.store import Store
from exporters.base import Context, Samples
from runtimes.errors import GateFailed, Inconclusive
from runtimes.types import Artifact, TensorSpec


@dataclass(frozen=True)
class Result:
    """What `compress` returns.

    Attributes:
        record: everything that was found out; `run.json` holds the same.
        out: the output folder.
    """

    record: RunRecord
    out: Path

    @property
    def verdict(self) -> str:
        """`pass`, `fail`, `inconclusive` or `not_judged`: the worst of the targets'."""
        return self.record.state

    @property
    def exit_code(self) -> int:
        """What the command would have exited with."""
        return self.record.exit_code

    @property
    def artifacts(self) -> dict[str, Artifact]:
        """Target → the artifact that ships (the twin where nothing passed)."""
        return {t.name: Artifact.load(self.out / t.name) for t in self.record.targets if t.shipped}

    @property
    def measurements(self) -> dict[str, list[Timing]]:
        """Target → timings of what ships, one per batch size."""
        return {t: c.timings for t, c in self._shipped().items()}

    @property
    def ledger(self) -> dict[str, list[LedgerRow]]:
        """Target → bytes by tensor class of what ships."""
        return {t: c.ledger for t, c in self._shipped().items()}

    def _shipped(self) -> dict[str, Candidate]:
        return {t.name: t.candidate(t.shipped) for t in self.record.targets if t.shipped}

    def raise_for_verdict(self) -> None:
        """Raise `GateFailed` or `Inconclusive` unless every target passed."""
        if self.exit_code == 0:
            return
        reasons = "\n".join(_told(t) for t in self.record.targets if t.exit_code)
        if self.exit_code == Inconclusive.exit_code:
            raise Inconclusive(reasons, where=str(self.out), fix="give more evaluation samples")
        raise GateFailed(reasons, where=str(self.out), fix="see report.html in that folder")


def _told(target: TargetResult) -> str:
    """A target's reason, and which gate stopped each of its candidates."""
    stopped = [
        f"  {candidate.name}: {check.gate}: {check.text}"
        for candidate in target.candidates
        for check in candidate.checks
        if check.state in ("fail", "inconclusive")
    ]
    return "\n".join([f"{target.name}: {target.reason}", *stopped])


def compress(
    model: Any,
    recipe: str | Path | Mapping[str, Any] | Recipe | None = None,
    *,
    calibration: Any = None,
    training: Any = None,
    selection: Any = None,
    evaluation: Any = None,
    out: str | Path | None = None,
    store: str | Path | None = None,
    effort: Literal["quick", "default", "certify"] | None = None,
    require_judged: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Compress `model` for every target of `recipe` and judge the result.

    Args:
        model: an `nn.Module`, or the path of an ONNX file, a `.pt2` or a recipe's
            `module:function`; None takes the recipe's `model.source`. A module's inputs are
            named in the recipe (`model.inputs`).
        recipe: a recipe's path or mapping; None means ONNX Runtime with its defaults.
        calibration: sets the integer ranges. Like every data argument: arrays by input name (with
            `labels`), an iterable of feeds or (feeds, label), a torch Dataset or DataLoader, or
            whatever a recipe may name; it takes the place of the recipe's `data`.
        training: for recovery after pruning; needs no labels.
        selection: to choose by while searching.
        evaluation: what the verdict is made on; nothing else sees it.
        out: output folder; a new folder under the system's temporary one if left out.
        store: where finished steps are kept; see `compressor.store`.
        effort: overrides the recipe's `measure.effort`.
        require_judged: a gate that could not be judged makes the run inconclusive.
        progress: told how far the run is; nothing is printed by default.

    Raises:
        CompressError: typed as in `runtimes.errors`; a failed gate raises nothing, see
            `Result.raise_for_verdict`.
    """
    loaded, base_dir = _recipe(recipe)
    if isinstance(model, (str, Path)):
        loaded = replace(loaded, model=replace(loaded.model, source=str(model)))
        model, base_dir = None, base_dir if recipe is not None else Path.cwd()
    folder = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="compress-"))
    given = {
        "calibration": calibration,
        "training": training,
        "selection": selection,
        "evaluation": evaluation,
    }
    request = Request(
        recipe=loaded,
        base_dir=base_dir,
        out=folder.absolute(),
        store=Store(Path(store) if store is not None else None),
        model=model,
        data={role: value for role, value in given.items() if value is not None},
        progress=progress or Silent(),
        command="compressor.compress(…)",
        require_judged=require_judged,
        effort=effort,
    )
    return Result(execute(request), request.out)


def _recipe(recipe: str | Path | Mapping[str, Any] | Recipe | None) -> tuple[Recipe, Path]:
    if recipe is None:
        return load_recipe({"targets": {"onnxruntime": {}}}), Path.cwd()
    if isinstance(recipe, Recipe):
        return recipe, Path.cwd()
    loaded = load_recipe(recipe)
    return loaded, Path.cwd() if isinstance(recipe, Mapping) else recipe_folder(Path(recipe))


def make_plan_for(recipe: Recipe, base_dir: Path, *, deep: bool = False) -> Plan:
    """What a run would do, or `Problems` with everything that stands in its way.

    Nothing is written outside a temporary folder. A torch module is built and looked at only with
    `deep`; an ONNX file always is.
    """
    from compressor.opening import data_warnings, open_data_sets

    spec = source_spec(recipe, base_dir)
    with tempfile.TemporaryDirectory(prefix="compress-plan-") as folder:
        fmt = {"factory": "module", "instance": "module"}.get(kind := source_kind(spec), kind)
        if fmt != "onnx" and not deep:
            inputs = named_inputs(spec)
            state = RecurrentState(recipe.model.state, inputs) if recipe.model.state else None
            sets = open_data_sets(recipe.data, inputs, base_dir, state) if inputs else {}
            warnings = data_warnings(sets)
            evaluation = sets.pop("evaluation", None)
            metric = _metric(recipe, base_dir, evaluation)
            known = "evaluation" in recipe.data if not inputs else _judges(metric)
            planned = make_plan(
                recipe,
                source=None,
                source_format=fmt,
                inputs=inputs,
                roles=frozenset(sets or recipe.data) - {"evaluation"},
                context=Context(seed=recipe.seed, threads=step_threads()),
                labelled=known,
            )
            told = (*warnings, *planned.warnings)
            return _with_gates_checked(replace(planned, warnings=told), metric)
        opened = open_all(recipe, base_dir, Store(Path(folder)), Silent())
        dims = typical_dims(opened.source, opened.data)
        metric = _metric(recipe, base_dir, None if opened.agreement_only else opened.evaluation)
        planned = make_plan(
            recipe,
            source=opened.source,
            source_format=opened.source.format,
            inputs=opened.source.inputs,
            roles=frozenset(opened.data),
            context=Context(dims=dims, seed=recipe.seed, threads=step_threads()),
            labelled=_judges(metric),
        )
        planned = replace(planned, warnings=(*opened.warnings, *planned.warnings))
        return _with_gates_checked(_looked_into(planned, opened.source), metric)


def _looked_into(planned: Plan, source: Artifact) -> Plan:
    """`planned` with what becomes of an ONNX source's recurrent layers, and the memory it takes."""
    if source.format != "onnx":
        return planned
    from compressor.quantization.calibration_memory import held
    from compressor.quantization.recurrent_plan import recurrent_plan
    from exporters._onnx_graph import load_model

    model = load_model(source.path)
    told = []
    for target in planned.targets:
        steps = [*planned.shared, *(step for rung in target.rungs for step in rung.steps)]
        dynamic = next((s.options for s in steps if s.name == "quantize_dynamic"), None)
        lines = recurrent_plan(model, target.context, dynamic)
        static = next((s.options for s in steps if s.name == "quantize_static"), None)
        memory = (
            ""
            if static is None
            else str(held(model, planned.context.dims, static.method, target.target.name))
        )
        told.append(replace(target, recurrent=tuple(lines), memory=memory))
    return replace(planned, targets=tuple(told))


def _metric(recipe: Recipe, base_dir: Path, evaluation: Samples | None) -> Metric | None:
    """What the run will judge accuracy by; None without evaluation data."""
    evaluator = load_evaluator(recipe.evaluator, base_dir)
    return choose_metric(
        recipe.metric, evaluation, base_dir, agreement_only=False, evaluator=evaluator
    )


def _judges(metric: Metric | None) -> bool:
    return metric is not None and metric.kind != "free"


def _with_gates_checked(planned: Plan, metric: Metric | None) -> Plan:
    """`planned`, once its gates fit the metric's units."""
    if metric is not None and _judges(metric):
        for target in planned.targets:
            check_gates(target.gates, metric.name, metric.fraction)
    return planned


def named_inputs(spec: SourceSpec) -> tuple[TensorSpec, ...]:
    """The inputs as the recipe names them; empty where it leaves them to the file."""
    return tuple(
        TensorSpec(name, str(value.get("dtype", "float32")), tuple(value["shape"]))
        for name, value in spec.inputs.items()
    )
