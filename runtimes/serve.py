"""The side of a benchmark that runs the model: one JSON line in, one JSON line out.

Engines print, to both streams, whenever they like. So the answers go to a private copy of the
standard output, every one marked, while file descriptor 1 itself points at the standard error. The
asking side drops unmarked lines, which also takes care of a login shell's greeting.

    {"op": "hello", "runtime"}                      → versions, clock_overhead_ns, host
    {"op": "load", "artifact", "threads", "device"} → cold_load_ns, settings
    {"op": "bind", "feeds": path.npz, "batch"}      → bound (how many feeds)
    {"op": "warm_up", "batch", "plan"}              → first_ns, iterations, elapsed_ns, settled
    {"op": "block", "batch", "ns", "iterations"}    → samples_ns
    {"op": "status"}                                → cpu_s, peak_rss_bytes
    {"op": "quit"}

An error is an answer too: {"error": {"kind", "message", "exit_code"}}.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, TextIO, Tuple

from runtimes import host
from runtimes.arrays import read_arrays
from runtimes.base import Feeds, Session, load_runtime
from runtimes.errors import CompressError, UsageError
from runtimes.timing import Stopwatch, TimingPlan, clock_overhead_ns, timed
from runtimes.types import Artifact

MARK = "@runtimes1 "


def private_streams() -> Tuple[TextIO, TextIO]:
    """(requests, answers): copies of fd 0 and 1, which from now on are /dev/null and fd 2."""
    sys.stdout.flush()
    requests, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    return os.fdopen(requests, "r", encoding="utf-8"), os.fdopen(answers, "w", encoding="utf-8")


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answer until `quit` or the end of `requests`."""
    server = Server()
    for line in requests:
        answer = _answer(server, line)
        answers.write(MARK + json.dumps(answer, separators=(",", ":")) + "\n")
        answers.flush()
        if answer.get("quit"):
            break
    server.close()


def write_feeds(feeds: Mapping[int, List[Feeds]]) -> Dict[str, Any]:
    """Arrays of a feeds file: `batch/index/input`, for any number of batch sizes."""
    return {
        f"{batch}/{index}/{name}": array
        for batch, prepared in feeds.items()
        for index, one in enumerate(prepared)
        for name, array in one.items()
    }


def read_feeds(path: Path, batch: int) -> List[Dict[str, Any]]:
    """The prepared feeds of one batch size, in order."""
    found: Dict[int, Dict[str, Any]] = {}
    for key, array in read_arrays(path).items():
        size, index, name = key.split("/", 2)
        if int(size) == batch:
            found.setdefault(int(index), {})[name] = array
    if not found:
        raise UsageError(f"no feeds of batch {batch}", where=str(path))
    return [found[index] for index in sorted(found)]


class Server:
    """One runtime, one loaded model, and a stopwatch per bound batch size."""

    def __init__(self) -> None:
        self._runtime: Any = None
        self._session: Optional[Session] = None
        self._watches: Dict[int, Stopwatch] = {}

    def hello(self, runtime: str) -> Dict[str, Any]:
        """Import the engine."""
        self._runtime = load_runtime(runtime)
        versions = self._runtime.versions()
        overhead = clock_overhead_ns()
        return {
            "versions": versions,
            "clock_overhead_ns": overhead,
            "host": host.facts(versions),
            "pid": os.getpid(),
        }

    def load(self, artifact: str, threads: int, device: str) -> Dict[str, Any]:
        """Open the model; `cold_load_ns` is that alone, without the engine's import."""
        opened = Artifact.load(Path(artifact))
        session, taken = timed(
            lambda: self._runtime.open_session(opened, threads=threads, device=device)
        )
        self._session = session
        return {"cold_load_ns": taken, "settings": session.settings}

    def bind(self, feeds: str, batch: int) -> Dict[str, Any]:
        """Bind every prepared feed of that batch size."""
        if self._session is None:
            raise UsageError("no model is loaded", where="serve", fix="send load first")
        session = self._session
        calls = [session.bind(one) for one in read_feeds(Path(feeds), batch)]
        self._watches[batch] = Stopwatch(calls)
        return {"bound": len(calls)}

    def warm_up(self, batch: int, plan: Mapping[str, Any]) -> Dict[str, Any]:
        """Warm up on the feeds of one batch size."""
        return asdict(self._watch(batch).warm_up(TimingPlan.from_json(plan)))

    def block(self, batch: int, ns: int, iterations: int) -> Dict[str, Any]:
        """Time one block."""
        return {"samples_ns": self._watch(batch).block(ns, iterations).tolist()}

    def status(self) -> Dict[str, Any]:
        """CPU time and peak memory of this process so far."""
        times = os.times()
        return {"cpu_s": times.user + times.system, "peak_rss_bytes": host.peak_rss_bytes()}

    def quit(self) -> Dict[str, Any]:
        """Stop serving."""
        return {"quit": True}

    def close(self) -> None:
        """Free the model."""
        self._watches.clear()
        if self._session is not None:
            self._session.close()

    def _watch(self, batch: int) -> Stopwatch:
        if batch not in self._watches:
            raise UsageError(f"no feeds of batch {batch} are bound", where="serve")
        return self._watches[batch]


_OPS = frozenset({"hello", "load", "bind", "warm_up", "block", "status", "quit"})


def _answer(server: Server, line: str) -> Dict[str, Any]:
    try:
        request = _parsed(line)
        made: Dict[str, Any] = getattr(server, request.pop("op"))(**request)
        return made
    except CompressError as error:
        return _failure(type(error).__name__, error.text(), error.exit_code)
    except (RuntimeError, MemoryError) as error:  # what engines raise on their own account
        return _failure("BadArtifact", f"{type(error).__name__}: {error}", 7)


def _parsed(line: str) -> Dict[str, Any]:
    try:
        request: Dict[str, Any] = json.loads(line)
    except ValueError as error:
        raise UsageError("a request is no JSON", where="serve", got=line[:80]) from error
    if request.get("op") not in _OPS:
        raise UsageError(
            "unknown request", where=str(request.get("op")), expected=", ".join(sorted(_OPS))
        )
    return request


def _failure(kind: str, message: str, exit_code: int) -> Dict[str, Any]:
    return {"error": {"kind": kind, "message": message, "exit_code": exit_code}}
