"""The output folder: artifacts, run.json and everything derived from it, each written whole.

run.json  report.html  report.md  junit.xml  recipe.lock.yaml
<target>/               the artifact that ships
module/                 the torch module that the shared steps made, for `compressor.load_module`
candidates/<target>-<name>/   the best one that failed, with FAILED.txt
packages/<model>-<target>.tar.gz
samples/                raw timings and per-sample outcomes
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from compressor.record import dump_record, write_atomic
from compressor.report import write_reports
from compressor.result import RunRecord
from runtimes.errors import UsageError
from runtimes.types import Artifact

STAMP = ".stamp.json"
MODULE = "module"


@contextlib.contextmanager
def locked(out: Path) -> Iterator[Path]:
    """The output folder, made if need be and held against a second run; `UsageError` otherwise."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        stream = (out / ".lock").open("w")
    except OSError as error:
        raise UsageError(
            f"the output folder cannot be written: {error.strerror}",
            where=str(out),
            fix="choose another folder with -o",
        ) from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                "another run writes to this folder",
                where=str(out),
                fix="wait for it, or choose another folder with -o",
            ) from None
        yield out


def place(artifact: Artifact, folder: Path) -> Artifact:
    """A copy of `artifact` at `folder`, which holds the old content or the new, never a mixture."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        shutil.copytree(artifact.root, fresh, dirs_exist_ok=True)
        fresh.chmod(0o755)
        if folder.exists():
            old = fresh.with_name(fresh.name + "-old")
            folder.replace(old)
            fresh.replace(folder)
            shutil.rmtree(old, ignore_errors=True)
        else:
            fresh.replace(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return Artifact.load(folder)


def clear(out: Path) -> None:
    """Drop an earlier run's module and failed candidates; this run's are put there anew."""
    for name in ("candidates", MODULE):
        shutil.rmtree(out / name, ignore_errors=True)


def mark_failed(folder: Path, reasons: list[str]) -> None:
    """A candidate's folder says on its face that it failed, and why."""
    text = "This artifact FAILED its gates. Do not deploy it.\n\n" + "\n".join(reasons) + "\n"
    (folder.parent / f"{folder.name}.FAILED.txt").write_text(text, encoding="utf-8")


def write_run(record: RunRecord, out: Path, lock: Mapping[str, Any]) -> None:
    """run.json last of all: a folder with a new run.json is complete."""
    import yaml

    text = yaml.safe_dump(dict(lock), sort_keys=False, allow_unicode=True)
    write_atomic(out / "recipe.lock.yaml", text.encode())
    write_reports(record, out)
    dump_record(record, out / "run.json")


def write_stamp(out: Path, stamp: Mapping[str, Any]) -> None:
    """What the run in this folder was made from, for `--if-changed`."""
    write_atomic(out / STAMP, json.dumps(dict(stamp), sort_keys=True).encode())


def is_current(out: Path, stamp: Mapping[str, Any]) -> bool:
    """Whether `out` holds a complete run made from exactly what `stamp` says."""
    try:
        kept = json.loads((out / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(kept == json.loads(json.dumps(dict(stamp)))) and (out / "run.json").is_file()


def write_depfile(path: Path, target: Path, inputs: list[Path]) -> None:
    """A Make-style dependency file: `target` depends on every file the run read."""

    def spelled(file: Path) -> str:
        return os.path.abspath(file).replace(" ", "\\ ").replace("$", "$$").replace("#", "\\#")  # noqa: PTH100

    lines = " \\\n  ".join(spelled(p) for p in inputs)
    write_atomic(path, f"{spelled(target)}: \\\n  {lines}\n".encode())
