"""The loop: open, plan, compress, judge per target, write. `execute` is the whole product."""

from __future__ import annotations

import datetime
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import compressor
from compressor import output
from compressor.package import build_package
from compressor.plan import PlannedTarget
from compressor.recipe import LOCKED, recipe_json
from compressor.result import UNCONVERGED, Reference, RunRecord, State, TargetResult
from compressor.rounds import expanded
from compressor.session import Request, Session
from compressor.shipping import Outcome
from compressor.targets import run_target
from exporters.base import StepSpec
from runtimes.base import load_runtime
from runtimes.host import facts
from runtimes.types import Artifact

EXIT_ORDER = (70, 2, 7, 6, 5, 4, 1, 3, 0)
BUDGETS = frozenset({"minutes", "steps", "epochs"})  # of a step that trains; 0 is none
PACKAGE_BATCH = 4  # samples in a package's reference inputs


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
        self._started = time.monotonic()
        self.session = Session(request)
        self.opened, self.judge = self.session.opened, self.session.judge
        self.plan, self.engine = self.session.plan, self.session.engine

    def record(self, began: str) -> RunRecord:
        """Everything done, in order."""
        reference = self.session.reference()
        compressed = self.engine.advance(self.engine.source, self.plan.shared)
        output.clear(self.request.out)
        if self.engine.module is not None:
            output.place(self.engine.module, self.request.out / output.MODULE)
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
        outcome = replace(outcome, result=self._kept(planned, replace(outcome, result=result)))
        if outcome.shipped is not None:
            return self._ship(planned, outcome)
        return outcome.result

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
        result = replace(outcome.result, candidates=candidates)
        package = self._package(planned, shipped, result)
        return replace(result, package=package.relative_to(out).as_posix())

    def _kept(self, planned: PlannedTarget, outcome: Outcome) -> TargetResult:
        """The best candidate that failed, beside what ships."""
        out, name = self.request.out, planned.target.name
        candidates = list(outcome.result.candidates)
        if outcome.failed is not None and outcome.failed.artifact is not None:
            failed = outcome.failed.candidate
            folder = out / "candidates" / f"{name}-{failed.name}"
            output.place(outcome.failed.artifact, folder)
            reasons = [f"{c.gate}: {c.text}" for c in failed.checks if c.state == "fail"]
            output.mark_failed(folder, reasons)
            path = folder.relative_to(out).as_posix()
            candidates = [replace(c, path=path) if c.name == failed.name else c for c in candidates]
        return replace(outcome.result, candidates=candidates)

    def _package(self, planned: PlannedTarget, shipped: Artifact, result: TargetResult) -> Path:
        feeds = self.judge.feeds(shipped, self.judge.batch_near(shipped, PACKAGE_BATCH))[0]
        runtime, device = planned.runs_on
        with load_runtime(runtime).open_session(shipped, threads=1, device=device) as session:
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
        found = [*self.opened.warnings, *self.plan.warnings]
        if not self.judge.labelled:
            why = "no evaluation data"
            if self.opened.evaluation is not None and not self.opened.agreement_only:
                why = "the evaluation data has no labels"
            found.append(f"accuracy was not judged: {why}")
        for result in results:
            if result.state == "inconclusive":
                found.append(f"{result.name}: inconclusive: {result.reason}")
            notes = [note for candidate in result.candidates for note in candidate.notes]
            growing = dict.fromkeys(note for note in notes if note.startswith(UNCONVERGED))
            found += [f"{result.name}: {note}" for note in growing]
        return found

    def _pinned(self, place: str, spec: StepSpec) -> Any:
        """A shared step with its budget in minutes as the number of steps that it became."""
        options = {**spec.options, **self.engine.repeats.get(place, {})}
        kept = {k: v for k, v in options.items() if v or k not in BUDGETS}
        return {spec.name: kept} if kept else spec.name

    def lock(self, record: RunRecord) -> dict[str, Any]:
        """The recipe with everything that was resolved: `compress run` takes it as a recipe."""
        base = os.path.relpath(self.request.base_dir, self.request.out)
        recipe = recipe_json(self.request.recipe)
        if shared := expanded(self.request.recipe.shared_steps(), "steps"):
            recipe["steps"] = [self._pinned(place, spec) for place, spec in shared]
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
