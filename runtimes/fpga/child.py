"""Tools as child processes: a time limit, a log that is kept, and its last lines on a failure."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Mapping, Optional, Sequence

from runtimes.errors import BuildFailed

SHOWN = 8  # lines of a log


def run_tool(
    command: Sequence[str],
    log: Path,
    limit_s: float,
    cwd: Path,
    environment: Optional[Mapping[str, str]] = None,
    *,
    where: str = "to_fpga",
    telling: Sequence[str] = (),
) -> None:
    """Run a command to its end; what it says goes to `log`, which is named after the tool.

    Raises `BuildFailed` with the last lines of the log, or the first ones that hold a word of
    `telling`, where it fails or takes longer than `limit_s` seconds; all its children are stopped
    then.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as stream:
        child = subprocess.Popen(
            list(command), stdout=stream, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            cwd=str(cwd), env={**os.environ, **(environment or {})}, start_new_session=True,
        )  # fmt: skip
        how = ""
        try:
            code = child.wait(limit_s)
        except subprocess.TimeoutExpired:
            _stop(child)
            how = f"was stopped after {limit_s:.0f} s"
        except BaseException:
            _stop(child)
            raise
    if not how and code:
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
    if how:
        raise BuildFailed(f"{log.stem} {how}; {_told(log, telling)}", where=where, fix=f"see {log}")


def _stop(child: subprocess.Popen[bytes]) -> None:
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _told(log: Path, telling: Sequence[str]) -> str:
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    first = [line for line in lines if any(word in line for word in telling)][: SHOWN // 2]
    shown = "".join(f"\n    {line[:200]}" for line in first or lines[-SHOWN:])
    return ("it says:" if first else "its last lines:") + shown
