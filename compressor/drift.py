"""How far a recurrent model runs away from the original when each is fed its own state."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from compressor.result import Drift
from compressor.stateful import RecurrentState, Run, steps_of
from exporters.base import Samples
from runtimes.base import Feeds

AFTER = (1, 10, 100, 1000)  # steps
IDENTICAL_DB = 300.0  # instead of infinity, which JSON cannot hold


class _Likeness:
    """Sums over what two models gave since the last look."""

    def __init__(self) -> None:
        self.signal = self.noise = self.product = self.other = 0.0

    def add(self, want: Mapping[str, Any], got: Mapping[str, Any]) -> None:
        for name, array in want.items():
            if array.dtype.kind != "f":
                continue
            a, b = array.astype(np.float64).ravel(), got[name].astype(np.float64).ravel()
            self.signal += float(a @ a)
            self.other += float(b @ b)
            self.product += float(a @ b)
            self.noise += float((a - b) @ (a - b))

    @property
    def sqnr_db(self) -> float | None:
        if not math.isfinite(self.noise) or (self.signal == 0 and self.noise > 0):
            return None
        if self.noise == 0:
            return IDENTICAL_DB
        return min(IDENTICAL_DB, 10 * math.log10(self.signal / self.noise))

    @property
    def cosine(self) -> float | None:
        size = math.sqrt(self.signal * self.other)
        return self.product / size if math.isfinite(size) and size > 0 else None


def drift(
    original: Run,
    candidate: Run,
    states: tuple[RecurrentState, RecurrentState],
    samples: Samples,
    after: tuple[int, ...] = AFTER,
) -> list[Drift]:
    """Outputs and states of two models side by side, over the steps up to each of `after`.

    The sequences of `samples` follow each other, again from the first where they are too short,
    and the state is never set back. A state that grows, such as a cache of keys and values, has as
    much room as the sequences need and no more: the first of them is all that is run.

    Args:
        original: one step of the original model, batch 1.
        candidate: one step of the other.
        states: of both, whose fixed shapes may differ.
        samples: sequences.
        after: step counts at which to look, in rising order.
    """
    rows: list[Drift] = []
    outputs, state = _Likeness(), _Likeness()
    first, second = states
    now: tuple[dict[str, Any], dict[str, Any]] | None = None
    steps = _sequence(samples, 0, first) if first.grows else _forever(samples, first)
    for count, (feeds, at) in enumerate(steps, 1):
        if now is None:
            now = first.first(feeds), second.first(feeds)
        want, got = (
            original(first.step(feeds, at, now[0])),
            candidate(second.step(feeds, at, now[1])),
        )
        now = first.next(want), second.next(got)
        outputs.add(first.shown(want), second.shown(got))
        state.add(*now)
        if count in after:
            rows.append(Drift(count, outputs.sqnr_db, outputs.cosine, state.sqnr_db, state.cosine))
            outputs, state = _Likeness(), _Likeness()
        if count >= after[-1]:
            break
    return rows


def _forever(samples: Samples, state: RecurrentState) -> Iterator[tuple[Feeds, int]]:
    while True:
        for i in range(len(samples)):
            yield from _sequence(samples, i, state)


def _sequence(samples: Samples, index: int, state: RecurrentState) -> Iterator[tuple[Feeds, int]]:
    feeds = samples.feeds([index])
    yield from ((feeds, at) for at in range(steps_of(feeds, state)))
