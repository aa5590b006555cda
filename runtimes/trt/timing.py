"""The only owner of a clock here: CUDA events for the GPU, the host's clock for the rest.

Compute, H2D and D2H are between CUDA events of one stream, as `trtexec` does it; latency is their
sum. Enqueue is how long the host needs to submit the work: near the compute time, the host is the
limit, and a CUDA graph helps.
"""

from __future__ import annotations

import time
from typing import Any, Callable, Dict, List, NamedTuple, Protocol, Sequence, Tuple, TypeVar

import numpy as np

T = TypeVar("T")
Clock = Callable[[], int]
UNSTABLE_COV, USELESS_COV = 0.025, 0.05
NEAR_ENQUEUE = 0.8


class Work(Protocol):
    """One inference in three parts, each of which only puts work into a stream."""

    def upload(self) -> None:
        """Inputs to the GPU."""

    def enqueue(self) -> None:
        """The network itself."""

    def download(self) -> None:
        """Outputs to the host."""


class Plan(NamedTuple):
    """At least so much warm-up, then at least so much time and so many inferences."""

    warmup_ms: float = 500.0
    duration_ms: float = 3000.0
    least: int = 50


def timed(work: Callable[[], T], clock: Clock = time.perf_counter_ns) -> Tuple[T, int]:
    """What `work` returns, and how many ns it took."""
    start = clock()
    made = work()
    return made, clock() - start


def measure(
    cuda: Any, stream: int, work: Work, plan: Plan, clock: Clock = time.perf_counter_ns
) -> Dict[str, Any]:
    """Time `work` until `plan` is met: what `summary` says of it."""
    scope = cuda.scope()
    events = [scope.event() for _ in range(4)]

    def once() -> Tuple[float, float, float, float]:
        cuda.record(events[0], stream)
        work.upload()
        cuda.record(events[1], stream)
        start = clock()
        work.enqueue()
        enqueue_ns = clock() - start
        cuda.record(events[2], stream)
        work.download()
        cuda.record(events[3], stream)
        cuda.synchronize(stream)
        parts = [cuda.elapsed_ms(events[i], events[i + 1]) for i in range(3)]
        return parts[0], parts[1], parts[2], enqueue_ns / 1e6

    try:
        _repeat(once, plan.warmup_ms, 1, clock)
        begin = clock()
        rows = _repeat(once, plan.duration_ms, plan.least, clock)
        return summary(rows, (clock() - begin) / 1e6)
    finally:
        scope.close()


def _repeat(once: Callable[[], T], duration_ms: float, least: int, clock: Clock) -> List[T]:
    begin, made = clock(), []  # type: Tuple[int, List[T]]
    while len(made) < least or (clock() - begin) / 1e6 < duration_ms:
        made.append(once())
    return made


def summary(rows: Sequence[Sequence[float]], walltime_ms: float) -> Dict[str, Any]:
    """Figures of (h2d, compute, d2h, enqueue) rows in ms; p50 … cov are of the GPU's compute.

    Percentiles are by nearest rank.
    """
    h2d, compute, d2h, enqueue = np.asarray(rows, np.float64).T
    latency = h2d + compute + d2h
    mean = float(compute.mean())
    made = {
        "source": "CUDA events",
        "samples": len(rows),
        **{f"p{p}_ms": percentile(compute, p) for p in (50, 90, 95, 99)},
        "min_ms": float(compute.min()),
        "max_ms": float(compute.max()),
        "mean_ms": mean,
        "cov": float(compute.std()) / mean if mean else 0.0,
        "h2d_ms": percentile(h2d, 50),
        "d2h_ms": percentile(d2h, 50),
        "enqueue_ms": percentile(enqueue, 50),
        **{f"latency_p{p}_ms": percentile(latency, p) for p in (50, 90, 99)},
        "latency_min_ms": float(latency.min()),
        "latency_p50_interval_ms": median_interval(latency),
        "throughput_per_s": len(rows) / walltime_ms * 1e3 if walltime_ms else 0.0,
    }
    return {**made, "doubts": doubts(made)}


def percentile(values: np.ndarray[Any, Any], percent: float) -> float:
    """Nearest rank, x[ceil(n p) - 1]."""
    ordered = np.sort(values)
    index = int(np.ceil(ordered.size * percent / 100 - 1e-9)) - 1
    return float(ordered[min(max(index, 0), ordered.size - 1)])


def median_interval(values: np.ndarray[Any, Any]) -> List[float]:
    """(low, high) of a median at 95 % by order statistics, as if inferences were independent."""
    ordered, reach = np.sort(values), 0.98 * np.sqrt(values.size)
    ranks = (values.size / 2 - reach, values.size / 2 + reach)
    return [float(ordered[int(np.clip(rank, 0, values.size - 1))]) for rank in ranks]


def doubts(made: Dict[str, Any]) -> List[str]:
    """Why these figures may not repeat, or say less than they seem to."""
    found = []
    if made["cov"] > USELESS_COV:
        found.append(f"GPU compute varies by {made['cov']:.1%}: no verdict can rest on it")
    elif made["cov"] > UNSTABLE_COV:
        found.append(f"GPU compute varies by {made['cov']:.1%} (more than {UNSTABLE_COV:.1%})")
    if made["enqueue_ms"] > NEAR_ENQUEUE * made["p50_ms"]:
        found.append("submitting takes about as long as computing: the host is the limit")
    return found
