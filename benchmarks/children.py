"""A command in a process group of its own: time limit, peak memory of the tree, the end of its log.

What another tool does to a model may crash, hang or fill the memory; none of that may end a
benchmark. Memory is sampled every 50 ms over the process and all below it: the sum of their
resident sets (pages they share count once each), and the same without pages of files. The largest
single process is the kernel's own count, which no sample misses.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

POLL_S = 0.05
TAIL_BYTES = 20_000


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        code: its exit status; negative: the signal that ended it; None: it ran past its limit.
        seconds: wall clock.
        tree_bytes: largest sum of the resident sets of its process tree.
        process_bytes: largest resident set of one of its processes, as the kernel counts it.
        anonymous_bytes: largest sum without file-backed pages (mapped data, libraries).
        out: the end of its standard output.
        log: the end of its standard error.
    """

    code: int | None
    seconds: float
    tree_bytes: int
    process_bytes: int
    anonymous_bytes: int
    out: str
    log: str

    @property
    def why(self) -> str:
        """Why it failed, in one line; empty where it did not."""
        if self.code == 0:
            return ""
        if self.code is None:
            return f"stopped after {self.seconds:.0f} s"
        if self.code < 0:
            name = signal.Signals(-self.code).name
            return f"died of {name}: {_last_line(self.log)}".rstrip(": ")
        return _last_line(self.log) or f"exit code {self.code}"


def run_child(
    command: Sequence[str | os.PathLike[str]],
    *,
    limit_s: float,
    env: Mapping[str, str] | None = None,
    memory_bytes: int | None = None,
) -> Ended:
    """Run `command` to its end or `limit_s`; `memory_bytes` bounds its address space."""

    def bounded() -> None:
        _die_with_parent()
        if memory_bytes is not None:
            resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))

    with tempfile.TemporaryDirectory(prefix="bench-child-") as folder:
        out, log = Path(folder) / "out", Path(folder) / "log"
        with out.open("wb") as out_file, log.open("wb") as log_file:
            began = time.monotonic()
            child = subprocess.Popen(
                [str(part) for part in command],
                stdout=out_file,
                stderr=log_file,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **(env or {})},
                start_new_session=True,
                preexec_fn=bounded,
            )
            peak = Peak()
            try:
                code = _watched(child, began, limit_s, peak)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        seconds = time.monotonic() - began
        return Ended(code, seconds, peak.tree, peak.process, peak.anonymous, _tail(out), _tail(log))


def _die_with_parent() -> None:
    """A benchmark that is killed leaves nothing running (Linux)."""
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG


@dataclass
class Peak:
    """The largest sizes seen so far."""

    tree: int = 0
    process: int = 0
    anonymous: int = 0

    def see(self, sizes: list[tuple[int, int, int]]) -> None:
        """`sizes`: (resident, file-backed, peak) bytes of each process at one moment."""
        self.tree = max(self.tree, sum(size for size, _, _ in sizes))
        self.process = max(self.process, max((high for _, _, high in sizes), default=0))
        self.anonymous = max(self.anonymous, sum(size - shared for size, shared, _ in sizes))


def _watched(
    child: subprocess.Popen[bytes], began: float, limit_s: float, peak: Peak
) -> int | None:
    while (code := child.poll()) is None:
        peak.see(_resident(child.pid))
        if time.monotonic() - began > limit_s:
            return None
        time.sleep(POLL_S)
    return code


def _resident(pid: int) -> list[tuple[int, int, int]]:
    """(resident, file-backed, peak) bytes of a process and all below it."""
    import psutil

    try:
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)]
    except psutil.Error:
        return []
    sizes = []
    for process in family:
        with contextlib.suppress(psutil.Error):
            memory = process.memory_info()
            sizes.append((int(memory.rss), int(memory.shared), _high(process.pid, memory.rss)))
    return sizes


def _high(pid: int, now: int) -> int:
    """The largest resident set that the kernel saw of a process, where it tells; else today's."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return now


def _tail(path: Path) -> str:
    data = path.read_bytes()[-TAIL_BYTES:]
    return data.decode("utf-8", "replace")


def _last_line(text: str) -> str:
    """The last line that says something: of a traceback, the error itself."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("warnings.warn", "[W", "|"))]
    return (told or lines or [""])[-1][:300]
