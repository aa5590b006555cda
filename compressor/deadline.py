"""`--minutes`: how long a target and each of its candidates may take, and how a step is stopped.

A step is stopped where it tells how far it is or asks for more samples, which every long one does
every few seconds. A candidate gets half of what is left, so that one long step does not leave the
others without a chance.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from exporters.base import Samples

SPENT = "the minutes given were spent"
_SHARE = 0.5  # of what is left, for one candidate


class OutOfTime(Exception):  # noqa: N818 - no fault of anything
    """The time given was over before a step was done."""


@dataclass
class Deadline:
    """When a target must be done.

    Attributes:
        at: of the monotonic clock; None: whenever it is.
        reserve: seconds to score and time a candidate once it is built.
    """

    at: float | None = None
    reserve: float = 0.0

    def left(self) -> float | None:
        """Seconds until then, at least 0; None: as many as it takes."""
        return None if self.at is None else max(0.0, self.at - time.monotonic())

    def of_candidate(self) -> float | None:
        """When the build of the next candidate must be done; in the past where none may begin."""
        if self.at is None:
            return None
        now = time.monotonic()
        return now + _SHARE * (self.at - self.reserve - now)


class Watched:
    """Samples that call `check` whenever more of them are read."""

    def __init__(self, whole: Samples, check: Callable[[], None]) -> None:
        self._whole, self._check = whole, check

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)

    def __len__(self) -> int:
        return len(self._whole)

    def feeds(self, indices: Sequence[int]) -> dict[str, Any]:
        """The named samples as one batch, by input name."""
        self._check()
        return self._whole.feeds(indices)

    def batches(
        self, size: int, indices: Sequence[int] | None = None
    ) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """Batches of (indices, feeds), in order."""
        for part in self._whole.batches(size, indices):
            self._check()
            yield part
