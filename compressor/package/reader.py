"""Reading a package that somebody else may have made: check everything, execute nothing.

Digests find damage and careless changes; they do not prove who made a package.
"""

from __future__ import annotations

import json
import math
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compressor.package.archive import refuse, unpack
from runtimes.arrays import read_arrays
from runtimes.base import load_runtime
from runtimes.errors import (
    BadArtifact,
    CompressError,
    MissingTool,
    RuntimeUnavailable,
    UsageError,
)
from runtimes.types import MANIFEST, Artifact, sha256_of
from runtimes.unpack import (
    CODED,
    DELTA_CODED,
    DELTA_JSON,
    LIMIT_BYTES,
    MANIFEST_JSON,
    REFETCH,
    restore,
)

PACKAGE_SCHEMA = 2  # 1: before coding
READABLE = (1, PACKAGE_SCHEMA)
INPUT, OUTPUT = "input:", "output:"
# Formats whose opening is pure data handling. A torch module would import its user's factory.
INERT = frozenset({"onnx", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"})
# What numpy's and zipfile's own parsers raise on hostile bytes, found by mutating packages.
_UNREADABLE = (
    ValueError,
    OSError,
    zipfile.BadZipFile,
    NotImplementedError,
    EOFError,
    zlib.error,
    tokenize.TokenError,
    SyntaxError,
    TypeError,
    KeyError,
    AttributeError,
    OverflowError,
    MemoryError,
    RecursionError,
    RuntimeError,
)
Arrays = dict[str, "np.ndarray[Any, Any]"]


def verify_package(
    path: Path, *, base: Path | None = None, limit_bytes: int = LIMIT_BYTES
) -> list[str]:
    """Check a package against its manifest and run its model on its reference inputs.

    Nothing in the package is executed: the model is opened by this installation's own runtimes.

    Args:
        path: the `.tar.gz`.
        base: of a delta: the package that it was made from, or its unpacked folder.
        limit_bytes: refuse a package whose unpacked content is larger.

    Returns:
        Sentences saying what was verified.

    Raises:
        UsageError: no such file, or a delta without its base.
        BadArtifact: damaged, changed, dangerous, or the outputs differ by more than the tolerance.
        RuntimeUnavailable, MissingTool: its engine is not usable here; the message says what was
            verified all the same. Not a pass.
    """
    with tempfile.TemporaryDirectory(prefix="compress-verify-") as scratch:
        root = Path(scratch) / "package"
        found, manifest = open_package(path, root, base=base, limit_bytes=limit_bytes)
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


def unpack_package(
    path: Path, out: Path, *, base: Path | None = None, limit_bytes: int = LIMIT_BYTES
) -> int:
    """Write a package's files, the model decoded, into `out`, a new folder; returns how many.

    Args:
        path: the `.tar.gz`.
        out: a folder that is not there yet.
        base: of a delta: the package that it was made from, or its unpacked folder.
        limit_bytes: refuse a package whose unpacked content is larger.

    Raises:
        UsageError: `out` is there already or cannot be written, or a delta lacks its base.
        BadArtifact: damaged, changed or dangerous.
    """
    if out.exists():
        raise UsageError("is there already", where=str(out), fix="name a new folder")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".unpack-") as scratch:
            root = Path(scratch) / "package"
            found, _ = open_package(path, root, base=base, limit_bytes=limit_bytes)
            root.rename(out)
    except OSError as error:
        raise UsageError(
            f"cannot be written: {error.strerror}", where=str(out), fix="name another folder"
        ) from error
    return len(found)


def open_package(
    path: Path, root: Path, *, base: Path | None = None, limit_bytes: int = LIMIT_BYTES
) -> tuple[dict[str, tuple[str, int]], dict[str, Any]]:
    """Unpack into `root`, decode, compare with the manifest: (name → SHA-256 and bytes, manifest).

    Raises:
        UsageError: no such file, no room, or a delta without its base.
        BadArtifact: damaged, changed or dangerous.
    """
    where = str(path)
    root.mkdir(parents=True, exist_ok=True)
    found = unpack(path, root, limit_bytes=limit_bytes)
    if base is not None and DELTA_JSON in found and not base.is_dir():
        with tempfile.TemporaryDirectory(prefix="compress-base-") as scratch:
            whole = Path(scratch)
            if DELTA_JSON in unpack(base, whole, limit_bytes=limit_bytes):
                raise UsageError(
                    "is a delta itself",
                    where=str(base),
                    fix="unpack it over its own base first, and name that folder",
                )
            restore(whole, where=str(base), limit_bytes=limit_bytes)
            written = restore(
                root, whole, where=where, base_where=str(base), limit_bytes=limit_bytes
            )
    else:
        written = restore(root, base, where=where, limit_bytes=limit_bytes)
    if written:
        coded = {CODED, DELTA_CODED, DELTA_JSON}
        found = {name: known for name, known in found.items() if name not in coded}
        for name in written:
            found[name] = sha256_of(root / name), (root / name).stat().st_size
    return found, _manifest(root, found, where)


def _manifest(root: Path, found: Mapping[str, tuple[str, int]], where: str) -> dict[str, Any]:
    """The manifest, after every file was compared with it."""
    if MANIFEST_JSON not in found:
        raise BadArtifact("no manifest.json inside: not a package", where=where, fix=REFETCH)
    try:
        data = json.loads((root / MANIFEST_JSON).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadArtifact(f"unreadable manifest.json: {error}", where=where) from error
    _check_manifest(data, where)
    named = data["files"]
    for name in sorted(set(found) - {MANIFEST_JSON} - set(named)):
        refuse("file is not in the manifest", where, name)
    for name, entry in sorted(named.items()):
        if name not in found:
            refuse("file of the manifest is missing", where, name)
        if entry.get("sha256") != found[name][0]:
            raise BadArtifact(
                "file was changed after the package was made",
                where=f"{where}: {name}",
                expected=f"sha256 {entry.get('sha256')}",
                got=found[name][0],
                fix=REFETCH,
            )
    assert isinstance(data, dict)
    return data


def _check_manifest(data: Any, where: str) -> None:
    if not isinstance(data, dict) or data.get("schema") not in READABLE:
        got = str(data.get("schema"))[:40] if isinstance(data, dict) else type(data).__name__
        raise BadArtifact(
            "package of another schema",
            where=where,
            expected=" or ".join(map(str, READABLE)),
            got=got,
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
    except (UsageError, *_UNREADABLE) as error:
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
