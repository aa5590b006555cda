"""The store: content-addressed artifact folders that survive kill -9 and a full disk.

    <root>/objects/<k0k1>/<key>/     an artifact folder, complete or absent, never in between
    <root>/keys/<key>.json           what the key was made of, so that a miss can be explained
    <root>/scores/<key>.npz          outcomes of an evaluation
    <root>/checkpoints/<key>/        what an interrupted step left for its next attempt
    <root>/tmp/                      work in progress; removed by gc once its maker is gone
    <root>/locks/                    one file a key, held while its step runs

A step works in `tmp/` and the finished folder is renamed into place, so a reader sees all of it or
nothing. `$COMPRESS_HOME` sets the root; else `$XDG_CACHE_HOME/edge-compressor`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtimes.errors import BadArtifact, BuildFailed, UsageError
from runtimes.types import Artifact, canonical


def default_root() -> Path:
    """Where the store lies when nobody says otherwise."""
    if home := os.environ.get("COMPRESS_HOME"):
        return Path(home).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "edge-compressor"


def key_of(parts: Mapping[str, Any]) -> str:
    """SHA-256 of canonical JSON: the key of whatever `parts` fully determine."""
    return hashlib.sha256(canonical(parts)).hexdigest()


@dataclass(frozen=True)
class Workplace:
    """The folders of one running step."""

    work: Path
    scratch: Path
    checkpoint: Path


class Store:
    """Artifacts and scores by key."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or default_root()).absolute()
        try:
            for name in ("objects", "keys", "scores", "checkpoints", "tmp", "locks"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"the store cannot be written: {error.strerror}",
                where=str(self.root),
                fix="set COMPRESS_HOME to a folder you may write",
            ) from error

    def _object(self, key: str) -> Path:
        if not key:  # the folder of all objects, which would pass for a damaged one
            raise ValueError("an artifact's key is empty")
        return self.root / "objects" / key[:2] / key

    def artifact(self, key: str) -> Artifact | None:
        """The finished artifact of that key, its files checked; None if there is none.

        A damaged entry (a file changed or lost) is dropped, so that it is made again.
        """
        folder = self._object(key)
        if not folder.is_dir():
            return None
        try:
            found = Artifact.load(folder)
            found.verify()
        except BadArtifact:
            shutil.rmtree(folder, ignore_errors=True)
            return None
        os.utime(folder)
        return found

    def build(
        self, key: str, parts: Mapping[str, Any], make: Callable[[Workplace], Artifact]
    ) -> tuple[Artifact, bool]:
        """The artifact of `key`, made by `make` if it is not there yet; and whether it was there.

        Two processes that want the same key take turns, and the second finds the first one's work.
        """
        if found := self.artifact(key):
            return found, True
        with self._lock(key):
            if found := self.artifact(key):
                return found, True
            return self._make(key, parts, make), False

    def _make(
        self, key: str, parts: Mapping[str, Any], make: Callable[[Workplace], Artifact]
    ) -> Artifact:
        with self._temporary() as place, _disk_full(self.root):
            work, scratch = place / "work", place / "scratch"
            checkpoint = self.root / "checkpoints" / key
            for folder in (work, scratch, checkpoint):
                folder.mkdir(exist_ok=True)
            made = make(Workplace(work, scratch, checkpoint))
            if made.root != work:
                raise BuildFailed(
                    "a step wrote its artifact outside its own folder", where=str(made.root)
                )
            self._write_text(self.root / "keys" / f"{key}.json", json.dumps(parts, indent=1))
            _sync_files(work)
            target = self._object(key)
            target.parent.mkdir(exist_ok=True)
            work.replace(target)
            shutil.rmtree(checkpoint, ignore_errors=True)
            return Artifact.load(target)

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[Path]:
        place = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=self.root / "tmp"))
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)

    @contextlib.contextmanager
    def _lock(self, key: str) -> Iterator[None]:
        with (self.root / "locks" / key).open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)  # freed by the kernel however we end
            yield

    def _write_text(self, path: Path, text: str) -> None:
        with self._temporary() as place, _disk_full(self.root):
            (place / "file").write_text(text, encoding="utf-8")
            (place / "file").replace(path)

    def scores(self, key: str) -> dict[str, np.ndarray] | None:
        """The arrays kept under a score key, or None."""
        path = self.root / "scores" / f"{key}.npz"
        try:
            with np.load(path, allow_pickle=False) as stored:
                os.utime(path)
                return {name: stored[name] for name in stored.files}
        except FileNotFoundError:
            return None
        except (ValueError, OSError, EOFError):
            path.unlink(missing_ok=True)
            return None

    def put_scores(self, key: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep arrays under a score key."""
        with self._temporary() as place, _disk_full(self.root):
            np.savez(place / "file.npz", allow_pickle=False, **arrays)
            (place / "file.npz").replace(self.root / "scores" / f"{key}.npz")

    def size_bytes(self) -> int:
        """Bytes of everything in the store."""
        return sum(p.stat().st_size for p in self.root.rglob("*") if p.is_file())

    def gc(self, max_age_days: float = 30.0, max_bytes: int | None = None) -> int:
        """Remove what nobody used for `max_age_days`, then the oldest until `max_bytes` are left.

        Returns the bytes freed. Work in progress of a live process stays.
        """
        before = self.size_bytes()
        for place in (self.root / "tmp").iterdir():
            if not _alive(place.name.split("-")[0]):
                shutil.rmtree(place, ignore_errors=True)
        entries = sorted(self._entries(), key=lambda p: p.stat().st_mtime)
        oldest_kept = time.time() - max_age_days * 86400
        left = self.size_bytes()
        for entry in entries:
            too_old = entry.stat().st_mtime < oldest_kept
            if not too_old and (max_bytes is None or left <= max_bytes):
                continue
            left -= _tree_bytes(entry)
            _remove(entry)
        self._drop_orphans()
        return before - self.size_bytes()

    def _entries(self) -> list[Path]:
        kinds = ("objects/*/*", "scores/*", "checkpoints/*")
        return [path for kind in kinds for path in self.root.glob(kind)]

    def _drop_orphans(self) -> None:
        for path in (self.root / "keys").iterdir():
            if not self._object(path.stem).exists():
                path.unlink(missing_ok=True)
        for path in (self.root / "locks").iterdir():
            with path.open("w") as stream, contextlib.suppress(BlockingIOError):
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held: somebody builds it now
                path.unlink(missing_ok=True)


def _alive(pid: str) -> bool:
    return pid.isdigit() and Path(f"/proc/{pid}").exists()


def _tree_bytes(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync_files(folder: Path) -> None:
    """Flush a finished folder: a power cut must not leave a complete name on empty files."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())


@contextlib.contextmanager
def _disk_full(root: Path) -> Iterator[None]:
    """A full disk becomes an error that says what to do; nothing half-made stays behind."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise BuildFailed(
            "no space left on the disk; finished steps are kept",
            where=str(root),
            fix="`compress store gc --max-age-days 7`, or COMPRESS_HOME=<another disk>",
        ) from error
