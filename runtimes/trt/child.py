"""One task in a process of its own, which may die or take too long without harm to this one.

TensorRT's runtime ends the process with a segmentation fault where there is no driver, a builder
may be killed for memory, and TensorRT-RTX builds wrongly after a build that failed.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, Mapping, Optional

from .errors import BUG, FAILED, USAGE, TrtError

# Task → module with a function of the task's name, from job to answer (both plain JSON).
TASKS = {"probe": "probe", "build": "build", "validate": "validate"}


def run_child(
    task: str, job: Mapping[str, Any], *, time_limit_s: Optional[float] = None, quiet: bool = False
) -> Dict[str, Any]:
    """The answer of `task` to `job`.

    Raises:
        TrtError: what the task raised there; exit code 5 where its process died or ran longer
            than `time_limit_s`.
    """
    with tempfile.TemporaryDirectory(prefix="trt-") as folder:
        asked, answered = Path(folder) / "job.json", Path(folder) / "answer.json"
        asked.write_text(json.dumps(dict(job)), encoding="utf-8")
        command = [sys.executable, "-m", f"{__package__}.child", task, str(asked), str(answered)]
        process = subprocess.Popen(
            command,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if quiet else 2,  # standard output is for results alone
            stderr=subprocess.DEVNULL if quiet else None,
        )
        code = _wait(process, task, time_limit_s)
        if not answered.is_file():
            # What raises something else there is a bug of ours; a signal is the engine's doing.
            raise TrtError(f"the {task} process {_how(code)}", BUG if code >= 0 else FAILED)
        answer: Dict[str, Any] = json.loads(answered.read_text(encoding="utf-8"))
    if "error" in answer:
        raise TrtError.from_json(answer["error"])
    return answer


def _wait(process: subprocess.Popen[bytes], task: str, time_limit_s: Optional[float]) -> int:
    try:
        return process.wait(time_limit_s)
    except subprocess.TimeoutExpired as error:
        raise TrtError(
            f"the {task} took longer than {time_limit_s:g} s and was ended",
            FAILED,
            fix="raise --time-limit, lower the optimization level, or keep timing.cache",
        ) from error
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code} and no answer"
    name = signal.Signals(-code).name
    memory = ", most likely for want of memory" if name == "SIGKILL" else ""
    return f"died of {name}{memory}"


def _environment() -> Dict[str, str]:
    """Ours, with the folder that this package lies in on the path."""
    assert __package__
    root = Path(__file__).resolve().parents[len(__package__.split("."))]
    known = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(root), *([known] if known else [])])
    return {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


def _serve(task: str, asked: Path, answered: Path) -> None:
    job = json.loads(asked.read_text(encoding="utf-8"))
    work = getattr(importlib.import_module("." + TASKS[task], __package__), task)
    try:
        answer = work(job)
    except TrtError as error:
        answer = {"error": error.to_json()}
    except MemoryError:
        answer = {"error": TrtError("too little memory", FAILED, where=task).to_json()}
    except OSError as error:
        where = str(error.filename or asked)
        answer = {"error": TrtError(str(error.strerror or error), USAGE, where=where).to_json()}
    answered.write_text(json.dumps(answer, allow_nan=False), encoding="utf-8")


if __name__ == "__main__":
    _serve(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
