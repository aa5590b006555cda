"""What a benchmark measured: raw samples by round, and the statistics over them.

The value of a round is the median over its blocks of the blocks' medians; latencies and speed-ups
are t-intervals over the logarithms of those, a speed-up over the paired ratios of the same round.
With fewer than 15 rounds a bootstrap covers too little. Percentiles are by nearest rank over all
samples of all rounds; nothing is removed.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from compressor.result import Failure, Timing
from compressor.statistics import (
    median_interval,
    nearest_rank,
    percentile_upper_bound,
    ratio_interval,
)
from runtimes.arrays import write_arrays
from runtimes.errors import BoardError
from runtimes.host import CpuTime
from runtimes.timing import Measurement, TimingPlan, WarmUp
from runtimes.types import Artifact

ALPHA = 0.05
OTHERS_CORES = 0.5
STOLEN_SHARE = 0.02
QUANTILES = 101
Key = tuple[str, int]


@dataclass(frozen=True)
class Variant:
    """One thing to time: an artifact through a runtime, under a name of its own."""

    name: str
    artifact: Artifact
    runtime: str
    device: str = "CPU"


@dataclass
class Round:
    """One round: a fresh process per variant, blocks in `block_orders`.

    `others_cores` is how many cores other programs kept busy, `stolen` the share of the time the
    hypervisor took; None where the system does not say.
    """

    index: int
    order: list[str]
    block_orders: list[list[str]] = field(default_factory=list)
    blocks: dict[Key, list[np.ndarray[Any, Any]]] = field(default_factory=dict)
    warmups: dict[Key, WarmUp] = field(default_factory=dict)
    loads: dict[str, dict[str, Any]] = field(default_factory=dict)
    statuses: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: float = 0.0
    others_cores: float | None = None
    stolen: float | None = None
    swapped_in: int | None = None

    def observe(
        self,
        before: CpuTime | None,
        after: CpuTime | None,
        swapped_before: int | None,
        swapped_after: int | None,
        own_before_s: float,
        own_after_s: float,
    ) -> None:
        """What the rest of the machine did meanwhile: all CPU time but the children's and ours."""
        if swapped_before is not None and swapped_after is not None:
            self.swapped_in = swapped_after - swapped_before
        if before is None or after is None or self.seconds <= 0:
            return
        children = sum(float(status["cpu_s"]) for status in self.statuses.values())
        others = after.busy - before.busy - children - (own_after_s - own_before_s)
        self.others_cores = max(0.0, others / self.seconds)
        self.stolen = (after.stolen - before.stolen) / self.seconds

    def median_ns(self, key: Key) -> float | None:
        """The round's value for a variant and batch; None where it has no block."""
        blocks = self.blocks.get(key)
        if not blocks:
            return None
        return float(np.median([float(np.median(block)) for block in blocks]))

    def to_json(self) -> dict[str, Any]:
        """The round without its raw samples."""
        values = {f"{name}@{batch}": self.median_ns((name, batch)) for name, batch in self.blocks}
        return {
            "index": self.index,
            "order": self.order,
            "block_orders": self.block_orders,
            "median_ns": values,
            "cold_load_ns": {name: load["cold_load_ns"] for name, load in self.loads.items()},
            "settled": {f"{n}@{b}": w.settled for (n, b), w in self.warmups.items()},
            "seconds": self.seconds,
            "others_cores": self.others_cores,
            "stolen": self.stolen,
            "swapped_in": self.swapped_in,
        }


@dataclass
class BenchResult:
    """Everything a benchmark found out.

    `failures` maps (variant, batch) to why it has no timing; batch None stands for all of them.
    `looks` are the rounds after which the result was judged; the confidence level is shared among
    the planned looks, so that looking more than once keeps the error rate.
    """

    variants: tuple[Variant, ...]
    batches: tuple[int, ...]
    threads: int
    seed: int
    effort: str
    planned_looks: tuple[int, ...]
    timing_plan: TimingPlan
    self_test: str | None = None
    samples_dir: Path | None = None
    rounds: list[Round] = field(default_factory=list)
    looks: list[int] = field(default_factory=list)
    stopped: str = ""
    failures: dict[tuple[str, int | None], Failure] = field(default_factory=dict)
    hellos: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def level(self) -> float:
        """Two-sided confidence of every interval: 95 %, or 99 % with five planned looks."""
        return 1.0 - ALPHA / len(self.planned_looks)

    def alive(self) -> list[Variant]:
        """Variants that can still be timed at some batch size."""
        return [v for v in self.variants if any(self.has(v.name, b) for b in self.batches)]

    def has(self, name: str, batch: int) -> bool:
        """Whether nothing failed for this variant at this batch size."""
        return self.failure(name, batch) is None

    def failure(self, name: str, batch: int) -> Failure | None:
        """Why there is no timing; None where there is one."""
        return self.failures.get((name, None)) or self.failures.get((name, batch))

    def settings(self, name: str) -> dict[str, str]:
        """What the engine said it ran with (precision, threads, …)."""
        loads = [r.loads[name]["settings"] for r in self.rounds if name in r.loads]
        return dict(loads[-1]) if loads else {}

    def versions(self, name: str) -> dict[str, str]:
        """Engine name → version."""
        return dict(self.hellos.get(name, {}).get("versions", {}))

    def timing(self, name: str, batch: int, over: str | None = None) -> Timing:
        """Latency of a variant, and its speed-up over another one (> 1: `name` is the faster).

        `histogram_ms` holds 101 evenly spaced quantiles, minimum and maximum included.

        Raises:
            BoardError: this variant has no timing at this batch size; the text says why.
        """
        blocks = self._blocks((name, batch))
        pooled = np.concatenate(blocks) / 1e6
        ordered = np.sort(pooled)
        p50, low, high = median_interval(self._medians_ms((name, batch)), self.level)
        ratio = self._ratio(name, batch, over)
        loads = [r.loads[name]["cold_load_ns"] / 1e6 for r in self.rounds if name in r.loads]
        return Timing(
            batch=batch,
            threads=self.threads,
            source="timed",
            p50_ms=p50,
            p50_interval_ms=(low, high),
            p90_ms=nearest_rank(ordered, 0.90),
            p99_ms=nearest_rank(ordered, 0.99),
            p99_upper_ms=percentile_upper_bound(pooled, 0.99, self.level),
            min_ms=float(ordered[0]),
            n=int(ordered.size),
            rounds=len(self._medians_ms((name, batch))),
            speedup=ratio[0] if ratio else None,
            speedup_interval=ratio[1:] if ratio else None,
            speedup_over=over if ratio else None,
            cold_load_ms=float(np.median(loads)) if loads else None,
            peak_rss_bytes=self._peak_rss(name),
            samples=self.samples_name(name, batch) if self.samples_dir else None,
            histogram_ms=[nearest_rank(ordered, p) for p in np.linspace(0, 1, QUANTILES)],
            doubts=self.doubts(name, batch) + self._missing_over(batch, over),
        )

    def doubts(self, name: str, batch: int) -> list[str]:
        """Why this timing may not repeat: its own unsteadiness, and what the machine did."""
        key = (name, batch)
        measured = Measurement(
            batch=batch,
            threads=self.threads,
            blocks=tuple(self._blocks(key)),
            warmups=tuple(r.warmups[key] for r in self.rounds if key in r.warmups),
            plan=self.timing_plan,
            host=self.hellos[name]["host"],
            clock_overhead_ns=int(self.hellos[name]["clock_overhead_ns"]),
        )
        return measured.doubts() + self._machine_doubts() + self._self_test_doubts(batch)

    def samples_name(self, name: str, batch: int) -> str:
        """The file of a variant's raw samples in `samples_dir`."""
        return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-") + f"-batch{batch}.npz"

    def write_samples(self, folder: Path) -> None:
        """Raw nanoseconds of every variant and batch: arrays named `round/block`."""
        folder.mkdir(parents=True, exist_ok=True)
        for variant in self.variants:
            for batch in self.batches:
                arrays = {
                    f"{r.index:02d}/{i:02d}": block
                    for r in self.rounds
                    for i, block in enumerate(r.blocks.get((variant.name, batch), []))
                }
                if arrays:
                    write_arrays(folder / self.samples_name(variant.name, batch), arrays)

    def to_json(self) -> dict[str, Any]:
        """The whole benchmark without raw samples, as plain JSON."""
        return {
            "effort": self.effort,
            "seed": self.seed,
            "threads": self.threads,
            "level": self.level,
            "looks": self.looks,
            "planned_looks": list(self.planned_looks),
            "stopped": self.stopped,
            "plan": self.timing_plan.to_json(),
            "percentile": "nearest rank, x[ceil(n p) - 1]",
            "interval": "t over the logarithms of one value a round",
            "variants": {
                v.name: {
                    "artifact": v.artifact.digest(),
                    "runtime": v.runtime,
                    "device": v.device,
                    "versions": self.versions(v.name),
                    "settings": self.settings(v.name),
                }
                for v in self.variants
            },
            "failures": [
                {"variant": name, "batch": batch, "kind": f.kind, "message": f.message}
                for (name, batch), f in self.failures.items()
            ],
            "rounds": [r.to_json() for r in self.rounds],
        }

    def _blocks(self, key: Key) -> list[np.ndarray[Any, Any]]:
        failure = self.failure(*key)
        blocks = [block for r in self.rounds for block in r.blocks.get(key, [])]
        if failure is not None or not blocks:
            what = failure.message if failure else "it was never timed"
            raise BoardError(what, where=f"{key[0]} at batch {key[1]}")
        return blocks

    def _medians_ms(self, key: Key) -> list[float]:
        values = (r.median_ns(key) for r in self.rounds)
        return [value / 1e6 for value in values if value is not None]

    def _ratio(self, name: str, batch: int, over: str | None) -> tuple[float, float, float] | None:
        if over is None or not self.has(over, batch):
            return None
        pairs = [(r.median_ns((over, batch)), r.median_ns((name, batch))) for r in self.rounds]
        logs = [math.log(a / b) for a, b in pairs if a is not None and b is not None]
        return ratio_interval(logs, self.level) if logs else None

    def _missing_over(self, batch: int, over: str | None) -> list[str]:
        failure = self.failure(over, batch) if over else None
        return [f"no speed-up: {over} could not be timed: {failure.message}"] if failure else []

    def _peak_rss(self, name: str) -> int | None:
        peaks = [r.statuses[name].get("peak_rss_bytes") for r in self.rounds if name in r.statuses]
        return max((int(peak) for peak in peaks if peak), default=None)

    def _machine_doubts(self) -> list[str]:
        found = []
        others = [r.others_cores for r in self.rounds if r.others_cores is not None]
        if others and float(np.median(others)) > OTHERS_CORES:
            found.append(f"other programs kept {np.median(others):.1f} cores busy")
        stolen = [r.stolen for r in self.rounds if r.stolen is not None]
        if stolen and float(np.median(stolen)) > STOLEN_SHARE:
            found.append(f"the hypervisor took {np.median(stolen):.0%} of the time")
        if any(r.swapped_in for r in self.rounds):
            found.append("memory was read back from swap during the measurement")
        return found

    def _self_test_doubts(self, batch: int) -> list[str]:
        if self.self_test is None:
            return []
        first = self.variants[0].name
        ratio = self._ratio(first + self.self_test, batch, first)
        if ratio is None or ratio[1] <= 1.0 <= ratio[2]:
            return []
        return [f"{first} measured against itself differs by {abs(ratio[0] - 1):.1%}"]
