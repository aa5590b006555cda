"""Reading a package that somebody else may have made: check everything, execute nothing.

Archives are read by a parser of plain ustar headers alone: no links, no devices, no long-name or
sparse extensions, whose handling is where unpacking goes wrong. Digests find damage and careless
changes; they do not prove who made a package.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from runtimes.arrays import read_arrays
from runtimes.base import load_runtime
from runtimes.errors import (
    BadArtifact,
    CompressError,
    MissingTool,
    RuntimeUnavailable,
    UsageError,
)
from runtimes.types import MANIFEST, Artifact

PACKAGE_SCHEMA = 1
INPUT, OUTPUT = "input:", "output:"
LIMIT_BYTES = 4 << 30
MAX_MEMBERS = 10_000
# Formats whose opening is pure data handling. A torch module would import its user's factory.
INERT = frozenset({"onnx", "onnxruntime", "openvino"})
_BLOCK = 512
_REFETCH = "fetch the package again, or build it again"
Arrays = dict[str, "np.ndarray[Any, Any]"]


def verify_package(path: Path, *, limit_bytes: int = LIMIT_BYTES) -> list[str]:
    """Check a package against its manifest and run its model on its reference inputs.

    Nothing in the package is executed: the model is opened by this installation's own runtimes.

    Args:
        path: the `.tar.gz`.
        limit_bytes: refuse a package whose unpacked content is larger.

    Returns:
        Sentences saying what was verified.

    Raises:
        UsageError: no such file.
        BadArtifact: damaged, changed, dangerous, or the outputs differ by more than the tolerance.
        RuntimeUnavailable, MissingTool: its engine is not usable here; the message says what was
            verified all the same. Not a pass.
    """
    with tempfile.TemporaryDirectory(prefix="compress-verify-") as scratch:
        root = Path(scratch)
        found = unpack(path, root, limit_bytes=limit_bytes)
        manifest = _manifest(root, found, str(path))
        said = [f"{len(found)} files, each with the SHA-256 its manifest names"]
        artifact = _artifact(root, manifest, str(path))
        said.append(
            f"{manifest['entry']}: {artifact.format}, {artifact.size_bytes:,} bytes, "
            f"inputs {', '.join(map(str, artifact.inputs))}, "
            f"outputs {', '.join(map(str, artifact.outputs))}"
        )
        feeds, wanted = _reference(root / "reference.npz", str(path), limit_bytes)
        got, versions = _run(artifact, manifest, feeds, said, str(path))
        said.append(_version_sentence(manifest["versions"], versions))
        said += _compare(got, wanted, manifest["tolerance"], str(path))
        said.append(f"verdict when it was packed: {manifest['verdict']['state']}".replace("_", " "))
        return said


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
                    _refuse("name stands twice in the archive", path, info.name)
                folded.add(info.name.casefold())
                if len(folded) > MAX_MEMBERS:
                    _refuse(f"more than {MAX_MEMBERS} files", path, info.name)
                found[info.name] = _store(root / info.name, data, path, info.name)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise BadArtifact(f"damaged archive: {error}", where=str(path), fix=_REFETCH) from error
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
            raise BadArtifact(f"damaged archive: {error}", where=where, fix=_REFETCH) from error
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            kind = _KINDS.get(info.type, "not a plain file")
            _refuse(f"member is {kind}; packages hold plain files only", where, info.name)
        _check_name(info.name, where)
        if info.size < 0:
            _refuse("member of negative size", where, info.name)
        yield info, stream.chunks(info.size)
        stream.exactly(-info.size % _BLOCK)
    while rest := stream.up_to(1 << 16):
        if rest.strip(b"\0"):
            _refuse("bytes after the end of the archive", where, "")


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
            raise BadArtifact("archive ends too early", where=self.where, fix=_REFETCH)
        return data

    def chunks(self, count: int) -> Iterator[bytes]:
        while count:
            data = self.exactly(min(count, 1 << 20))
            count -= len(data)
            yield data


def _check_name(name: str, where: str) -> None:
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts):
        _refuse("member's name leaves the package or is not plain", where, name)
    if "\\" in name or ":" in name or not name.isprintable() or len(name) > 255:
        _refuse("member's name is not plain", where, name)


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
        _refuse("name stands for a file and a folder at once", path, name)
    except gzip.BadGzipFile:
        raise
    except OSError as error:
        raise UsageError(
            f"cannot unpack: {error.strerror}", where=str(path), fix="make room in the temp folder"
        ) from error
    return digest.hexdigest(), size


def _manifest(root: Path, found: Mapping[str, tuple[str, int]], where: str) -> dict[str, Any]:
    """The manifest, after every file was compared with it."""
    if "manifest.json" not in found:
        raise BadArtifact("no manifest.json inside: not a package", where=where, fix=_REFETCH)
    try:
        data = json.loads((root / "manifest.json").read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadArtifact(f"unreadable manifest.json: {error}", where=where) from error
    _check_manifest(data, where)
    named = data["files"]
    for name in sorted(set(found) - {"manifest.json"} - set(named)):
        _refuse("file is not in the manifest", where, name)
    for name, entry in sorted(named.items()):
        if name not in found:
            _refuse("file of the manifest is missing", where, name)
        if entry.get("sha256") != found[name][0]:
            raise BadArtifact(
                "file was changed after the package was made",
                where=f"{where}: {name}",
                expected=f"sha256 {entry.get('sha256')}",
                got=found[name][0],
                fix=_REFETCH,
            )
    assert isinstance(data, dict)
    return data


def _check_manifest(data: Any, where: str) -> None:
    if not isinstance(data, dict) or data.get("schema") != PACKAGE_SCHEMA:
        got = str(data.get("schema"))[:40] if isinstance(data, dict) else type(data).__name__
        raise BadArtifact(
            "package of another schema", where=where, expected=str(PACKAGE_SCHEMA), got=got
        )
    kinds: dict[str, type | tuple[type, ...]] = {
        "files": dict,
        "runtime": str,
        "device": str,
        "entry": str,
        "versions": dict,
        "verdict": dict,
        "tolerance": (int, float),
    }
    for key, kind in kinds.items():
        if not isinstance(data.get(key), kind):
            raise BadArtifact(f"manifest.json: {key} is missing or of the wrong type", where=where)
    if not all(isinstance(entry, dict) for entry in data["files"].values()):
        raise BadArtifact("manifest.json: files does not hold digests", where=where)
    if not (math.isfinite(data["tolerance"]) and 0 <= data["tolerance"] <= 1):
        raise BadArtifact("manifest.json: tolerance is not in 0–1", where=where)
    if "state" not in data["verdict"]:
        raise BadArtifact("manifest.json: verdict holds no state", where=where)


def _artifact(root: Path, manifest: Mapping[str, Any], where: str) -> Artifact:
    """The artifact, after making sure that it names only files of the package."""
    artifact = Artifact.load(root / "model")
    named = {name[6:] for name in manifest["files"] if name.startswith("model/")} - {MANIFEST}
    if set(artifact.files) != named or artifact.entry not in named:
        raise BadArtifact("artifact.json names other files than the package holds", where=where)
    if manifest["entry"] != f"model/{artifact.entry}":
        raise BadArtifact("manifest.json and artifact.json name different models", where=where)
    if artifact.format not in INERT:
        raise BadArtifact(
            "opening this format could run code, so it is not opened",
            where=where,
            expected=", ".join(sorted(INERT)),
            got=artifact.format,
        )
    artifact.verify()
    return artifact


def _reference(path: Path, where: str, limit: int) -> tuple[Arrays, Arrays]:
    """Reference inputs and outputs, after their headers were checked against their sizes."""
    try:
        _check_arrays(path, limit)
        arrays = read_arrays(path)
    except (UsageError, ValueError, OSError, zipfile.BadZipFile, NotImplementedError) as error:
        raise BadArtifact(f"unreadable reference.npz: {error}", where=where) from error
    feeds = {n[len(INPUT) :]: a for n, a in arrays.items() if n.startswith(INPUT)}
    wanted = {n[len(OUTPUT) :]: a for n, a in arrays.items() if n.startswith(OUTPUT)}
    if not feeds or not wanted:
        raise BadArtifact("reference.npz holds no inputs or no outputs", where=where)
    return feeds, wanted


def _check_arrays(path: Path, limit: int) -> None:
    """Refuse arrays whose header announces other sizes than are there, and zip bombs."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > limit:
            raise ValueError(f"unpacks to more than {limit:,} bytes")
        for entry in entries:
            with archive.open(entry) as stream:
                version = np.lib.format.read_magic(stream)
                reader = {
                    (1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0,
                }.get(version)
                if reader is None:
                    raise ValueError(f"array format {version} is not known")
                shape, _, dtype = reader(stream)
                size = math.prod(shape) * dtype.itemsize
                if dtype.hasobject or size != entry.file_size - stream.tell():
                    raise ValueError(f"{entry.filename}: announces another size than it has")


def _run(
    artifact: Artifact, manifest: Mapping[str, Any], feeds: Arrays, said: list[str], where: str
) -> tuple[Arrays, dict[str, str]]:
    """Outputs for the reference inputs, and the versions of the engine that gave them."""
    try:
        runtime = load_runtime(manifest["runtime"])
        reason = runtime.missing()
        if reason is not None:
            raise RuntimeUnavailable(
                f"the model was not run: {reason}",
                where=where,
                got="verified without running it: " + "; ".join(said),
                fix=f"install the {manifest['runtime']} engine here, or verify on the device",
            )
        with runtime.open_session(artifact, threads=1, device=manifest["device"]) as session:
            return dict(session.run(feeds)), dict(runtime.versions())
    except (RuntimeUnavailable, MissingTool):
        raise
    except CompressError as error:
        raise BadArtifact(
            f"the model does not run on its reference inputs: {error.what}", where=where
        ) from error


def _version_sentence(packed: Mapping[str, Any], here: Mapping[str, str]) -> str:
    same = [f"{name} {version}" for name, version in here.items() if packed.get(name) == version]
    other = [
        f"{name} {version} here, {packed.get(name, 'unknown')} when packed"
        for name, version in here.items()
        if packed.get(name) != version
    ]
    return "engine: " + ", ".join([*same, *other])


def _compare(got: Arrays, wanted: Arrays, tolerance: float, where: str) -> list[str]:
    """A sentence an output; `BadArtifact` for one that is off."""
    if set(got) != set(wanted):
        raise BadArtifact(
            "outputs of other names",
            where=where,
            expected=", ".join(sorted(wanted)),
            got=", ".join(sorted(got)),
        )
    return [
        _compare_one(name, got[name], wanted[name], tolerance, where) for name in sorted(wanted)
    ]


def _compare_one(name: str, got: Any, wanted: Any, tolerance: float, where: str) -> str:
    if got.shape != wanted.shape:
        raise BadArtifact(
            f"output {name} of another shape",
            where=where,
            expected=str(wanted.shape),
            got=str(got.shape),
        )
    if not wanted.size:
        return f"output {name}: empty, as in the reference"
    if wanted.dtype.kind in "fc":
        scale = float(np.abs(wanted).max()) or 1.0
        off = float(np.abs(got.astype(np.float64) - wanted).max()) / scale
        what = f"largest difference {off:.2g} of its largest magnitude {scale:.4g}"
    else:
        off = float((got != wanted).mean())
        what = f"{off:.2%} of its elements differ"
    if not off <= tolerance:
        raise BadArtifact(
            f"output {name} is not reproduced: {what}",
            where=where,
            expected=f"at most {tolerance:g}",
            got=f"{off:.3g}",
            fix="compare engine version and CPU with the manifest; measure accuracy on this device",
        )
    samples = wanted.shape[0] if wanted.ndim else 1
    return f"output {name} reproduced on {samples} samples: {what}, allowed {tolerance:g}"


def _refuse(what: str, where: Path | str, name: str) -> NoReturn:
    shown = "".join(c if c.isprintable() else "?" for c in name)[:200]
    raise BadArtifact(what, where=f"{where}: {shown}" if shown else str(where), fix=_REFETCH)
