"""Scores, times and judges the artifacts of a run, through each target's own runtime."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from compressor.bench import BenchPlan, BenchResult, Variant, bench
from compressor.drift import drift
from compressor.env import Progress
from compressor.memory import release
from compressor.metrics import Metric
from compressor.recipe import MeasureSpec
from compressor.result import Comparison, Drift, LayerRow, Score, Timing
from compressor.stateful import RecurrentState, over_sequences
from compressor.store import Store, key_of
from compressor.validate import Evaluation, compare, evaluate
from exporters.base import Samples, batch_range, example_feeds
from runtimes.base import Feeds, Outputs, load_runtime
from runtimes.host import facts
from runtimes.types import Artifact

SCORING_REV = 3
SCORING_BATCH = 100
SCORING_BYTES = 4 << 20  # of a batch's inputs and outputs; activations are many times as much
PREPARED_FEEDS = 8  # timing cycles through at least this many real inputs (edge cases of zeros)
REFERENCE_ENGINE = "onnxruntime"  # part of the core: every run can score the original with it


@dataclass
class Judge:
    """Everything that measuring the artifacts of one run has in common.

    Attributes:
        samples: evaluation data (or the held-out part that tells agreement only), or None.
        metric: None when nothing can be scored.
        evaluator: the user's own loop over `run(feeds)`, or None.
    """

    store: Store
    measure: MeasureSpec
    progress: Progress
    samples: Samples | None
    metric: Metric | None
    evaluator: Callable[..., Any] | None
    seed: int
    threads: int
    dims: Mapping[str, int]
    timing_data: Samples | None
    samples_dir: Path
    base: Evaluation | None = None
    original: Artifact | None = None
    scored: list[tuple[str, bool]] = field(default_factory=list)

    def score(self, artifact: Artifact, runtime: str, device: str, title: str) -> Evaluation | None:
        """Outcomes of `artifact` on the evaluation data; known ones come from the store."""
        if self.metric is None or (self.samples is None and self.evaluator is None):
            return None
        engine = load_runtime(runtime)
        parts = {
            "rev": SCORING_REV,
            "artifact": artifact.digest(),
            "data": self.samples.fingerprint if self.samples is not None else None,
            "metric": self.metric.identity(),
            "engine": engine.versions(),
            "device": device,
            "isa": facts()["isa"],
        }
        if state := artifact.facts.get("state"):
            parts["state"] = dict(state)
        key = key_of(parts)
        self.progress.begin(f"{title}: score")
        kept = self.store.scores(key)
        if kept is not None:
            found = Evaluation.from_arrays(kept)
        else:
            found = self._evaluate(artifact, engine, device)
            release()
            self.store.put_scores(key, found.to_arrays())
        self.scored.append((key, kept is not None))
        value = "" if found.value is None else f"{self.metric.name} {found.value:.4f}"
        self.progress.end(f"{value} ({'reused' if kept is not None else f'{found.n:,} samples'})")
        return found

    @property
    def labelled(self) -> bool:
        """Whether accuracy can be judged at all, and not only how far the outputs moved."""
        return self.metric is not None and self.metric.kind != "free"

    def score_original(self, onnx: Artifact) -> Evaluation | None:
        """The original's outcomes, through ONNX Runtime, which every installation has."""
        self.original = onnx
        return self.score(onnx, REFERENCE_ENGINE, "CPU", "original")

    def _evaluate(self, artifact: Artifact, engine: Any, device: str) -> Evaluation:
        assert self.metric is not None
        done, total = 0, len(self.samples) if self.samples is not None else 0
        state = RecurrentState.of(artifact) if self.evaluator is None else None
        with engine.open_session(artifact, threads=self.threads, device=device) as session:
            once = session.run if state is None else over_sequences(session.run, state)

            def run(feeds: Feeds) -> Outputs:
                nonlocal done
                outputs = once(feeds)
                done += len(next(iter(feeds.values())))
                share = min(1.0, done / total) if total else 0.0
                self.progress.update(share, f"{done:,} of {total:,}" if total else f"{done:,}")
                return outputs

            return evaluate(
                run,
                self.samples,
                self.metric,
                batch=self._scoring_batch(artifact),
                evaluator=self.evaluator,
            )

    def _scoring_batch(self, artifact: Artifact) -> int:
        """At most the usual one; with a smallest batch above 1, one that leaves no shorter rest."""
        low, high = batch_range(artifact.inputs, artifact.facts.get("bounds"))
        state = RecurrentState.of(artifact)
        fits = max(1, SCORING_BYTES // self._sample_bytes(artifact))
        most = 1 if state is not None and state.alone else max(low, min(SCORING_BATCH, high, fits))
        rest = len(self.samples) if self.samples is not None else 0
        sizes = (b for b in range(most, low - 1, -1) if rest % b == 0 or rest % b >= low)
        return next(sizes, most)

    def _sample_bytes(self, artifact: Artifact) -> int:
        """Bytes of one sample's inputs and outputs; free dimensions at their typical size."""
        if self.samples is None:
            return 1
        given = sum(array.nbytes for array in self.samples.feeds([0]).values())
        for spec in artifact.outputs:
            sizes = [self.dims.get(d, 1) if isinstance(d, str) else d for d in spec.shape[1:]]
            given += 4 * math.prod(sizes)
        return max(1, given)

    def drift(self, artifact: Artifact, runtime: str, device: str) -> list[Drift]:
        """How far a recurrent model runs away from the original; empty for others."""
        state = RecurrentState.of(artifact)
        if state is None or self.original is None or self.samples is None:
            return []
        if self.evaluator is not None:
            return []
        first = RecurrentState.of(self.original)
        assert first is not None
        reference = load_runtime(REFERENCE_ENGINE)
        with (
            reference.open_session(self.original, threads=self.threads) as a,
            load_runtime(runtime).open_session(artifact, threads=self.threads, device=device) as b,
        ):
            return drift(a.run, b.run, (first, state), self.samples)

    def compare(self, candidate: Evaluation | None) -> Comparison | None:
        """`candidate` against the original on the same samples, or None without data."""
        if self.base is None or candidate is None or self.metric is None:
            return None
        return compare(self.metric, self.base, candidate, self.seed)

    def as_score(
        self, found: Evaluation | None, engine: str, reason: str, without: str = ""
    ) -> Score:
        """An evaluation as `run.json` keeps it; `without` says why another engine stood in."""
        name = self.metric.name if self.metric else ""
        if found is None:
            return Score(name, None, status="not_judged", reason=reason)
        better = bool(self.metric.higher_is_better) if self.metric else True
        if without:
            why = f"{engine} stood in on the same file: {without}"
            return Score(name, found.value, better, found.n, "emulated", why, engine)
        return Score(name, found.value, better, found.n, engine=engine)

    def time(
        self,
        variants: list[Variant],
        title: str,
        decide: Callable[[BenchResult], bool] | None = None,
        within_s: float | None = None,
    ) -> BenchResult:
        """Interleaved timing of `variants` in fresh processes, at every batch size.

        Past `within_s` seconds only the least number of rounds is run.
        """
        feeds = {b: self.feeds(variants[0].artifact, b) for b in self.batches(variants)}
        plan = BenchPlan(
            effort=self.measure.effort,
            batches=tuple(feeds),
            threads=self.measure.threads,
            seed=self.seed,
        )
        if within_s is not None:
            share = within_s / (max(1, len(variants) - 1) * len(feeds))
            plan = replace(plan, cap_s=min(plan.resolved().cap_s, share))
        self.progress.begin(f"{title}: time")
        found = bench(
            variants,
            feeds,
            plan,
            decide=decide,
            progress=self.progress.update,
            samples_dir=self.samples_dir / title.replace(" ", "-"),
        )
        self.progress.end("")
        return found

    def batches(self, variants: list[Variant]) -> list[int]:
        """The batch sizes that every variant accepts, those the recipe names or near them."""
        wanted = list(self.measure.batch)
        for variant in variants:
            wanted = [self.batch_near(variant.artifact, batch) for batch in wanted]
        return list(dict.fromkeys(wanted))

    def batch_near(self, artifact: Artifact, wanted: int) -> int:
        """The batch size closest to `wanted` that the artifact and the data allow."""
        low, high = batch_range(artifact.inputs, artifact.facts.get("bounds"))
        if low != high and self.timing_data is not None and self.timing_data.ragged:
            return 1
        return max(low, min(high, wanted))

    def feeds(self, artifact: Artifact, batch: int) -> list[dict[str, np.ndarray[Any, Any]]]:
        """Real inputs where there are any, else seeded examples; drawn with the run's seed."""
        if self.timing_data is None or not len(self.timing_data):
            dims = {**self.dims, **self._batch_dims(artifact, batch)}
            return [example_feeds(artifact.inputs, dims, self.seed + i) for i in range(8)]
        rng = np.random.default_rng(self.seed)
        total = len(self.timing_data)
        picks = [rng.integers(0, total, batch).tolist() for _ in range(PREPARED_FEEDS)]
        return [self.timing_data.feeds(pick) for pick in picks]

    def _batch_dims(self, artifact: Artifact, batch: int) -> dict[str, int]:
        return {
            spec.shape[0]: batch
            for spec in artifact.inputs
            if spec.shape and isinstance(spec.shape[0], str)
        }

    def layers(self, artifact: Artifact, runtime: str, device: str) -> list[LayerRow]:
        """Per layer: the precision asked for and the one the engine ran."""
        from compressor.quantization.precision import layer_table

        engine = load_runtime(runtime)
        if not hasattr(engine, "layer_precisions"):
            return []
        feeds = self.feeds(artifact, self.batches([Variant("", artifact, runtime, device)])[0])[0]
        found = engine.layer_precisions(
            artifact, feeds=feeds, threads=self.measure.threads, device=device
        )
        return layer_table(artifact, found)


def timings_of(
    result: BenchResult, name: str, over: str | None, twins: Sequence[str] = ()
) -> list[Timing]:
    """Timings of one variant at every batch size, with its speed-up over each of `twins`."""
    made = []
    for batch in result.batches:
        timing = result.timing(name, batch, over if over != name else None)
        ratios = {t: ratio for t in twins if (ratio := _ratio(result, name, batch, t))}
        made.append(replace(timing, ratios=ratios))
    return made


def _ratio(
    result: BenchResult, name: str, batch: int, twin: str
) -> tuple[float, float, float] | None:
    timing = result.timing(name, batch, twin)
    if timing.speedup is None or timing.speedup_interval is None:
        return None
    return (timing.speedup, *timing.speedup_interval)


def with_budget(measure: MeasureSpec, effort: str | None) -> MeasureSpec:
    """`measure` with another effort, where the command line names one."""
    return measure if effort is None else replace(measure, effort=effort)  # type: ignore[arg-type]
