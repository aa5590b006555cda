"""Recipe + source → planned steps per target, or every problem at once; nothing is run here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from compressor.here import devices_of, has_half, scheme_here
from compressor.recipe import Recipe
from compressor.rounds import Placed, expanded
from compressor.schema import Problem, Problems
from compressor.shapes import resolve_shapes
from compressor.steps import as_built, check_targets, load_step, load_target, parse_options
from compressor.verdict import Gate, default_gates, parse_gate
from compressor.zeros import makes_zeros, of_package, size_warnings
from exporters._memory import trim
from exporters.base import Context, StepSpec, Target
from runtimes.base import load_runtime
from runtimes.errors import CompressError, MissingTool, UsageError
from runtimes.types import Artifact, TensorSpec

TORCH_FORMATS = frozenset({"module", "exported"})
EXTRA_OF = {"openvino": "openvino", "tensorrt": "tensorrt", "torch": "torch"}


@dataclass(frozen=True)
class PlannedStep:
    """One step with its options parsed, ready to run."""

    name: str
    options: Any
    context: Context
    where: str
    rung: str | None = None
    optional: bool = False


@dataclass(frozen=True)
class PlannedRung:
    """A candidate or twin: its own steps after the shared ones, or why it is skipped."""

    name: str
    role: Literal["candidate", "twin", "half_twin"]
    steps: tuple[PlannedStep, ...] = ()
    skipped: str = ""
    exit_code: int = 4


@dataclass(frozen=True)
class PlannedTarget:
    """A target with its twins, its candidates in order, and the gates that judge them."""

    target: Target
    context: Context
    twins: tuple[PlannedRung, ...]
    rungs: tuple[PlannedRung, ...]
    gates: tuple[Gate, ...]
    explicit: bool = False
    without: str = ""  # why its engine is not here, where another one stands in
    recurrent: tuple[str, ...] = ()  # what becomes of recurrent layers, where that was looked at
    memory: str = ""  # what calibration will hold, where that can be told

    @property
    def runs_on(self) -> tuple[str, str]:
        """Runtime and device that answer for it here: its own, or what stands in for scores."""
        if self.without:
            return str(self.target.emulator), "CPU"
        return self.target.runtime, self.context.device


@dataclass(frozen=True)
class Plan:
    """Everything that would run, and what is suspicious about its data."""

    shared: tuple[PlannedStep, ...]
    shared_format: str
    reference: tuple[PlannedStep, ...]
    targets: tuple[PlannedTarget, ...]
    context: Context
    warnings: tuple[str, ...] = ()


@dataclass
class _Planner:
    recipe: Recipe
    source: Artifact | None
    inputs: Sequence[TensorSpec]
    source_format: str
    roles: frozenset[str]
    context: Context
    labelled: bool = True
    problems: list[Problem] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)  # target → why its engine is not here

    def plan(self) -> Plan:
        contexts = {name: self._context(name) for name in self.recipe.targets}
        multiple = math.lcm(*(c.width_multiple for c in contexts.values())) if contexts else 8
        self.context = replace(self.context, width_multiple=multiple)
        shared, shared_format = self._chain(
            self.recipe.shared_steps(), self.source_format, self.context, "steps", None
        )
        if not self.recipe.targets:
            self._problem("targets", "no target named", fix="add `targets: {onnxruntime: {}}`")
        targets = tuple(
            self._target(name, contexts[name], shared_format)
            for name in contexts
            if contexts[name].target
        )
        reference, _ = self._to("onnx", self.source_format, self.context, "model")
        if self.problems:
            raise Problems(list(dict.fromkeys(self.problems)))
        told = [
            text
            for t in targets
            if self._makes_zeros(t.target.name)
            for text in size_warnings(t.target.name, t.gates)
        ]
        return Plan(shared, shared_format, reference, targets, self.context, tuple(told))

    def _problem(self, where: str, what: str, *, fix: str = "", code: int = 2) -> None:
        self.problems.append(Problem(where, what, fix=fix, exit_code=code))

    def _caught(self, error: CompressError) -> None:
        self.problems += error.problems if isinstance(error, Problems) else [Problem.of(error)]

    def _context(self, name: str) -> Context:
        where = f"targets.{name}"
        try:
            target = load_target(name, where)
        except UsageError as error:
            self._caught(error)
            return Context()
        spec = self.recipe.target(name)
        reason = load_runtime(target.runtime).missing()
        if reason and target.emulator:
            self.absent[name] = reason
        elif reason:
            fix = f"pip install 'edge-compressor[{EXTRA_OF.get(name, name)}]'"
            self._problem(where, f"{target.runtime} cannot run here: {reason}", fix=fix, code=4)
        elif spec.device and spec.device.split(".")[0] not in (there := devices_of(target)):
            what = f"{target.runtime} has no device {spec.device} here"
            self._problem(f"{where}.device", what, fix="one of " + ", ".join(there), code=4)
        shapes: Mapping[str, Mapping[str, tuple[int, int, int]]] = {}
        try:
            shapes = resolve_shapes({**self.recipe.shape, **spec.shape}, self.inputs, where)
        except UsageError as error:
            self._caught(error)
        return replace(
            self.context,
            target=name,
            scheme=scheme_here(target),
            keep=self.recipe.kept(),
            shapes=shapes,
            device=spec.device or target.device,
            width_multiple=target.width_multiple,
        )

    def _target(self, name: str, context: Context, shared_format: str) -> PlannedTarget:
        target = load_target(name)
        where = f"targets.{name}"
        bare = replace(context, keep=Context().keep)
        own = self.recipe.target_steps(name)
        if own is not None:
            place = f"{where}.steps"
            rungs = [self._rung("candidate", "candidate", own, shared_format, context, place)]
        else:
            rungs = [
                self._try_rung(r.name, r.steps, shared_format, context, f"{where} {r.name}")
                for r in target.ladder
            ]
        given = (*self.recipe.shared_steps(), *(own or ())) if not self.problems else ()
        twin, half = as_built(target.twin, given), as_built(target.half_twin, given)
        twins, fmt = [], self.source_format
        if twin:
            twins.append(self._rung("twin", "twin", twin, fmt, bare, where))
        if half and has_half(target):
            twins.append(self._rung("half-twin", "half_twin", half, fmt, bare, where))
        return PlannedTarget(
            target,
            context,
            tuple(twins),
            tuple(rungs),
            self._gates(name),
            own is not None,
            self.absent.get(name, ""),
        )

    def _rung(
        self,
        name: str,
        role: Literal["candidate", "twin", "half_twin"],
        specs: Sequence[StepSpec],
        fmt: str,
        context: Context,
        where: str,
    ) -> PlannedRung:
        steps, made = self._chain(tuple(specs), fmt, context, where, name)
        formats = load_target(str(context.target)).formats
        if made and made not in formats and not self.problems:
            self._problem(
                where,
                f"the list ends in format {made}, which {context.target} does not ship",
                fix=f"end it with to_{context.target}",
            )
        return PlannedRung(name, role, steps)

    def _try_rung(
        self, name: str, specs: Sequence[StepSpec], fmt: str, context: Context, where: str
    ) -> PlannedRung:
        """A rung of the declared ladder: data, a tool or an operator that it lacks skips it."""
        lacking = {role for s in specs for role in load_step(s.name, where).NEEDS - self.roles}
        if lacking:
            reason = f"needs {' and '.join(sorted(lacking))} data"
            return PlannedRung(name, "candidate", skipped=reason)
        probe = replace(self, problems=[])
        rung = probe._rung(name, "candidate", specs, fmt, context, where)
        self.problems += [p for p in probe.problems if p.exit_code == UsageError.exit_code]
        if not probe.problems:
            return rung
        first = probe.problems[0]
        reason = first.what + (f" (fix: {first.fix})" if first.fix else "")
        return PlannedRung(name, "candidate", skipped=reason, exit_code=first.exit_code)

    def _to(
        self, wanted: str, fmt: str, context: Context, where: str
    ) -> tuple[tuple[PlannedStep, ...], str]:
        if fmt == wanted:
            return (), fmt
        return self._chain((StepSpec("to_onnx"),), fmt, context, where, None)

    def _chain(
        self,
        specs: Sequence[StepSpec],
        fmt: str,
        context: Context,
        where: str,
        rung: str | None,
    ) -> tuple[tuple[PlannedStep, ...], str]:
        """`specs` as planned steps from format `fmt`, with the missing `to_onnx` put in."""
        planned: list[PlannedStep] = []
        placed: list[Placed] = []
        try:
            placed = expanded(specs, where)
        except UsageError as error:
            self._caught(error)
        for place, spec in placed:
            try:
                module = load_step(spec.name, place)
                if fmt in TORCH_FORMATS and fmt not in module.ACCEPTS and "onnx" in module.ACCEPTS:
                    planned.append(self._step(StepSpec("to_onnx"), place, context, rung))
                    self._refusals(planned[-1], fmt)
                    fmt = "onnx"
                if fmt == "onnx" and spec.name == "to_onnx":
                    continue  # an ONNX source needs none
                if fmt not in module.ACCEPTS:
                    self._wrong_format(spec.name, fmt, module.ACCEPTS, place)
                planned.append(self._step(spec, place, context, rung))
                self._refusals(planned[-1], fmt)
                fmt = fmt if module.PRODUCES == "same" else module.PRODUCES
            except CompressError as error:
                self._caught(error)
        return tuple(planned), fmt

    def _step(self, spec: StepSpec, where: str, context: Context, rung: str | None) -> PlannedStep:
        module = load_step(spec.name, where)
        if spec.name == SEARCH and context.target:
            minutes = (self.recipe.minutes or 0) / (len(self.recipe.targets) + 1)
            explicit = context.scheme is not None and context.scheme.explicit
            least = HALF_THE_BYTES if explicit else module.Options().min_reduction
            limits = search_limits(self._gates(context.target), least, minutes)
            spec = StepSpec(spec.name, {**limits, **spec.options})
        options = parse_options(spec, where)
        check_targets(options, self.recipe.targets, where)
        try:
            module.tools()
        except MissingTool as error:
            self._caught(error)
        for role in sorted(module.NEEDS - self.roles):
            self._problem(where, f"needs {role} data, and none is given", fix=f"add data.{role}")
        if spec.name == "to_onnx":  # a format of no target: one export serves them all
            context = Context(dims=context.dims, seed=context.seed, threads=context.threads)
        return PlannedStep(spec.name, options, context, where, rung, spec.optional)

    def _refusals(self, step: PlannedStep, fmt: str) -> None:
        module, source = load_step(step.name), self.source
        if step.optional or not source or source.format not in {fmt, "onnx"} & module.ACCEPTS:
            return  # a module that was exported on the way is looked at once it is
        for refusal in module.refusals(source, step.options, step.context):
            self._problem(f"{step.where}: {refusal.where}", refusal.why, fix=refusal.fix, code=4)
        trim()  # a refusal may have read a large model

    def _wrong_format(self, name: str, fmt: str, accepts: frozenset[str], where: str) -> None:
        fix = "move it before the step that changed the format"
        if fmt == "exported":
            fix = "an exported program cannot be trained: give the module (module:function)"
        elif fmt in ("onnx", "onnxruntime") and accepts <= TORCH_FORMATS:
            fix = "give the torch module as model.source, or drop the step"
        self._problem(
            where, f"{name} takes {' or '.join(sorted(accepts))}, and gets {fmt}", fix=fix, code=4
        )

    def _gates(self, name: str) -> tuple[Gate, ...]:
        """Defaults, overridden by the recipe's gates, overridden by the target's own."""
        chosen: dict[Any, Gate] = {}
        own = self.recipe.target(name).gates
        places = [("gates", self.recipe.gates), (f"targets.{name}.gates", own)]
        for where, raw in places:
            for i, text in enumerate(raw):
                try:
                    gate = parse_gate(text)
                except UsageError as error:
                    error.where = f"{where}[{i}]"
                    self._caught(error)
                    continue
                chosen[gate.metric, gate.batch, gate.over] = gate
        return complete_gates(
            tuple(chosen.values()), self.labelled, package=self._makes_zeros(name),
            timed=load_target(name).timed,
        )  # fmt: skip

    def _makes_zeros(self, name: str) -> bool:
        return makes_zeros((*self.recipe.shared_steps(), *(self.recipe.target_steps(name) or ())))


SEARCH = "quantize_mixed"
HALF_THE_BYTES = 0.5  # what half precision saves, the next rung of an engine without 4-bit storage


def search_limits(gates: Sequence[Gate], min_reduction: float, minutes: float) -> dict[str, Any]:
    """What a search for mixed precision must keep so that a target's gates hold.

    A size gate below `min_reduction`, the search's own, does not make it aim lower.
    """
    found: dict[str, Any] = {}
    for gate in gates:
        if gate.metric == "size_reduction" and gate.of == "model":
            found["min_reduction"] = max(gate.limit, min_reduction)
        if gate.metric in {"relative_drop", "accuracy_drop"}:
            found["max_drop"] = gate.limit
        if gate.metric == "sqnr":
            found["min_sqnr_db"] = gate.limit
        if gate.metric == "agreement":
            found["max_drop"] = 1 - gate.limit
    if minutes:
        found["minutes"] = minutes
    return found


UNLABELLED = ("agreement>=97%", "sqnr>=15dB")  # how far outputs may move when nothing says more


def complete_gates(
    gates: tuple[Gate, ...], labelled: bool = True, *, package: bool = False, timed: bool = True
) -> tuple[Gate, ...]:
    """`gates` plus the defaults they do not answer: accuracy, not slower, not larger.

    The default on size reads the package where a step shrinks nothing else (`package`). What is
    not `timed` has neither a size nor a speed by default.

    Without labels the outputs themselves are held against the original's. A limit in milliseconds
    or megabytes, or over one twin, does not say that a slower or larger model may ship.
    """
    accuracy = {"accuracy_drop", "relative_drop", "agreement", "sqnr"}
    named = {g.metric for g in gates if g.over is None}
    usual = default_gates() if labelled else [*map(parse_gate, UNLABELLED), *default_gates()[1:]]
    usual = usual if timed else [gate for gate in usual if gate.metric in accuracy]
    missing = [
        gate
        for gate in usual
        if not named & (accuracy if gate.metric in accuracy else {gate.metric})
    ]
    return (*gates, *(of_package(missing) if package else missing))


def make_plan(
    recipe: Recipe,
    *,
    source: Artifact | None,
    source_format: str,
    inputs: Sequence[TensorSpec],
    roles: frozenset[str],
    context: Context,
    labelled: bool = True,
) -> Plan:
    """The plan of a recipe, or `Problems` with everything that stands in its way.

    Args:
        recipe: what the user wants.
        source: the opened model where it is there (its nodes are then checked), else None.
        source_format: `module`, `exported` or `onnx`.
        inputs: the model's inputs, as far as known.
        roles: which data sets are given.
        context: seed, threads and typical dimensions of the run.
        labelled: accuracy can be judged.
    """
    return _Planner(recipe, source, inputs, source_format, roles, context, labelled).plan()
