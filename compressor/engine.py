"""Runs one step after another, each through the store by its key."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from compressor.deadline import OutOfTime, Watched
from compressor.env import Progress, StepEnv
from compressor.plan import PlannedStep
from compressor.result import StepRecord
from compressor.schema import to_json
from compressor.steps import load_step, named_code, options_json
from compressor.store import Store, Workplace, key_of
from exporters._memory import release
from exporters.base import Context, Samples, Step, Trial
from runtimes.errors import BuildFailed, Unsupported
from runtimes.host import facts
from runtimes.types import Artifact

KEY_SCHEMA = 1
LOG = logging.getLogger("compressor")


@dataclass
class Engine:
    """What every step of one run shares.

    Attributes:
        store: where finished steps lie.
        source: the original model; every step may look at it.
        identity: digest of what the source was made from (code and weights).
        factory: builds the untouched torch module, where there is one.
        data: data sets by role; never evaluation.
        context: of the shared steps.
        progress: where to tell how far a step is.
        records: what ran or was found, in order.
        irreproducible: what steps said that will not come out the same again.
        limit: when (of the monotonic clock) running steps are stopped with `OutOfTime`.
        repeats: place in the recipe → options that would repeat what such a step did.
        module: what the shared steps made of a torch module, as far as they have come.
        base_dir: where modules that options name are looked for first.
        metric: identity of what attempts of a searching step are scored by.
    """

    store: Store
    source: Artifact
    identity: str
    factory: Callable[[], Any] | None
    data: Mapping[str, Samples]
    context: Context
    progress: Progress
    trial: Callable[[Artifact, tuple[PlannedStep, ...], str | None], Trial]
    built: Callable[
        [Artifact, tuple[PlannedStep, ...], str | None, str | None], tuple[Artifact, str]
    ]
    records: list[StepRecord] = field(default_factory=list)
    irreproducible: list[str] = field(default_factory=list)
    repeats: dict[str, dict[str, Any]] = field(default_factory=dict)
    module: Artifact | None = None
    limit: float | None = None
    base_dir: Path | None = None
    metric: Mapping[str, Any] | None = None

    def advance(
        self, artifact: Artifact, steps: tuple[PlannedStep, ...], title: str = ""
    ) -> Artifact:
        """`artifact` through `steps`; finished ones come from the store."""
        for i, step in enumerate(steps):
            try:
                artifact = self._step(artifact, step, steps[i + 1 :], title)
            except Unsupported:
                if not step.optional:
                    raise
        return artifact

    def _step(
        self, parent: Artifact, step: PlannedStep, rest: tuple[PlannedStep, ...], title: str
    ) -> Artifact:
        module = load_step(step.name)
        if refusals := module.refusals(parent, step.options, step.context):
            raise Unsupported(f"{step.name} cannot take this model", refusals, where=step.where)
        parts = self._key_parts(module, step, rest, parent)
        key = key_of(parts)
        started = time.monotonic()
        self.progress.begin(f"{title + ': ' if title else ''}{step.name}")
        made, hit = self.store.build(
            key, parts, lambda place: self._run(module, parent, step, rest, place)
        )
        seconds = time.monotonic() - started
        release()
        self.progress.end("reused" if hit else f"{seconds:.1f} s")
        self._record(step, parts, key, made, parent, hit, seconds)
        if step.context.target is None and made.format == "module":
            self.module = made
        return made

    def _key_parts(
        self, module: Step, step: PlannedStep, rest: tuple[PlannedStep, ...], parent: Artifact
    ) -> dict[str, Any]:
        roles = sorted((module.NEEDS | module.USES) & set(self.data))
        code = self._code(step.options)
        return {
            "schema": KEY_SCHEMA,
            "step": step.name,
            "rev": module.REV,
            "options": options_json(step.options),
            "parent": parent.digest(),
            "context": to_json(step.context),
            "data": {role: self.data[role].fingerprint for role in roles},
            "tools": module.tools(),
            "reference": [self.source.digest(), self.identity],
            # torch computes in what the processor is fastest at, and its sums differ by processor
            "isa": facts()["isa"] if _in_torch(module, parent) else None,
            **({"code": code} if code else {}),
            **({"trials": self._judged(rest)} if "selection" in module.USES else {}),
            **({"timed": _told(rest)} if _times_builds(step) else {}),
        }

    def _judged(self, rest: tuple[PlannedStep, ...]) -> dict[str, Any]:
        """What trials depend on besides their artifact and data."""
        return {"metric": self.metric, "rest": _told(rest)}

    def _code(self, options: Any) -> dict[str, dict[str, str]]:
        """Option that names a function of the user's → digests of the files it is made of."""
        from compressor.sources.code import code_digests

        base = self.base_dir or Path.cwd()
        return {name: code_digests(value, base) for name, value in named_code(options).items()}

    def _run(
        self,
        module: Step,
        parent: Artifact,
        step: PlannedStep,
        rest: tuple[PlannedStep, ...],
        place: Workplace,
    ) -> Artifact:
        env = StepEnv(
            place.work,
            place.scratch,
            place.checkpoint,
            step.context,
            {r: self._watched(r) for r in (module.NEEDS | module.USES) if r in self.data},
            self.source,
            self.factory,
            LOG,
            self._told,
            lambda artifact: self.trial(artifact, rest, step.context.target),
            lambda artifact, on: self.built(artifact, rest, step.context.target, on),
            self.base_dir,
        )
        before = parent.digest()
        made = module.run(parent, step.options, env)
        wanted = parent.format if module.PRODUCES == "same" else module.PRODUCES
        if made.format != wanted:
            raise BuildFailed(
                f"{step.name} made another format",
                where=step.where,
                expected=wanted,
                got=made.format,
            )
        Artifact.load(parent.root).verify()
        if parent.digest() != before:
            raise BuildFailed(f"{step.name} changed its input", where=step.where)
        return made

    def _watched(self, role: str) -> Samples:
        whole = self.data[role]
        return whole if self.limit is None else cast("Samples", Watched(whole, self._check))

    def _told(self, done: float, message: str) -> None:
        self._check()
        self.progress.update(done, message)

    def _check(self) -> None:
        if self.limit is not None and time.monotonic() > self.limit:
            raise OutOfTime

    def _record(
        self,
        step: PlannedStep,
        parts: dict[str, Any],
        key: str,
        made: Artifact,
        parent: Artifact,
        hit: bool,
        seconds: float,
    ) -> None:
        notes = [str(note) for note in made.facts.get("notes", [])]
        if reason := made.facts.get("not_reproducible"):
            self.irreproducible.append(str(reason))
            told = made.facts.get("repeat", {})  # a later step's facts may tell an earlier one's
            own = {k: v for k, v in told.items() if hasattr(step.options, k)}
            self.repeats.setdefault(step.where, own)
        self.records.append(
            StepRecord(
                step=step.name,
                target=step.context.target,
                rung=step.rung,
                key=key,
                status="hit" if hit else "ran",
                seconds=round(seconds, 3),
                parent=parent.digest(),
                digest=made.digest(),
                size_bytes=made.size_bytes,
                options=parts["options"],
                tools=parts["tools"],
                notes=notes,
            )
        )


def _told(steps: tuple[PlannedStep, ...]) -> list[list[Any]]:
    return [[step.name, options_json(step.options)] for step in steps]


def _times_builds(step: PlannedStep) -> bool:
    """Whether a step in a target's list times what the later ones there make of its attempts."""
    return step.context.target is not None and "latency" in getattr(step.options, "keep", {})


def _in_torch(module: Step, parent: Artifact) -> bool:
    return parent.format == "module" or "training" in module.NEEDS
