"""The only owner of a clock: warm-up, blocks of inferences, and what to doubt about them.

The unit of a measurement is a *block*: inferences in a row, a quarter of a second or so. Neighbours
in time are alike (a quiet or a noisy spell of the machine), so statistics treat blocks, and above
them fresh processes, as the sample; never single inferences. Whoever compares two models
interleaves their blocks. Raw nanoseconds are kept, and nothing is removed as an outlier.
"""

from __future__ import annotations

import gc
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Callable, Dict, Iterator, List, Mapping, Sequence, Tuple, TypeVar

import numpy as np

T = TypeVar("T")
Clock = Callable[[], int]
UNSTEADY_CV = 0.05
NEAR_CLOCK = 0.01


@dataclass(frozen=True)
class TimingPlan:
    """How long to warm up and to measure.

    Attributes:
        block_ns, block_iterations: a block lasts at least both.
        warmup_ns, warmup_iterations: a warm-up lasts at least both, …
        warmup_tolerance: … and until two successive medians over `warmup_window` slices of
            `warmup_slice_ns` differ by less, …
        warmup_cap_ns: … or until this long.
    """

    block_ns: int = 250_000_000
    block_iterations: int = 5
    warmup_ns: int = 500_000_000
    warmup_iterations: int = 10
    warmup_tolerance: float = 0.02
    warmup_window: int = 5
    warmup_slice_ns: int = 50_000_000
    warmup_cap_ns: int = 10_000_000_000

    def to_json(self) -> Dict[str, Any]:
        """The plan as plain JSON."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> TimingPlan:
        """The inverse of `to_json`."""
        return TimingPlan(**dict(data))


@dataclass(frozen=True)
class WarmUp:
    """The first inference alone (cold), how long the warm-up took, and whether it settled."""

    first_ns: int
    iterations: int
    elapsed_ns: int
    settled: bool


class Stopwatch:
    """Times bound calls in turn, each on its own feeds; goes on where the last block stopped."""

    def __init__(
        self, calls: Sequence[Callable[[], None]], clock: Clock = time.perf_counter_ns
    ) -> None:
        self._calls, self._clock, self._next = list(calls), clock, 0

    def block(self, block_ns: int, iterations: int) -> np.ndarray[Any, Any]:
        """Durations in ns of at least `iterations` inferences that fill at least `block_ns`."""
        clock, calls, at, taken = self._clock, self._calls, self._next, []
        count = len(calls)
        with _no_collection():
            begin = clock()
            while True:
                call = calls[at % count]
                start = clock()
                call()
                end = clock()
                at += 1
                taken.append(end - start)
                if end - begin >= block_ns and len(taken) >= iterations:
                    break
        self._next = at % count
        return np.asarray(taken, dtype=np.int64)

    def warm_up(self, plan: TimingPlan) -> WarmUp:
        """Run until long enough and steady, or until the cap; the first inference is cold."""
        begin = self._clock()
        first = int(self.block(0, 1)[0])
        done, medians = 1, []  # type: Tuple[int, List[float]]
        while True:
            piece = self.block(plan.warmup_slice_ns, 1)
            done += len(piece)
            medians.append(float(np.median(piece)))
            elapsed = self._clock() - begin
            settled = _settled(medians, plan)
            enough = elapsed >= plan.warmup_ns and done >= plan.warmup_iterations
            if (enough and settled) or elapsed >= plan.warmup_cap_ns:
                return WarmUp(first, done, elapsed, settled)


def _settled(medians: Sequence[float], plan: TimingPlan) -> bool:
    """Whether the last two sliding medians of `warmup_window` slices agree."""
    window = plan.warmup_window
    if len(medians) <= window:
        return False
    before, now = np.median(medians[-window - 1 : -1]), np.median(medians[-window:])
    return bool(abs(now - before) <= plan.warmup_tolerance * before)


def timed(work: Callable[[], T], clock: Clock = time.perf_counter_ns) -> Tuple[T, int]:
    """What `work` returns, and how many ns it took."""
    start = clock()
    made = work()
    return made, clock() - start


def clock_overhead_ns(clock: Clock = time.perf_counter_ns, repeats: int = 1000) -> int:
    """Median duration of timing nothing at all; it is part of every sample."""
    taken = np.empty(repeats, dtype=np.int64)
    for i in range(repeats):
        start = clock()
        taken[i] = clock() - start
    return int(np.median(taken))


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python's garbage collector out of a block."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@dataclass(frozen=True)
class Measurement:
    """Raw samples of one model in one setting.

    `blocks` holds ns per inference, one array a block. `source` is `timed` (by us), `reported` (a
    vendor tool said so) or `simulated`; the three never share a column.
    """

    batch: int
    threads: int
    blocks: Tuple[np.ndarray[Any, Any], ...]
    warmups: Tuple[WarmUp, ...]
    plan: TimingPlan
    host: Mapping[str, Any] = field(default_factory=dict)
    clock_overhead_ns: int = 0
    source: str = "timed"

    @property
    def block_medians_ns(self) -> List[float]:
        """One median a block, in order."""
        return [float(np.median(block)) for block in self.blocks]

    def summary(self) -> Dict[str, Any]:
        """Percentiles of the pooled samples by nearest rank, x[ceil(n p) - 1], in ms."""
        pooled = np.sort(np.concatenate(self.blocks))
        named = {"min": 0.0, "p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "max": 1.0}
        shown = {name + "_ms": _rank(pooled, p) / 1e6 for name, p in named.items()}
        return {"n": int(pooled.size), "percentile": "nearest rank, x[ceil(n p) - 1]", **shown}

    def doubts(self) -> List[str]:
        """Why these numbers may not repeat, as sentences; empty where nothing is known."""
        medians = self.block_medians_ns
        found = []
        cv = float(np.std(medians) / np.mean(medians))
        if cv > UNSTEADY_CV:
            found.append(f"block medians vary by {cv:.0%} (more than {UNSTEADY_CV:.0%})")
        if not all(warmup.settled for warmup in self.warmups):
            found.append("the warm-up did not settle within its time limit")
        if self.clock_overhead_ns > NEAR_CLOCK * min(medians):
            found.append(
                f"the clock itself takes {self.clock_overhead_ns} ns"
                f" of an inference of {min(medians):.0f} ns"
            )
        cores = self.host.get("cpus_usable")
        if cores and self.threads > cores:
            found.append(f"{self.threads} threads on {cores} usable cores")
        return found

    def to_json(self) -> Dict[str, Any]:
        """Everything but the raw samples, as plain JSON."""
        return {
            "source": self.source,
            "batch": self.batch,
            "threads": self.threads,
            "latency": self.summary(),
            "blocks": [{"n": len(b), "p50_ms": float(np.median(b)) / 1e6} for b in self.blocks],
            "warmups": [asdict(warmup) for warmup in self.warmups],
            "clock_overhead_ns": self.clock_overhead_ns,
            "plan": self.plan.to_json(),
            "doubts": self.doubts(),
            "host": dict(self.host),
        }


def _rank(ordered: np.ndarray[Any, Any], p: float) -> float:
    index = int(np.ceil(ordered.size * p - 1e-9)) - 1
    return float(ordered[min(max(index, 0), ordered.size - 1)])
