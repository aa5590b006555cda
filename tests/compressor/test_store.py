"""The store: whole entries or none, whatever happens to the process that makes them."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from compressor.store import Store, Workplace, key_of
from runtimes.errors import BuildFailed, UsageError
from runtimes.types import Artifact

KEY = key_of({"a": 1})


def make(place: Workplace, text: str = "content") -> Artifact:
    (place.work / "model.txt").write_text(text)
    return Artifact.write(place.work, "text", "model.txt", [], [])


def test_what_was_built_is_found_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    built, hit = store.build(KEY, {"a": 1}, make)
    again, hit_again = store.build(KEY, {"a": 1}, make)
    assert (hit, hit_again) == (False, True)
    assert built.digest() == again.digest()
    assert (store.root / "keys" / f"{KEY}.json").is_file()


def test_a_failing_build_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fail(place: Workplace) -> Artifact:
        make(place)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        store.build(KEY, {}, fail)
    assert store.artifact(KEY) is None
    assert not list((tmp_path / "tmp").iterdir())


def test_a_damaged_entry_is_made_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    built, _ = store.build(KEY, {}, make)
    (built.root / "model.txt").write_text("something else")
    again, hit = store.build(KEY, {}, make)
    assert not hit
    assert again.path.read_text() == "content"


def test_a_full_disk_says_what_to_do_and_keeps_the_store_sound(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.build("f" * 64, {}, make)

    def full(place: Workplace) -> Artifact:
        (place.work / "half").write_text("x")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(BuildFailed, match="no space left") as caught:
        store.build(KEY, {}, full)
    assert "compress store gc" in str(caught.value)
    assert store.artifact("f" * 64) is not None
    assert not list((tmp_path / "tmp").iterdir())


def test_a_really_full_disk(tmp_path: Path) -> None:
    """/dev/full stands for the last write of a real full disk."""
    store = Store(tmp_path)

    def full(place: Workplace) -> Artifact:
        with Path("/dev/full").open("wb", buffering=0) as stream:
            stream.write(b"x")
        raise AssertionError("unreachable")

    with pytest.raises(BuildFailed, match="no space left"):
        store.build(KEY, {}, full)


KILLED = """
import sys, time
from pathlib import Path
from compressor.store import Store
from tests.compressor.test_store import KEY, make
def slow(place):
    made = make(place)
    (place.checkpoint / "half").write_text("done so far")
    print("ready", flush=True)
    time.sleep(60)
    return made
Store(Path(sys.argv[1])).build(KEY, {}, slow)
"""


def test_kill_9_leaves_a_sound_store_and_the_checkpoint(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    store = Store(tmp_path)
    assert store.artifact(KEY) is None
    seen: list[str] = []

    def resume(place: Workplace) -> Artifact:
        seen.append((place.checkpoint / "half").read_text())
        return make(place)

    assert store.build(KEY, {}, resume)[1] is False
    assert seen == ["done so far"]
    store.gc()
    assert not list((tmp_path / "tmp").iterdir())


def _build_slowly(root: str) -> None:
    def slow(place: Workplace) -> Artifact:
        time.sleep(0.3)
        with (Path(root) / "times").open("a") as stream:
            stream.write("built\n")
        return make(place)

    Store(Path(root)).build(KEY, {}, slow)


def test_two_processes_build_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_build_slowly, args=(str(tmp_path),)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert (tmp_path / "times").read_text() == "built\n"


def test_scores_round_trip_and_damage(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put_scores(KEY, {"value": np.float64(0.5), "per_sample": np.ones(3)})
    found = store.scores(KEY)
    assert found is not None
    assert found["value"] == 0.5
    (tmp_path / "scores" / f"{KEY}.npz").write_bytes(b"not a zip")
    assert store.scores(KEY) is None


def test_gc_drops_the_oldest_and_keeps_the_newest(tmp_path: Path) -> None:
    store = Store(tmp_path)
    old, new = key_of({"n": 1}), key_of({"n": 2})
    for key in (old, new):
        store.build(key, {}, lambda place: make(place, "x" * 10_000))
    os.utime(store.root / "objects" / old[:2] / old, (1, 1))
    freed = store.gc(max_age_days=30)
    assert freed > 10_000
    assert store.artifact(old) is None
    assert store.artifact(new) is not None
    assert not (store.root / "keys" / f"{old}.json").exists()


def test_an_unwritable_root_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="COMPRESS_HOME"):
        Store(Path("/proc/nothing"))


def test_an_empty_key_touches_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    built, _ = store.build(KEY, {}, make)
    with pytest.raises(ValueError, match="key is empty"):
        store.artifact("")
    assert built.path.is_file()
