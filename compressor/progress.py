"""Progress on stderr: a moving line on a terminal, one plain line per finished piece elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from compressor.env import Progress, Silent


class Lines:
    """One line per finished piece of work, for logs and pipes."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.title, self.told = stream, "", 0.0

    def begin(self, title: str) -> None:
        """Remember what runs; nothing is printed until it says how far it is or ends."""
        self.title, self.told = title, time.monotonic()

    def update(self, done: float, message: str) -> None:
        """A line at most every 15 seconds."""
        if time.monotonic() - self.told > 15:
            self.told = time.monotonic()
            self.say(f"{self.title} {done:4.0%} {message}")

    def end(self, summary: str) -> None:
        """The line that stays."""
        self.say(f"{self.title}  {summary}".rstrip())

    def say(self, message: str) -> None:
        """A line of its own."""
        print(f"[{time.strftime('%H:%M:%S')}] {message}", file=self.stream, flush=True)


class Live:
    """A bar with the remaining time below the finished lines, drawn by rich."""

    def __init__(self, bar: Any) -> None:
        self.bar = bar
        self.task: Any = None
        self.title = ""

    def begin(self, title: str) -> None:
        """Show a new bar."""
        self._clear()
        self.title = title
        self.task = self.bar.add_task(title, total=1.0, message="")

    def update(self, done: float, message: str) -> None:
        """Move the bar."""
        if self.task is not None:
            self.bar.update(self.task, completed=done, message=message)

    def end(self, summary: str) -> None:
        """Replace the bar by the line that stays."""
        self._clear()
        self.say(f"{self.title}  {summary}".rstrip())

    def say(self, message: str) -> None:
        """A line above the bar."""
        self.bar.console.print(message, highlight=False, markup=False)

    def _clear(self) -> None:
        if self.task is not None:
            self.bar.remove_task(self.task)
            self.task = None


@contextmanager
def on_stderr(quiet: bool = False) -> Iterator[Progress]:
    """Progress for a command: live on a terminal, lines elsewhere, nothing with `quiet`."""
    if quiet:
        yield Silent()
    elif not sys.stderr.isatty():
        yield Lines(sys.stderr)
    else:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = ("[bold]{task.description}", "{task.fields[message]}")
        bar = Bar(
            TextColumn(columns[0]),
            BarColumn(bar_width=24),
            TimeRemainingColumn(),
            TextColumn(columns[1]),
            console=Console(stderr=True),
            transient=True,
        )
        with bar:
            yield Live(bar)
