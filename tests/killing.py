"""A training that dies at one step and goes on at the next attempt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from compressor.recovery import loop


class Killed(Exception):
    """Stands for kill -9."""


def resumed(monkeypatch: pytest.MonkeyPatch, at: int, attempt: Callable[[], Any]) -> Any:
    """What `attempt` gives after a first one died at step `at`; it must go on at that step."""
    steps: list[Any] = []
    real = loop._step

    def step(*args: Any) -> Any:
        if len(steps) == at:
            raise Killed
        steps.append(args[3])
        return real(*args)

    monkeypatch.setattr(loop, "_step", step)
    with pytest.raises(Killed):
        attempt()
    after: list[Any] = []
    monkeypatch.setattr(loop, "_step", lambda *args: after.append(args[3]) or real(*args))
    made = attempt()
    assert after[0] == at
    return made
