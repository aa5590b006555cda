"""Writing an archive whose bytes depend on its members alone: plain ustar inside gzip."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from runtimes.errors import UsageError
from runtimes.types import sha256_of

Member = tuple[str, "Path | bytes"]


def write_archive(path: Path, members: Sequence[Member]) -> None:
    """Write the archive beside its place, then move it there; `UsageError` where it cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".package.")
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        with os.fdopen(handle, "wb") as stream:
            _pack(stream, members)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def archive_size(members: Sequence[Member]) -> int:
    """Bytes that an archive of these members would have."""
    sink = _Counter()
    _pack(sink, members)
    return sink.total


def json_bytes(value: Any) -> bytes:
    """`value` as a package holds JSON: sorted, one line an entry."""
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
    return (text + "\n").encode("utf-8")


def length(source: Path | bytes) -> int:
    """Bytes of a member."""
    return len(source) if isinstance(source, bytes) else source.stat().st_size


def digest(source: Path | bytes) -> str:
    """SHA-256 of a member, hex."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    return sha256_of(source)


def _pack(sink: BinaryIO | io.RawIOBase, members: Sequence[Member]) -> None:
    # An empty file name and time 0 keep both out of gzip's header.
    with (
        gzip.GzipFile(
            filename="", mode="wb", compresslevel=9, fileobj=cast("BinaryIO", sink), mtime=0
        ) as coded,
        tarfile.open(fileobj=coded, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name, source in members:
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = length(source), 0o644, 0
            if isinstance(source, bytes):
                archive.addfile(info, io.BytesIO(source))
            else:
                with source.open("rb") as stream:
                    archive.addfile(info, stream)


def _unwritable(path: Path, error: OSError) -> UsageError:
    return UsageError(
        f"cannot be written: {error.strerror}",
        where=str(path),
        fix="name a folder you may write to, with room on its disk",
    )


class _Counter(io.RawIOBase):
    """A sink that counts."""

    total = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.total += len(data)
        return len(data)
