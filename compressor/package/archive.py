"""Unpacking an archive that somebody else may have made.

A parser of plain ustar headers alone: no links, no devices, no long-name or sparse extensions,
whose handling is where unpacking goes wrong. Every byte is counted against a limit as it comes.
"""

from __future__ import annotations

import gzip
import hashlib
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NoReturn

from runtimes.errors import BadArtifact, UsageError
from runtimes.unpack import LIMIT_BYTES, REFETCH, plain_name

MAX_MEMBERS = 10_000
_BLOCK = 512


def unpack(path: Path, root: Path, *, limit_bytes: int = LIMIT_BYTES) -> dict[str, tuple[str, int]]:
    """Unpack into the empty folder `root`; name → (SHA-256, bytes) of each file.

    Raises:
        UsageError: no such file, or no room to unpack.
        BadArtifact: not a package, damaged, too large, or a member that is not a plain file with
            a plain relative name of its own.
    """
    if not path.is_file():
        raise UsageError("no such package", where=str(path), expected="a .tar.gz file")
    found: dict[str, tuple[str, int]] = {}
    folded: set[str] = set()
    try:
        with gzip.open(path, "rb") as stream:
            for info, data in _members(_Bounded(stream, limit_bytes, str(path)), str(path)):
                if info.name.casefold() in folded:
                    refuse("name stands twice in the archive", path, info.name)
                folded.add(info.name.casefold())
                if len(folded) > MAX_MEMBERS:
                    refuse(f"more than {MAX_MEMBERS} files", path, info.name)
                found[info.name] = _store(root / info.name, data, path, info.name)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise BadArtifact(f"damaged archive: {error}", where=str(path), fix=REFETCH) from error
    return found


def _members(stream: _Bounded, where: str) -> Iterator[tuple[tarfile.TarInfo, Iterator[bytes]]]:
    """Each plain file of a ustar stream with its data, which must be read before the next."""
    while True:
        block = stream.exactly(_BLOCK)
        if block == bytes(_BLOCK):
            break
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.TarError, UnicodeDecodeError, ValueError) as error:
            raise BadArtifact(f"damaged archive: {error}", where=where, fix=REFETCH) from error
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            kind = _KINDS.get(info.type, "not a plain file")
            refuse(f"member is {kind}; packages hold plain files only", where, info.name)
        _check_name(info.name, where)
        if info.size < 0:
            refuse("member of negative size", where, info.name)
        yield info, stream.chunks(info.size)
        stream.exactly(-info.size % _BLOCK)
    while rest := stream.up_to(1 << 16):
        if rest.strip(b"\0"):
            refuse("bytes after the end of the archive", where, "")


_KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.DIRTYPE: "a folder",
    tarfile.XHDTYPE: "an extended header",
    tarfile.XGLTYPE: "an extended header",
    tarfile.GNUTYPE_LONGNAME: "an extended header",
    tarfile.GNUTYPE_LONGLINK: "an extended header",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


class _Bounded:
    """A decompressed stream that refuses to give more than a number of bytes."""

    def __init__(self, stream: BinaryIO | gzip.GzipFile, limit: int, where: str) -> None:
        self.stream, self.left, self.limit, self.where = stream, limit, limit, where

    def up_to(self, count: int) -> bytes:
        data = self.stream.read(count)
        self.left -= len(data)
        if self.left < 0:
            raise BadArtifact(
                "unpacks to more than the limit",
                where=self.where,
                expected=f"at most {self.limit:,} bytes",
                fix="if it is meant to be this large, verify it with a larger limit",
            )
        return data

    def exactly(self, count: int) -> bytes:
        data = self.up_to(count)
        if len(data) != count:
            raise BadArtifact("archive ends too early", where=self.where, fix=REFETCH)
        return data

    def chunks(self, count: int) -> Iterator[bytes]:
        while count:
            data = self.exactly(min(count, 1 << 20))
            count -= len(data)
            yield data


def _check_name(name: str, where: str) -> None:
    if not plain_name(name):
        refuse("member's name leaves the package or is not plain", where, name)


def _store(target: Path, data: Iterator[bytes], path: Path, name: str) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as stream:
            for chunk in data:
                digest.update(chunk)
                size += len(chunk)
                stream.write(chunk)
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        refuse("name stands for a file and a folder at once", path, name)
    except gzip.BadGzipFile:
        raise
    except OSError as error:
        raise UsageError(
            f"cannot unpack: {error.strerror}", where=str(path), fix="make room in the temp folder"
        ) from error
    return digest.hexdigest(), size


def refuse(what: str, where: Path | str, name: str) -> NoReturn:
    """Raise `BadArtifact` about one member of a package."""
    shown = "".join(c if c.isprintable() else "?" for c in name)[:200]
    raise BadArtifact(what, where=f"{where}: {shown}" if shown else str(where), fix=REFETCH)
