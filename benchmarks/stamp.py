"""When, of which code and on which machine something was measured."""

from __future__ import annotations

import datetime
import subprocess
from pathlib import Path
from typing import Any

from runtimes.host import facts

ROOT = Path(__file__).resolve().parents[1]
_HOST = ("cpu", "isa", "cpus", "memory_bytes", "kernel", "python", "virtual")


def stamp() -> dict[str, Any]:
    """`date`, `commit` and `host` of a measurement that ends now."""
    now = datetime.datetime.now(datetime.timezone.utc)
    found = facts()
    return {
        "date": now.strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        "host": {key: found[key] for key in _HOST},
    }


def commit() -> str:
    """The commit that was measured, with a + where the tree has changes."""

    def git(*args: str) -> str:
        done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", "compressor", "exporters", "runtimes")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
