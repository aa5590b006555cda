"""Models built for a target and timed side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from compressor.pruning.latency import Timer
from exporters.base import Env, Samples, batch_range, example_feeds
from runtimes.base import Feeds, engine_of
from runtimes.errors import BuildFailed
from runtimes.types import Artifact

Write = Callable[[Any, Path], Artifact]  # a model, and the folder it goes into

SECONDS = 5.0  # of timing for each model; the fewest rounds take about as long


def clock(env: Env, target: str | None, write: Write, data: Samples | None) -> Timer:
    """A timer of models, on the step's own target or `target`.

    One call at the smallest batch is timed, in fresh processes, interleaved; it raises
    `BuildFailed` where a build does not run.
    """
    from compressor.bench import BenchPlan, Variant, bench

    count = 0

    def timer(models: Sequence[Any]) -> list[float]:
        nonlocal count
        variants = []
        for model in models:
            count += 1
            env.progress(0.3, f"building and timing variant {count}")
            made, device = env.built(write(model, env.scratch / f"timed{count}"), target)
            variants.append(Variant(f"v{count}", made, engine_of(made), device))
        batch, feeds = _smallest(variants[0].artifact, data, env)
        plan = BenchPlan("quick", (batch,), seed=env.context.seed, cap_s=SECONDS)
        found = bench(variants, {batch: [feeds]}, plan)
        for variant in variants:
            if broken := found.failure(variant.name, batch):
                raise BuildFailed(f"a build does not run: {broken.message}", where="prune_channels")
        return [found.timing(v.name, batch).p50_ms * 1e6 for v in variants]

    return timer


def _smallest(made: Artifact, data: Samples | None, env: Env) -> tuple[int, Feeds]:
    low, _ = batch_range(made.inputs, made.facts.get("bounds"))
    if data is not None and len(data) >= low:
        return low, data.feeds(list(range(low)))
    free = {s.shape[0]: low for s in made.inputs if s.shape and isinstance(s.shape[0], str)}
    return low, example_feeds(made.inputs, {**env.context.dims, **free}, env.context.seed)
