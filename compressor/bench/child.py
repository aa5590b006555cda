"""The host's end of `python -m runtimes serve`: a fresh process that holds one model.

Torch is never imported there for another engine, thread counts are fixed by the environment before
any library starts, and whatever goes wrong becomes a `ChildError` that holds a `Failure`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import runtimes
from compressor.result import Failure
from runtimes.serve import MARK

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)  # fmt: skip
_EXIT_BOARD = 6


class ChildError(Exception):
    """What a child answered instead of a result (`died` is False), or how it ended."""

    def __init__(self, failure: Failure, *, died: bool) -> None:
        super().__init__(failure.message)
        self.failure, self.died = failure, died


class Child:
    """One serving process; `log` is the file its engine's chatter goes to."""

    def __init__(self, name: str, threads: int, log: Path, answer_within_s: float) -> None:
        self._name, self._log, self._within = name, log, answer_within_s
        self._timed_out = False
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "runtimes", "serve"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                cwd=Path(runtimes.__file__).parent.parent,
                env=child_environment(threads),
                start_new_session=True,  # an interrupt reaches us; we end the child
                encoding="utf-8",
            )

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """Send a request and wait for its answer; `ChildError` if it is an error or never comes."""
        self.send(op, **fields)
        return self.receive()

    def send(self, op: str, **fields: Any) -> None:
        """Send a request; its answer comes from `receive`."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"op": op, **fields}) + "\n")
            self._process.stdin.flush()
        except (BrokenPipeError, OSError) as error:
            raise self._gone() from error

    def receive(self) -> dict[str, Any]:
        """The next marked line; everything else on the stream is noise."""
        assert self._process.stdout is not None
        timer = threading.Timer(self._within, self._give_up)
        timer.start()
        try:
            for line in self._process.stdout:
                if line.startswith(MARK):
                    return _checked(json.loads(line[len(MARK) :]))
        finally:
            timer.cancel()
        raise self._gone()

    def close(self) -> None:
        """End the process; it holds nothing worth waiting for."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                _close_quietly(stream)

    def _give_up(self) -> None:
        self._timed_out = True
        self._process.kill()

    def _gone(self) -> ChildError:
        code = self._process.wait()
        if self._timed_out:
            how = f"did not answer within {self._within:.0f} s"
        elif code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        else:
            how = f"ended with exit code {code}"
        last = self._log.read_text(encoding="utf-8", errors="replace").strip().split("\n")[-3:]
        message = f"the process running {self._name} {how}"
        message += ": " + " | ".join(last) if any(last) else ""
        return ChildError(Failure("BoardError", message, _EXIT_BOARD), died=True)


def child_environment(threads: int) -> dict[str, str]:
    """Our environment with every library's thread count fixed."""
    return {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(threads)), "PYTHONUNBUFFERED": "1"}


def _checked(answer: dict[str, Any]) -> dict[str, Any]:
    if "error" in answer:
        error = answer["error"]
        failure = Failure(error["kind"], error["message"], error["exit_code"])
        raise ChildError(failure, died=False)
    return answer


def _close_quietly(stream: Any) -> None:
    try:
        stream.close()
    except BrokenPipeError:  # it died with a request unread
        return
