"""Warm-up, blocks and doubts, under a clock that tests hold in their hand."""

from __future__ import annotations

import gc
from dataclasses import replace

import numpy as np

from runtimes.timing import Measurement, Stopwatch, TimingPlan, WarmUp, clock_overhead_ns, timed

MS = 1_000_000
PLAN = TimingPlan()


class FakeClock:
    """Stands still until something takes time."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


def engine(clock: FakeClock, latencies_ms: list[float], used: list[int] | None = None):
    """One call per entry of a script; the last entry repeats."""
    script = iter(latencies_ms[:-1])

    def call() -> None:
        clock.now += int(next(script, latencies_ms[-1]) * MS)
        if used is not None:
            used.append(clock.now)

    return call


def test_a_block_fills_its_time() -> None:
    clock = FakeClock()
    taken = Stopwatch([engine(clock, [10])], clock).block(250 * MS, 5)
    assert taken.tolist() == [10 * MS] * 25


def test_a_block_has_its_iterations_even_when_slow() -> None:
    clock = FakeClock()
    assert len(Stopwatch([engine(clock, [400])], clock).block(250 * MS, 5)) == 5


def test_feeds_are_cycled_across_blocks() -> None:
    clock = FakeClock()
    seen: list[str] = []
    calls = [lambda n=n: (seen.append(n), engine(clock, [100])()) for n in "abc"]
    watch = Stopwatch(calls, clock)
    watch.block(200 * MS, 1)
    watch.block(200 * MS, 1)
    assert seen == ["a", "b", "c", "a"]


def test_a_steady_engine_warms_up_for_the_minimum() -> None:
    clock = FakeClock()
    warm = Stopwatch([engine(clock, [30, 10])], clock).warm_up(PLAN)
    assert warm.first_ns == 30 * MS
    assert warm.settled
    assert 500 * MS <= warm.elapsed_ns < 600 * MS


def test_a_warming_engine_is_waited_for() -> None:
    clock = FakeClock()
    falling = [50 * 0.97**i for i in range(60)] + [8.0]
    warm = Stopwatch([engine(clock, falling)], clock).warm_up(PLAN)
    assert warm.settled
    assert warm.iterations > 60


def test_an_engine_that_never_settles_stops_at_the_cap() -> None:
    clock = FakeClock()
    grow = [1.05**i for i in range(200)]
    warm = Stopwatch([engine(clock, grow)], clock).warm_up(replace(PLAN, warmup_cap_ns=900 * MS))
    assert not warm.settled
    assert warm.elapsed_ns >= 900 * MS


def test_nothing_is_collected_inside_a_block() -> None:
    clock = FakeClock()
    seen: list[bool] = []
    run = engine(clock, [300])
    Stopwatch([lambda: (seen.append(gc.isenabled()), run())], clock).block(1, 2)
    assert seen == [False, False]
    assert gc.isenabled()


def measurement(blocks: list[list[float]], **changes) -> Measurement:
    arrays = tuple(np.array(b) * MS for b in blocks)
    made = Measurement(1, 1, arrays, (WarmUp(1, 10, 1, True),), PLAN, {"cpus_usable": 2})
    return replace(made, **changes)


def test_steady_blocks_raise_no_doubt() -> None:
    assert measurement([[1.0, 1.01], [1.0, 1.02], [1.01]]).doubts() == []


def test_every_doubt_is_said() -> None:
    doubtful = measurement(
        [[1.0], [2.0]], threads=4, warmups=(WarmUp(1, 1, 1, False),), clock_overhead_ns=MS // 10
    )
    said = "\n".join(doubtful.doubts())
    for part in ("vary by 33%", "did not settle", "clock itself", "4 threads on 2"):
        assert part in said


def test_percentiles_are_by_nearest_rank() -> None:
    shown = measurement([[float(i) for i in range(1, 101)]]).summary()
    assert (shown["min_ms"], shown["p50_ms"], shown["p99_ms"], shown["max_ms"]) == (1, 50, 99, 100)
    assert shown["n"] == 100


def test_timed_and_overhead_use_the_clock() -> None:
    clock = FakeClock()
    assert timed(engine(clock, [7]), clock) == (None, 7 * MS)
    assert clock_overhead_ns(clock) == 0
    assert clock_overhead_ns() > 0
