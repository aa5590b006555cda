"""The loop: open, plan, compress, judge per target, write. `execute` is the whole product."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import compressor
from compressor import output
from compressor.engine import Engine
from compressor.env import Progress, Silent
from compressor.gates import check_gates
from compressor.judging import Judge, with_budget
from compressor.macs import count_macs
from compressor.metrics.steps import over_steps
from compressor.opening import Opened, open_all, typical_dims
from compressor.package import build_package
from compressor.plan import Plan, PlannedStep, PlannedTarget, make_plan
from compressor.recipe import LOCKED, Recipe, recipe_json
from compressor.result import Reference, RunRecord, State, TargetResult
from compressor.stateful import RecurrentState, Steps
from compressor.store import Store
from compressor.targets import Outcome, run_target
from compressor.trials import selecting, trial
from exporters.base import Context, Samples, Trial
from runtimes.base import load_runtime
from runtimes.host import facts
from runtimes.types import Artifact

EXIT_ORDER = (70, 2, 7, 6, 5, 4, 1, 3, 0)
STEP_THREADS = 2
SCORING_THREADS = 2
PACKAGE_BATCH = 4  # samples in a package's reference inputs


@dataclass(frozen=True)
class Request:
    """What one run is asked for.

    Attributes:
        recipe: validated.
        base_dir: folder against which the recipe's paths and modules are resolved.
        out: output folder.
        store: where finished steps lie.
        model: a torch module or path that takes the place of `recipe.model.source`.
        data: objects by role (arrays, iterables, data sets) that take the place of `recipe.data`.
        progress: where to tell how far the run is.
        command: as the user typed it, for the report.
        require_judged: a gate that could not be judged makes the run inconclusive.
        on_inconclusive: `fail` (exit 3) or `warn` (exit 0 with a warning).
        effort: overrides `recipe.measure.effort`.
    """

    recipe: Recipe
    base_dir: Path
    out: Path
    store: Store
    model: Any = None
    data: Mapping[str, Any] = field(default_factory=dict)
    progress: Progress = field(default_factory=Silent)
    command: str = ""
    require_judged: bool = False
    on_inconclusive: Literal["fail", "warn"] = "fail"
    effort: str | None = None


def execute(request: Request) -> RunRecord:
    """Run everything and write the output folder; the record of it.

    Raises:
        UsageError, Unsupported, …: before any target was tried. A target's own failure is part of
            the record.
    """
    started = time.monotonic()
    began = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    with output.locked(request.out):
        run = _Run(request)
        record = run.record(began)
        record = replace(record, seconds=round(time.monotonic() - started, 1))
        output.write_run(record, request.out, run.lock(record))
    return record


class _Run:
    """One run's shared state, from opening to the record."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self._onnx: Artifact | None = None
        self._chooser: Judge | None = None
        self._started = time.monotonic()
        recipe, progress = request.recipe, request.progress
        self.opened: Opened = open_all(
            recipe,
            request.base_dir,
            request.store,
            progress,
            model=request.model,
            data=request.data,
        )
        source = self.opened.source
        self.sets = self._sets()
        dims = typical_dims(source, self.sets)
        context = Context(dims=dims, seed=recipe.seed, threads=STEP_THREADS)
        self.judge = self._make_judge(dims)
        self.plan: Plan = make_plan(
            recipe,
            source=source,
            source_format=source.format,
            inputs=source.inputs,
            roles=frozenset(self.opened.data),
            context=context,
            labelled=self.judge.labelled,
        )
        if self.judge.metric is not None and self.judge.labelled:
            for planned in self.plan.targets:
                check_gates(planned.gates, self.judge.metric.name, self.judge.metric.fraction)
        self.engine = Engine(
            request.store,
            source,
            self.opened.identity,
            self.opened.factory,
            self.opened.data,
            self.plan.context,
            progress,
            self._trial,
            records=[self.opened.record],
        )

    def _sets(self) -> dict[str, Samples]:
        """What feeds the model as it is: single steps where it has state."""
        sets = dict(self.opened.data)
        if self.opened.evaluation is not None:
            sets = {"evaluation": self._single(self.opened.evaluation), **sets}
        return sets

    def _single(self, samples: Samples) -> Samples:
        state = RecurrentState.of(self.opened.source)
        return samples if state is None else Steps(samples, state, self.request.recipe.seed)

    def _make_judge(self, dims: Mapping[str, int]) -> Judge:
        from compressor.choosing import choose_metric, load_evaluator

        recipe, request = self.request.recipe, self.request
        evaluator = load_evaluator(recipe.evaluator, request.base_dir)
        metric = choose_metric(
            recipe.metric,
            self.opened.evaluation,
            request.base_dir,
            agreement_only=self.opened.agreement_only,
            evaluator=evaluator,
        )
        samples, state = self.opened.evaluation, RecurrentState.of(self.opened.source)
        if state and metric and samples and evaluator is None:
            metric = over_steps(metric, samples.labels)
        return Judge(
            store=request.store,
            measure=with_budget(recipe.measure, request.effort),
            progress=request.progress,
            samples=self.opened.evaluation,
            metric=metric,
            evaluator=evaluator,
            seed=recipe.seed,
            threads=SCORING_THREADS,
            dims=dims,
            timing_data=next(iter(self.sets.values()), None),
            samples_dir=request.out / "samples",
        )

    def record(self, began: str) -> RunRecord:
        """Everything done, in order."""
        reference = self._reference()
        compressed = self.engine.advance(self.engine.source, self.plan.shared)
        output.clear_candidates(self.request.out)
        results = [
            self._target(planned, reference, compressed, self._deadline(number))
            for number, planned in enumerate(self.plan.targets, 1)
        ]
        exit_code = worst([r.exit_code for r in results])
        request = self.request
        return RunRecord(
            tool={"name": "edge-compressor", "version": compressor.__version__},
            started_utc=began,
            seconds=0.0,
            command=request.command,
            recipe=recipe_json(request.recipe),
            host=facts(),
            reference=reference,
            exit_code=exit_code,
            state=overall(results),
            seed=request.recipe.seed,
            reproducible=not self._irreproducible(),
            not_reproducible_because="; ".join(self._irreproducible()),
            data=self.opened.records,
            steps=self.engine.records,
            targets=results,
            warnings=self._warnings(results),
        )

    def _irreproducible(self) -> list[str]:
        """What steps said of themselves, such as a budget in minutes."""
        return list(dict.fromkeys(self.engine.irreproducible))

    def _reference(self) -> Reference:
        """The original as ONNX: what sizes and scores are compared with."""
        source = self.engine.source
        onnx = self._original()
        for samples in self.sets.values():
            if isinstance(samples, Steps):
                samples.original = onnx
        self.judge.base = self.judge.score_original(onnx)
        given = source.format == "onnx"
        size = int(source.facts["given_bytes"]) if given else onnx.size_bytes
        what = "the given ONNX" if given else "to_onnx of the untouched module"
        model = self.request.recipe.model.source if self.request.model is None else ""
        return Reference(
            source=model or type(self.request.model).__name__,
            format=source.format,
            digest=source.digest(),
            size_bytes=size,
            size_of=what,
            inputs=[str(s) for s in onnx.inputs],
            outputs=[str(s) for s in onnx.outputs],
            parameters=onnx.facts.get("parameters"),
            macs=count_macs(onnx.path, onnx.facts.get("dims", {})),
            score=self.judge.as_score(self.judge.base, "onnxruntime", "no evaluation data"),
        )

    def _deadline(self, number: int) -> float | None:
        """When the target that is `number`th from 1 should end; None: whenever it is done."""
        minutes = self.request.recipe.minutes
        share = number / len(self.plan.targets)
        return None if minutes is None else self._started + minutes * 60 * share

    def _target(
        self,
        planned: PlannedTarget,
        reference: Reference,
        compressed: Artifact,
        deadline: float | None,
    ) -> TargetResult:
        outcome = run_target(planned, self.engine, self.judge, reference, compressed, deadline)
        result = self._inconclusive(outcome.result)
        if outcome.shipped is not None:
            result = self._ship(planned, replace(outcome, result=result))
        return result

    def _inconclusive(self, result: TargetResult) -> TargetResult:
        """`--require-judged` and `--on-inconclusive`, applied to one target."""
        chosen = next((c for c in result.candidates if c.name == result.shipped), None)
        unjudged = not self.judge.labelled or (
            chosen is not None and any(c.state == "not_judged" for c in chosen.checks)
        )
        if self.request.require_judged and unjudged and result.exit_code == 0:
            result = replace(result, state="inconclusive", exit_code=3)
        if result.state == "inconclusive" and self.request.on_inconclusive == "warn":
            result = replace(result, exit_code=0)
        return result

    def _ship(self, planned: PlannedTarget, outcome: Outcome) -> TargetResult:
        out, name = self.request.out, planned.target.name
        assert outcome.shipped is not None
        shipped = output.place(outcome.shipped, out / name)
        candidates = list(outcome.result.candidates)
        for i, candidate in enumerate(candidates):
            if candidate.name == outcome.result.shipped:
                candidates[i] = replace(candidate, path=name)
        if outcome.failed is not None and outcome.failed.artifact is not None:
            failed = outcome.failed.candidate
            folder = out / "candidates" / f"{name}-{failed.name}"
            output.place(outcome.failed.artifact, folder)
            reasons = [f"{c.gate}: {c.text}" for c in failed.checks if c.state == "fail"]
            output.mark_failed(folder, reasons)
            path = folder.relative_to(out).as_posix()
            candidates = [replace(c, path=path) if c.name == failed.name else c for c in candidates]
        result = replace(outcome.result, candidates=candidates)
        package = self._package(planned, shipped, result)
        return replace(result, package=package.relative_to(out).as_posix())

    def _package(self, planned: PlannedTarget, shipped: Artifact, result: TargetResult) -> Path:
        feeds = self.judge.feeds(shipped, self.judge.batch_near(shipped, PACKAGE_BATCH))[0]
        engine = load_runtime(planned.target.runtime)
        with engine.open_session(shipped, threads=1, device=planned.context.device) as session:
            outputs = session.run(feeds)
        provenance = {
            "source": self.engine.source.digest(),
            "steps": [
                r.key for r in self.engine.records if r.target in (None, planned.target.name)
            ],
            "tool": f"edge-compressor {compressor.__version__}",
        }
        return build_package(
            result,
            shipped,
            out=self.request.out / "packages",
            reference_feeds=feeds,
            reference_outputs=outputs,
            provenance=provenance,
            preprocess=getattr(self.opened.evaluation, "preprocess", None),
            name=model_name(self.request),
        )

    def _warnings(self, results: list[TargetResult]) -> list[str]:
        found = list(self.opened.warnings)
        if not self.judge.labelled:
            why = "no evaluation data"
            if self.opened.evaluation is not None and not self.opened.agreement_only:
                why = "the evaluation data has no labels"
            found.append(f"accuracy was not judged: {why}")
        for result in results:
            if result.state == "inconclusive":
                found.append(f"{result.name}: inconclusive: {result.reason}")
        return found

    def _trial(
        self, artifact: Artifact, rest: tuple[PlannedStep, ...], target: str | None
    ) -> Trial:
        """A searching step's attempt through the rest of its list, on selection data."""
        planned = next((t for t in self.plan.targets if t.target.name == target), None)
        runtime = planned.target.runtime if planned else "onnxruntime"
        device = planned.context.device if planned else "CPU"
        made = self.engine.advance(artifact, rest, "trial")
        if self._chooser is None:
            self._chooser = selecting(self.judge, self.opened.data, self.request.base_dir)
            self._chooser.base = self._chooser.score_original(self._original())
        return trial(self._chooser, made, runtime, device)

    def _original(self) -> Artifact:
        """The original as ONNX."""
        if self._onnx is None:
            self._onnx = self.engine.advance(self.engine.source, self.plan.reference, "original")
        return self._onnx

    def _pinned(self, position: int, step: Any) -> Any:
        """A shared step with its budget in minutes as the number of steps that it became."""
        name, options = next(iter(step.items())) if isinstance(step, dict) else (step, None)
        repeat = self.engine.repeats.get(f"steps[{position}] {name}")
        if not repeat:
            return step
        return {name: {k: v for k, v in {**(options or {}), **repeat}.items() if v}}

    def lock(self, record: RunRecord) -> dict[str, Any]:
        """The recipe with everything that was resolved: `compress run` takes it as a recipe."""
        base = os.path.relpath(self.request.base_dir, self.request.out)
        recipe = recipe_json(self.request.recipe)
        if steps := recipe.get("steps"):
            recipe["steps"] = [self._pinned(i, step) for i, step in enumerate(steps)]
        return {
            **recipe,
            LOCKED: {
                "base": Path(base).as_posix(),
                "tool": record.tool,
                "source": self.engine.source.digest(),
                "data": {d.role: d.fingerprint for d in record.data},
                "steps": [
                    {
                        "step": s.step,
                        "target": s.target,
                        "rung": s.rung,
                        "options": s.options,
                        "tools": s.tools,
                        "digest": s.digest,
                    }
                    for s in record.steps
                ],
            },
        }


def worst(codes: list[int]) -> int:
    """A run's exit code is its worst target's."""
    return next((code for code in EXIT_ORDER if code in codes), 0)


def overall(results: list[TargetResult]) -> State:
    """The run's state from its targets' states."""
    order: tuple[State, ...] = ("fail", "inconclusive", "not_judged")
    return next((state for state in order if any(r.state == state for r in results)), "pass")


def model_name(request: Request) -> str:
    """A short name for packages: the file's stem or the factory's name."""
    source = request.recipe.model.source
    if request.model is not None and not isinstance(request.model, (str, Path)):
        return type(request.model).__name__.lower()
    text = str(request.model or source)
    return (
        Path(text).stem if text.endswith((".onnx", ".pt2")) else text.split(":")[0].split(".")[-1]
    )
