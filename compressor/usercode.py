"""Functions the user names: whether they take what they are called with, and whose a failure is."""

from __future__ import annotations

import inspect
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtimes.errors import UsageError

OURS = tuple(
    str(Path(__file__).parents[1] / name) for name in ("compressor", "exporters", "runtimes")
)


def takes(function: Callable[..., Any], count: int, where: str, expected: str) -> None:
    """`UsageError` where `function` cannot be called with `count` positional arguments."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # builtins and the like do not tell
        return
    try:
        signature.bind(*[None] * count)
    except TypeError as error:
        raise UsageError(
            f"it cannot be called with {count} arguments: {error}",
            where=where,
            expected=expected,
            got=f"function{signature}",
            fix="change its arguments",
        ) from error


def users_error(error: Exception) -> UsageError | None:
    """An exception that left the user's own code as a `UsageError` with its line, else None.

    It is theirs where the traceback enters a file that is neither ours, Python's nor an installed
    library's, and does not come back to us before it is raised.
    """
    culprit = None
    for frame in traceback.extract_tb(error.__traceback__):
        if _within(frame.filename, OURS):
            culprit = None
        elif not frame.filename.startswith("<") and not _within(frame.filename, _installed()):
            culprit = frame
    if culprit is None:
        return None
    return UsageError(
        f"{culprit.name} raised {type(error).__name__}: {error}",
        where=f"{culprit.filename}:{culprit.lineno}",
        fix="repair that code (-v shows the whole traceback)",
    )


def _within(file: str, folders: tuple[str, ...]) -> bool:
    return any(Path(file).is_relative_to(folder) for folder in folders)


def _installed() -> tuple[str, ...]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    found = sysconfig.get_paths()
    return tuple(found[name] for name in names)
