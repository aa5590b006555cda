"""A model and its data opened and planned: what runs, tables and benchmarks start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from compressor.engine import Engine
from compressor.env import Progress, Silent
from compressor.gates import check_gates
from compressor.judging import Judge, with_budget
from compressor.metrics.steps import over_steps
from compressor.modules import import_reference
from compressor.opening import Opened, open_all, typical_dims
from compressor.plan import Plan, PlannedStep, make_plan
from compressor.recipe import Recipe
from compressor.result import Reference
from compressor.rounds import PRUNE
from compressor.stateful import RecurrentState, Steps
from compressor.steps import load_step, named_code
from compressor.store import Store
from compressor.trials import selecting, trial
from exporters._onnx_macs import count_macs
from exporters.base import Context, Samples, Trial
from runtimes.errors import UsageError
from runtimes.host import cpu_quota, usable_cpus
from runtimes.types import Artifact

STEP_THREADS = 2


def step_threads() -> int:
    """Of steps and scoring: two, or one where this process may use one CPU.

    Two threads of torch on one CPU wait for each other, many times longer than they work.
    """
    return min(STEP_THREADS, usable_cpus(cpu_quota()[0]))


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


class Session:
    """One request opened, from its model to the judge of what is made of it.

    Attributes:
        opened: model and data.
        judge: scores and times on the evaluation data.
        plan: the steps of every target.
        engine: runs them, each once.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self._onnx: Artifact | None = None
        self._chooser: Judge | None = None
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
        context = Context(dims=dims, seed=recipe.seed, threads=step_threads())
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
            self._built,
            records=[self.opened.record],
            base_dir=request.base_dir,
            metric=self.judge.metric.identity() if self.judge.metric is not None else None,
        )
        self._check_steps()

    def _check_steps(self) -> None:
        """Raise where a step lacks labels or a function of the user's, before any work."""
        rungs = [rung for target in self.plan.targets for rung in target.rungs]
        for step in [*self.plan.shared, *(step for rung in rungs for step in rung.steps)]:
            for reference in named_code(step.options).values():
                import_reference(reference, self.request.base_dir)
            check = getattr(load_step(step.name), "check_data", None)
            if check is not None:
                check(step.options, self.opened.data)

    @property
    def stateful(self) -> bool:
        """Whether the model carries state from step to step."""
        return RecurrentState.of(self.opened.source) is not None

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
            threads=step_threads(),
            dims=dims,
            timing_data=next(iter(self.sets.values()), None),
            samples_dir=request.out / "samples",
        )

    def reference(self) -> Reference:
        """The original as ONNX: what sizes and scores are compared with."""
        source = self.engine.source
        onnx = self.original()
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
            macs=count_macs(onnx.path, self.judge.dims),
            score=self.judge.as_score(self.judge.base, "onnxruntime", "no evaluation data"),
        )

    def original(self) -> Artifact:
        """The original as ONNX; recurrent data reads its state from it from then on."""
        if self._onnx is None:
            self._onnx = self.engine.advance(self.engine.source, self.plan.reference, "original")
            for samples in self.sets.values():
                if isinstance(samples, Steps):
                    samples.original = self._onnx
        return self._onnx

    def _trial(
        self, artifact: Artifact, rest: tuple[PlannedStep, ...], target: str | None
    ) -> Trial:
        """A searching step's attempt through the rest of its list, on selection data."""
        planned = next((t for t in self.plan.targets if t.target.name == target), None)
        runtime, device = planned.runs_on if planned else ("onnxruntime", "CPU")
        made = self.engine.advance(artifact, rest, "trial")
        if self._chooser is None:
            self._chooser = selecting(self.judge, self.opened.data, self.request.base_dir)
            self._chooser.base = self._chooser.score_original(self.original())
        return trial(self._chooser, made, runtime, device)

    def _built(
        self, artifact: Artifact, rest: tuple[PlannedStep, ...], target: str | None, on: str | None
    ) -> tuple[Artifact, str]:
        """A step's attempt as it would run on a target, and the device there."""
        planned = next((t for t in self.plan.targets if t.target.name == (target or on)), None)
        if planned is None:
            raise UsageError(
                "latency is measured on a target, and none is named" if not on
                else f"the recipe has no target {on!r}",
                where="on",
                expected="one of " + ", ".join(t.target.name for t in self.plan.targets),
                fix="set `on: <target>`, or move the step into a target's list",
            )  # fmt: skip
        steps = planned.twins[-1].steps
        if target is not None:
            steps = tuple(s for s in rest if not _later(s.name))
        return self.engine.advance(artifact, steps, "timed build"), planned.context.device


def _later(name: str) -> bool:
    """Steps that a timed build goes without: those that train, and pruning of a later round."""
    return name == PRUNE or "training" in load_step(name).NEEDS
