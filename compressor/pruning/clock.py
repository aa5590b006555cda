"""Modules built for a target and timed side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from compressor.modules import reference_of, write_module
from compressor.pruning.latency import Timer
from compressor.pruning.plan import Subject
from exporters.base import Env, batch_range, example_feeds
from runtimes.base import Feeds, engine_of
from runtimes.errors import BuildFailed
from runtimes.types import Artifact

if TYPE_CHECKING:
    from torch import nn

SECONDS = 5.0  # of timing for each module; the fewest rounds take about as long


def clock(subject: Subject, env: Env, target: str | None) -> Timer:
    """A timer of variants of `subject.module`, on the step's own target or `target`.

    One call at the smallest batch is timed, in fresh processes, interleaved; it raises
    `BuildFailed` where a build does not run.
    """
    from compressor.bench import BenchPlan, Variant, bench

    count = 0

    def timer(modules: Sequence[nn.Module]) -> list[float]:
        nonlocal count
        variants = []
        for module in modules:
            count += 1
            env.progress(0.3, f"building and timing variant {count}")
            made, device = env.built(_written(module, subject, env, count), target)
            variants.append(Variant(f"v{count}", made, engine_of(made), device))
        batch, feeds = _least(variants[0].artifact, subject, env)
        plan = BenchPlan("quick", (batch,), seed=subject.seed, cap_s=SECONDS)
        found = bench(variants, {batch: [feeds]}, plan)
        for variant in variants:
            if broken := found.failure(variant.name, batch):
                raise BuildFailed(f"a build does not run: {broken.message}", where="prune_channels")
        return [found.timing(v.name, batch).p50_ms * 1e6 for v in variants]

    return timer


def _written(module: nn.Module, subject: Subject, env: Env, number: int) -> Artifact:
    root = env.scratch / f"timed{number}"
    factory = reference_of(env.reference) if env.reference.format == "module" else None
    outputs = env.reference.outputs
    return write_module(root, module, subject.inputs, outputs, factory=factory)


def _least(made: Artifact, subject: Subject, env: Env) -> tuple[int, Feeds]:
    low, _ = batch_range(made.inputs, made.facts.get("bounds"))
    if subject.data is not None and len(subject.data) >= low:
        return low, subject.data.feeds(list(range(low)))
    free = {s.shape[0]: low for s in made.inputs if s.shape and isinstance(s.shape[0], str)}
    return low, example_feeds(made.inputs, {**env.context.dims, **free}, subject.seed)
