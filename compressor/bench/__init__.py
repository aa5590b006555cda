"""Interleaved timing of artifacts: which is faster, by how much, and how sure that is.

Every round starts a fresh process per variant: memory layout and thread placement differ from
process to process and make their own share of the variance. Within a round the variants' blocks
follow each other in a seeded random order and back again (ABBA), so that a slow spell of the
machine hits all of them.
Statistics are over rounds: see `compressor/bench/result.py`.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from compressor.bench.child import Child, ChildError
from compressor.bench.result import BenchResult, Round, Variant
from runtimes import host
from runtimes.arrays import write_arrays
from runtimes.base import Feeds
from runtimes.errors import UsageError
from runtimes.serve import write_feeds
from runtimes.timing import TimingPlan, WarmUp, timed

__all__ = ["BenchPlan", "BenchResult", "Variant", "bench"]

Progress = Callable[[float, str], None]
Decide = Callable[[BenchResult], bool]
MIN_ROUNDS = 3
CLOSE_ENOUGH = 0.02
AGAIN = " (again)"
_MS = 1_000_000


@dataclass(frozen=True)
class Effort:
    """What an effort means: after which rounds to look, blocks a round, and their length.

    Only where somebody asks for a decision is there more than the first look.

    `cap_s` holds for each variant beyond the first and each batch size. Rounds stop at it, but
    never before `MIN_ROUNDS`.
    """

    looks: tuple[int, ...]
    blocks: int
    timing: TimingPlan
    cap_s: float
    self_test: bool = False


EFFORTS: Mapping[str, Effort] = {
    "quick": Effort(
        looks=(5, 10),
        blocks=4,
        timing=TimingPlan(
            block_ns=100 * _MS,
            block_iterations=3,
            warmup_ns=150 * _MS,
            warmup_iterations=5,
            warmup_slice_ns=25 * _MS,
            warmup_cap_ns=1000 * _MS,
        ),
        cap_s=30.0,
    ),
    "default": Effort(
        looks=(7, 14), blocks=4, timing=TimingPlan(warmup_cap_ns=5000 * _MS), cap_s=120.0
    ),
    "certify": Effort(
        looks=(5, 7, 10, 14, 20), blocks=4, timing=TimingPlan(), cap_s=120.0, self_test=True
    ),
}


@dataclass(frozen=True)
class BenchPlan:
    """How to measure.

    Attributes:
        effort: `quick` (about 10 s a pair), `default` (about 35 s), both twice as long where that
            may decide a gate, or `certify` (until decided).
        batches: batch sizes; each needs feeds.
        threads: of the engine, in every variant.
        seed: of the random orders.
        cap_s: replaces the effort's cap (seconds for each variant beyond the first, and batch).
        self_test: also time the first variant against itself (A/A); `certify` does by default.
        answer_within_s: a process that says nothing for so long is taken for hung.
    """

    effort: Literal["quick", "default", "certify"] = "default"
    batches: tuple[int, ...] = (1,)
    threads: int = 1
    seed: int = 0
    cap_s: float | None = None
    self_test: bool | None = None
    answer_within_s: float = 300.0

    def resolved(self) -> Effort:
        """The effort with this plan's own cap and self-test in it."""
        if self.effort not in EFFORTS:
            raise UsageError(
                "unknown effort", where="effort", expected=", ".join(EFFORTS), got=self.effort
            )
        effort = EFFORTS[self.effort]
        return replace(
            effort,
            cap_s=effort.cap_s if self.cap_s is None else self.cap_s,
            self_test=effort.self_test if self.self_test is None else self.self_test,
        )


def bench(
    variants: Sequence[Variant],
    feeds: Mapping[int, Sequence[Feeds]],
    plan: BenchPlan,
    *,
    decide: Decide | None = None,
    progress: Progress | None = None,
    samples_dir: Path | None = None,
) -> BenchResult:
    """Time `variants` against each other on the same feeds.

    Args:
        variants: the first is the baseline of the self-test; runtimes may differ.
        feeds: batch size → prepared feeds of that size, used in turn (8 or more are best).
        plan: how long and how.
        decide: whether the result so far decides what it is for. By default one look at it is
            taken; with `certify`, until each variant is certainly faster or slower than the first,
            or within 2 % of it.
        progress: told the share done (0–1) and a message.
        samples_dir: where the raw nanoseconds go, one `.npz` for each variant and batch.

    Returns:
        The result; a variant that failed is in `failures`, with the others' timings intact.

    Raises:
        UsageError: no variants, names twice, or a batch without feeds.
    """
    effort = plan.resolved()
    _check(variants, feeds, plan)
    decide = decide or (_decided if plan.effort == "certify" else None)
    if decide is None:
        effort = replace(effort, looks=effort.looks[:1])
    if effort.self_test:
        variants = [*variants, replace(variants[0], name=variants[0].name + AGAIN)]
    result = BenchResult(
        variants=tuple(variants),
        batches=plan.batches,
        threads=plan.threads,
        seed=plan.seed,
        effort=plan.effort,
        planned_looks=effort.looks,
        timing_plan=effort.timing,
        self_test=AGAIN if effort.self_test else None,
        samples_dir=samples_dir,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "feeds.npz"
        write_arrays(path, write_feeds({b: list(feeds[b]) for b in plan.batches}))
        _Loop(result, effort, plan, path, progress or _silent).run(decide or _decided)
    if samples_dir is not None:
        result.write_samples(samples_dir)
    return result


def _silent(_: float, __: str) -> None:
    return


def _check(
    variants: Sequence[Variant], feeds: Mapping[int, Sequence[Feeds]], plan: BenchPlan
) -> None:
    names = [v.name for v in variants]
    if not names or len(set(names)) < len(names):
        raise UsageError(
            "bench needs variants with names of their own", where="bench", got=", ".join(names)
        )
    for batch in plan.batches:
        if not feeds.get(batch):
            raise UsageError(f"no feeds of batch {batch}", where="bench")


def _decided(result: BenchResult) -> bool:
    """Whether every variant is certainly not as fast as the first, or certainly close to it."""
    first = result.variants[0].name
    for variant in result.variants[1:]:
        for batch in result.batches:
            if variant.name.endswith(AGAIN) or not result.has(variant.name, batch):
                continue
            timing = result.timing(variant.name, batch, first)
            low, high = timing.speedup_interval or (0.0, np.inf)
            close = low > 1 - CLOSE_ENOUGH and high < 1 + CLOSE_ENOUGH
            if low <= 1.0 <= high and not close:
                return False
    return True


@dataclass
class _Loop:
    """The rounds of one benchmark."""

    result: BenchResult
    effort: Effort
    plan: BenchPlan
    feeds: Path
    progress: Progress
    spent_s: float = 0.0
    random: random.Random = field(default_factory=random.Random)

    def run(self, decide: Decide) -> None:
        """Rounds until decided at a look, out of looks, out of time, or nothing is left to time."""
        self.random.seed(self.plan.seed)
        pairs = max(1, len(self.result.variants) - 1 - self.effort.self_test)
        cap_s = self.effort.cap_s * pairs * len(self.plan.batches)
        last = self.effort.looks[-1]
        for index in range(last):
            self.progress(self._share(index, last, cap_s), f"round {index + 1} of up to {last}")
            record, taken = timed(lambda index=index: self._round(index))  # type: ignore[misc]
            self.result.rounds.append(record)
            self.spent_s += taken / 1e9
            done = index + 1
            if not self.result.alive() or self._at_look(done, decide):
                break
            if done >= MIN_ROUNDS and self.spent_s * (done + 1) / done > cap_s:
                self.result.stopped = f"the cap of {cap_s:.0f} s, after {done} rounds"
                break
        self.progress(1.0, f"timed {len(self.result.rounds)} rounds in {self.spent_s:.0f} s")

    def _share(self, index: int, last: int, cap_s: float) -> float:
        spent = self.spent_s / cap_s if cap_s > 0 else 1.0
        return min(0.99, max(index / last, spent))

    def _at_look(self, done: int, decide: Decide) -> bool:
        if done not in self.effort.looks:
            return False
        self.result.looks.append(done)
        return done < self.effort.looks[-1] and decide(self.result)

    def _round(self, index: int) -> Round:
        order = self.result.alive()
        self.random.shuffle(order)
        record = Round(index, [v.name for v in order])
        before, swapped = host.cpu_time(), host.swapped_in_pages()
        own = _own_cpu_s()
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            _, taken = timed(lambda: self._fill(record, order, Path(folder), stack))
        record.seconds = taken / 1e9
        record.observe(before, host.cpu_time(), swapped, host.swapped_in_pages(), own, _own_cpu_s())
        return record

    def _fill(
        self, record: Round, order: Sequence[Variant], folder: Path, stack: ExitStack
    ) -> None:
        """Start the round's processes, load, warm up and time in turn, and ask what it cost."""
        children: dict[str, Child] = {}
        for i, variant in enumerate(order):
            log = folder / f"{i}.log"
            child = Child(variant.name, self.plan.threads, log, self.plan.answer_within_s)
            stack.callback(child.close)
            children[variant.name] = child
        session = _Session(self.result, record, children)
        session.each(order, lambda v, c: c.send("hello", runtime=v.runtime))
        session.each(order, lambda v, c: session.said_hello(v, c.receive()))
        session.each(order, lambda v, c: session.loaded(v, c, self.plan.threads))
        for batch in self.plan.batches:
            self._time_batch(session, order, batch)
        session.each(order, lambda v, c: session.asked_status(v, c.ask("status")))

    def _time_batch(self, session: _Session, order: Sequence[Variant], batch: int) -> None:
        timing = self.effort.timing
        able = session.each_batch(
            order, batch, lambda v, c: session.bound(v, c, batch, self.feeds, timing)
        )
        for i in range(self.effort.blocks):
            if i % 2:
                able.reverse()  # ABBA: whoever went first now goes last
            else:
                self.random.shuffle(able)
            session.record.block_orders.append([v.name for v in able])
            able = session.each_batch(
                able, batch, lambda v, c: session.timed_block(v, c, batch, timing)
            )


@dataclass
class _Session:
    """One round's processes; what fails is noted in the result and left out from then on."""

    result: BenchResult
    record: Round
    children: dict[str, Child]

    def each(self, order: Sequence[Variant], work: Callable[[Variant, Child], None]) -> None:
        """Do `work` with each variant still there; one that fails is out of the benchmark."""
        for variant in order:
            self._try(variant, None, work)

    def each_batch(
        self, order: Sequence[Variant], batch: int, work: Callable[[Variant, Child], None]
    ) -> list[Variant]:
        """The same for one batch size; an error answered (not a death) costs that batch only."""
        return [v for v in order if self.result.has(v.name, batch) and self._try(v, batch, work)]

    def _try(
        self, variant: Variant, batch: int | None, work: Callable[[Variant, Child], None]
    ) -> bool:
        if (variant.name, None) in self.result.failures:
            return False
        try:
            work(variant, self.children[variant.name])
            return True
        except ChildError as error:
            where = None if error.died else batch
            self.result.failures[(variant.name, where)] = error.failure
            return False

    def said_hello(self, variant: Variant, answer: dict[str, object]) -> None:
        """Keep versions, host facts and the clock's overhead."""
        self.result.hellos[variant.name] = answer

    def loaded(self, variant: Variant, child: Child, threads: int) -> None:
        """Load the model, and keep how long that took."""
        root = str(variant.artifact.root.resolve())
        self.record.loads[variant.name] = child.ask(
            "load", artifact=root, threads=threads, device=variant.device
        )

    def bound(
        self, variant: Variant, child: Child, batch: int, feeds: Path, timing: TimingPlan
    ) -> None:
        """Bind the feeds and warm up."""
        child.ask("bind", feeds=str(feeds), batch=batch)
        warm = child.ask("warm_up", batch=batch, plan=timing.to_json())
        self.record.warmups[(variant.name, batch)] = WarmUp(**warm)

    def timed_block(self, variant: Variant, child: Child, batch: int, timing: TimingPlan) -> None:
        """Time one block."""
        answer = child.ask(
            "block", batch=batch, ns=timing.block_ns, iterations=timing.block_iterations
        )
        taken = np.asarray(answer["samples_ns"], dtype=np.int64)
        self.record.blocks.setdefault((variant.name, batch), []).append(taken)

    def asked_status(self, variant: Variant, answer: dict[str, object]) -> None:
        """Keep CPU time and peak memory."""
        self.record.statuses[variant.name] = answer


def _own_cpu_s() -> float:
    times = os.times()
    return times.user + times.system
