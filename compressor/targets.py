"""One target of a run: its twins and candidates built, judged, and one of them chosen."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from compressor.bench import BenchResult, Variant
from compressor.deadline import SPENT, Deadline, OutOfTime
from compressor.diagnosis import diagnosed
from compressor.engine import Engine
from compressor.judging import Judge, timings_of
from compressor.package import coded_size
from compressor.plan import PlannedRung, PlannedTarget
from compressor.quantization.ledger import ledger
from compressor.quantization.precision import layer_table
from compressor.result import (
    NOT_RUN,
    Candidate,
    Check,
    Failure,
    Figure,
    LayerRow,
    Reference,
    TargetResult,
    Timing,
)
from compressor.shipping import Built, Outcome, choose, fails
from compressor.steps import options_json
from compressor.verdict import Gate, combine, judge
from exporters._memory import release
from runtimes.base import load_runtime
from runtimes.errors import CompressError, Unsupported, UsageError
from runtimes.types import Artifact

LATENCY = frozenset({"speedup", "p50", "p99", "memory"})
SIZES = frozenset({"size", "size_reduction"})
ACCURACY = frozenset({"accuracy_drop", "relative_drop", "agreement", "sqnr"})


def run_target(
    planned: PlannedTarget,
    engine: Engine,
    judging: Judge,
    reference: Reference,
    compressed: Artifact,
    deadline: float | None = None,
) -> Outcome:
    """Builds and judges `planned`; an error of this target is data, not an exception.

    Past `deadline` (of the monotonic clock) no further candidate is begun, and steps are stopped.
    """
    name = planned.target.name
    engine_here = planned.runs_on[0]
    blank = TargetResult(
        name,
        "fail",
        1,
        runtime=planned.target.runtime,
        device=planned.context.device,
        emulator=engine_here if planned.without else "",
        without=planned.without,
        versions=load_runtime(engine_here).versions(),
    )
    try:
        runner = _Runner(planned, engine, judging, reference, Deadline(deadline))
        twins = runner.built_twins()
        for twin in twins:
            if twin.artifact is None and twin.candidate.role == "twin":
                return _broken(blank, twin)
        tried = runner.climb(twins, compressed)
        timed = runner.timed_twins(twins)
        best = runner.best_twin(timed)
        tried = runner.diagnosed(tried, compressed)
    except UsageError:
        raise  # recipe or data: the same for every target
    except CompressError as error:
        failure = Failure(type(error).__name__, error.text(), error.exit_code)
        result = replace(blank, exit_code=error.exit_code, reason=error.what, failure=failure)
        return Outcome(result, None)
    return choose(blank, timed, best, tried, planned.explicit)


def _broken(blank: TargetResult, twin: Built) -> Outcome:
    failure = twin.candidate.failure or Failure("BuildFailed", "the twin was not built", 5)
    reason = f"the untouched model cannot be built for {blank.name}"
    result = replace(
        blank,
        exit_code=failure.exit_code,
        reason=reason,
        failure=failure,
        candidates=[twin.candidate],
    )
    return Outcome(result, None)


@dataclass
class _Runner:
    planned: PlannedTarget
    engine: Engine
    judging: Judge
    reference: Reference
    deadline: Deadline = field(default_factory=Deadline)
    twins: set[str] = field(default_factory=set)
    last: BenchResult | None = None

    def built_twins(self) -> list[Built]:
        """The twins; what that takes stands for what a built candidate will still take."""
        began = time.monotonic()
        twins = [self.build(rung, self.engine.source) for rung in self.planned.twins]
        self.deadline.reserve = time.monotonic() - began
        return twins

    def build(self, rung: PlannedRung, start: Artifact) -> Built:
        """A rung built and scored, not yet timed; a refusal or failed build is kept as data."""
        blank = Candidate(rung.name, rung.role, steps=[s.name for s in rung.steps])
        if rung.skipped:
            failure = Failure("skipped", rung.skipped, rung.exit_code)
            return Built(replace(blank, failure=failure), None)
        title = f"{self.planned.target.name} {rung.name}"
        try:
            artifact = self.engine.advance(start, rung.steps, title)
            self._require_effect(rung, artifact)
            found = self.judging.score(artifact, *self._where(), title)
        except UsageError:
            raise
        except OutOfTime:
            return Built(replace(blank, failure=Failure("skipped", SPENT, 1)), None)
        except CompressError as error:
            failure = Failure(type(error).__name__, error.text(), error.exit_code)
            return Built(replace(blank, failure=failure), None)
        why = "no evaluation data" if found is None else ""
        return Built(
            replace(
                blank,
                format=artifact.format,
                digest=artifact.digest(),
                size_bytes=artifact.size_bytes,
                package_bytes=coded_size(artifact),
                steps=[_spelled(s.name, options_json(s.options)) for s in rung.steps],
                score=self.judging.as_score(
                    found, self._where()[0], why, self.planned.without if found else ""
                ),
                comparison=self.judging.compare(found),
                ledger=ledger(artifact),
                drift=self.judging.drift(artifact, *self._where()),
                notes=[str(n) for n in artifact.facts.get("notes", [])],
                parameters=artifact.facts.get("parameters", self.reference.parameters),
                macs=artifact.facts.get("macs", self.reference.macs),
                figures={k: Figure(**f) for k, f in artifact.facts.get("figures", {}).items()},
            ),
            artifact,
        )

    def _require_effect(self, rung: PlannedRung, artifact: Artifact) -> None:
        """A rung whose steps all refused the model is no candidate: it is the twin again."""
        if rung.role != "candidate":
            self.twins.add(artifact.digest())
        elif artifact.digest() in self.twins and any(step.optional for step in rung.steps):
            raise Unsupported("no step of this candidate takes the model", [], where=rung.name)

    def _where(self) -> tuple[str, str]:
        return self.planned.runs_on

    def climb(self, twins: list[Built], compressed: Artifact) -> list[Built]:
        """The ladder from its most compressed rung until one passes."""
        tried: list[Built] = []
        for rung in self.planned.rungs:
            built = self._in_time(rung, compressed)
            if built.artifact is not None:
                built = self._judged(built, twins)
            tried.append(built)
            if built.candidate.state == "pass":
                break
        return tried

    def _in_time(self, rung: PlannedRung, compressed: Artifact) -> Built:
        """A candidate, if it can be built within its share of what is left."""
        limit = self.deadline.of_candidate()
        if limit is not None and time.monotonic() >= limit:
            rung = replace(rung, skipped=SPENT, steps=(), exit_code=1)
        self.engine.limit = limit
        try:
            return self.build(rung, compressed)
        finally:
            self.engine.limit = None
            release()  # a step that was stopped had no chance to

    def _judged(self, built: Built, twins: list[Built]) -> Built:
        """Size and accuracy first: what fails them is not worth a minute of timing."""
        checks = self._checks(built.candidate, timed=False)
        if combine(checks) == "fail":
            checks += self._open("it had failed before")
        elif self.planned.without:
            built = self._with_layers(built)
            checks += self._open(f"no engine here ({self.planned.without})")
        elif not self.planned.target.timed:
            assert built.artifact is not None
            layers = self.judging.layers(built.artifact, *self._where())
            built = Built(replace(built.candidate, layers=layers), built.artifact)
            checks += self._open("this machine is not the device")
        else:
            built = self._timed(built, twins)
            if failure := built.candidate.failure:  # what does not run here does not ship
                checks.append(Check("runs", "fail", failure.message.splitlines()[0]))
            else:
                checks = self._checks(built.candidate, timed=True)
        candidate = replace(built.candidate, checks=checks, state=combine(checks))
        return Built(candidate, built.artifact)

    def _open(self, why: str) -> list[Check]:
        """The latency gates, which nothing was timed for."""
        gates = [str(g) for g in self.planned.gates if g.metric in LATENCY]
        return [Check(gate, "not_judged", f"not timed: {why}") for gate in gates]

    def _with_layers(self, built: Built) -> Built:
        """With what its layers were asked to compute in, which no engine here ran."""
        assert built.artifact is not None
        rows = [replace(row, achieved=NOT_RUN) for row in layer_table(built.artifact, [])]
        return Built(replace(built.candidate, layers=rows), built.artifact)

    def _timed(self, built: Built, twins: list[Built]) -> Built:
        there = [t for t in twins if t.artifact is not None]
        title = f"{self.planned.target.name} {built.candidate.name}"
        assert built.artifact is not None
        self.last = self.judging.time(
            self._variants([*there, built]),
            title,
            decide=self._decided(built, there),
            within_s=self.deadline.left(),
        )
        if broken := self._not_timed(built):
            failure = Failure("RuntimeUnavailable", broken, 5)
            return Built(replace(built.candidate, failure=failure), built.artifact)
        over = self.fastest(there, self.last)
        names = [t.candidate.name for t in there]
        timings = timings_of(self.last, built.candidate.name, over, names)
        layers = self.judging.layers(built.artifact, *self._where())
        return Built(self._with(built.candidate, timings, layers), built.artifact)

    def _with(
        self, candidate: Candidate, timings: list[Timing], layers: list[LayerRow]
    ) -> Candidate:
        lasts = self.judging.measure.step_ms
        factor = timings[0].p50_ms / lasts if lasts and timings else None
        return replace(candidate, timings=timings, layers=layers, real_time_factor=factor)

    def _not_timed(self, built: Built) -> str:
        """Why there is no timing of a candidate; empty where there is one."""
        assert self.last is not None
        found = [self.last.failure(built.candidate.name, b) for b in self.last.batches]
        return next((f.message for f in found if f is not None), "")

    def _decided(self, built: Built, twins: list[Built]) -> Callable[[BenchResult], bool]:
        """Whether the rounds so far settle every latency gate."""

        def decided(result: BenchResult) -> bool:
            names = [t.candidate.name for t in twins]
            over = self.fastest(twins, result)
            timings = timings_of(result, built.candidate.name, over, names)
            candidate = replace(built.candidate, timings=timings)
            gates = [g for g in self.planned.gates if g.metric in LATENCY]
            states = [judge(g, candidate, self.reference).state for g in gates]
            return "inconclusive" not in states

        return decided

    def _variants(self, built: Sequence[Built]) -> list[Variant]:
        runtime, device = self._where()
        return [
            Variant(b.candidate.name, b.artifact, runtime, device)
            for b in built
            if b.artifact is not None
        ]

    def fastest(self, twins: Sequence[Built], result: BenchResult) -> str:
        """Latency reference: the fastest twin that keeps accuracy."""
        good = [t for t in twins if t.candidate.role == "twin" or self._keeps(t.candidate)]
        batch = result.batches[0]
        timed = {t.candidate.name: result.timing(t.candidate.name, batch) for t in good}
        return min(timed, key=lambda name: timed[name].p50_ms)

    def best_twin(self, twins: Sequence[Built]) -> Built | None:
        """The twin to ship where nothing passes: the fastest that keeps accuracy.

        Where nothing was timed, the one at half precision, which a device that has it is built for.
        None for a target without one.
        """
        if not twins:
            return None
        if self.planned.without:
            good = [t for t in twins if t.artifact is not None and self._keeps(t.candidate)]
            return (good or list(twins))[-1 if good else 0]
        assert self.last is not None
        there = [t for t in twins if t.artifact is not None]
        name = self.fastest(there, self.last)
        return next(t for t in there if t.candidate.name == name)

    def diagnosed(self, tried: list[Built], compressed: Artifact) -> list[Built]:
        """With why the closest candidate that failed an accuracy gate did, if that cost INT8."""
        lost = [b for b in tried if b.artifact is not None and _lost_accuracy(b.candidate)]
        if (
            not lost
            or not self.planned.twins
            or any(_passes_in_integers(b.candidate) for b in tried)
        ):
            return tried
        closest = min(lost, key=lambda b: fails(b.candidate))
        assert closest.artifact is not None
        candidate = diagnosed(
            self.engine,
            self.planned,
            compressed,
            closest.candidate,
            closest.artifact,
            effort=self.judging.measure.effort,
            deadline=self.deadline.at,
        )
        told = Built(candidate, closest.artifact)
        return [told if built is closest else built for built in tried]

    def _keeps(self, twin: Candidate) -> bool:
        gates = [g for g in self.planned.gates if g.metric in ACCURACY]
        return combine([judge(g, twin, self.reference) for g in gates]) != "fail"

    def timed_twins(self, twins: list[Built]) -> list[Built]:
        """The twins with their timings from the last comparison (timed alone if there was none)."""
        there = [t for t in twins if t.artifact is not None]
        if not twins:
            return []
        if self.planned.without:
            return [*map(self._with_layers, there), *(t for t in twins if t.artifact is None)]
        if self.last is None:
            title, left = f"{self.planned.target.name} twin", self.deadline.left()
            self.last = self.judging.time(self._variants(there), title, within_s=left)
        done = []
        for twin in there:
            assert twin.artifact is not None
            timings = timings_of(self.last, twin.candidate.name, None)
            layers = self.judging.layers(twin.artifact, *self._where())
            candidate = self._with(twin.candidate, timings, layers)
            done.append(Built(candidate, twin.artifact))
        return done + [t for t in twins if t.artifact is None]

    def _checks(self, candidate: Candidate, timed: bool) -> list[Check]:
        return [
            judge(gate, candidate, self.reference)
            for gate in self.planned.gates
            if (timed or gate.metric not in LATENCY) and not self._without_size(gate)
        ] + [
            Check(str(gate), "not_judged", "not judged: an FPGA has resources and ns instead")
            for gate in self.planned.gates
            if self._without_size(gate)
        ]

    def _without_size(self, gate: Gate) -> bool:
        return not self.planned.target.timed and gate.metric in SIZES


def _lost_accuracy(candidate: Candidate) -> bool:
    names = tuple(ACCURACY)
    return any(c.state == "fail" and c.gate.startswith(names) for c in candidate.checks)


def _passes_in_integers(candidate: Candidate) -> bool:
    ships = candidate.state in ("pass", "not_judged", "inconclusive")
    return ships and any(row.precision == "int8" for row in candidate.layers)


def _spelled(name: str, options: dict[str, object]) -> str:
    shown = ", ".join(f"{k}: {v}" for k, v in options.items() if v not in (None, "", [], {}))
    return f"{name} {{{shown}}}" if shown else name
