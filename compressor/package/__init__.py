"""A package: what travels to a device, as one `.tar.gz` whose bytes depend on its content alone.

    model/                the artifact: the bare model file first, then whatever it refers to
    manifest.json         digests, versions, inputs, outputs, preprocessing, provenance, verdict
    reference.npz         inputs and the outputs they gave when the package was made
    run.py                ten lines that run the model with numpy and the engine alone
    requirements.txt  LICENSE  runtimes/

The archive is plain ustar inside gzip, sorted, with times, owners and modes fixed. Reading one is
in `package_reader` and `package_archive`; nothing in it is ever executed to verify it.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.metadata
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

import runtimes
from compressor.package.reader import INPUT, OUTPUT, PACKAGE_SCHEMA, verify_package
from compressor.result import TargetResult
from runtimes.arrays import write_arrays
from runtimes.errors import BuildFailed, UsageError
from runtimes.types import MANIFEST, Artifact, sha256_of

__all__ = ["build_package", "coded_size", "verify_package"]

# Rounding moves an INT8 output by 1/255 of its range; another CPU may add a few such steps up.
TOLERANCE = 0.02
Member = tuple[str, "Path | bytes"]

RUN_PY = '''"""Run the model on its reference inputs: python run.py (needs requirements.txt)."""
from pathlib import Path
from runtimes.arrays import read_arrays
from runtimes.rt_{runtime} import open_session
from runtimes.types import Artifact
here = Path(__file__).resolve().parent
reference = read_arrays(here / "reference.npz")
feeds = {{name[6:]: value for name, value in reference.items() if name.startswith("input:")}}
with open_session(Artifact.load(here / "model"), threads=1, device={device!r}) as session:
    for name, got in session.run(feeds).items():
        off = abs(got - 1.0 * reference["output:" + name]).max()
        print(name, got.shape, "largest difference", off)
'''


def build_package(
    record_target: TargetResult,
    artifact: Artifact,
    *,
    out: Path,
    reference_feeds: Mapping[str, np.ndarray[Any, Any]],
    reference_outputs: Mapping[str, np.ndarray[Any, Any]],
    provenance: Mapping[str, Any],
    preprocess: Mapping[str, Any] | None = None,
    tolerance: float = TOLERANCE,
    name: str = "model",
) -> Path:
    """Pack what a target ships; returns the path of the archive.

    Args:
        record_target: the target's result, for its engine, versions and verdict.
        artifact: what ships; its digests are checked first.
        out: a folder, which gets `<name>-<target>.tar.gz`, or the archive's own path.
        reference_feeds: input name → array, a few samples.
        reference_outputs: what this very artifact gave on them.
        provenance: digests of the source and steps; plain JSON, no paths, no times.
        preprocess: `runtimes.preprocess` as JSON, where inputs are made from pictures.
        tolerance: largest difference at verification, as a share of an output's largest
            magnitude; for integer outputs the share of elements that may differ.
        name: of the model.

    Raises:
        BadArtifact: the artifact's files are not what its manifest says.
        UsageError: the place cannot be written.
    """
    artifact.verify()
    runtime = record_target.runtime or record_target.name
    with tempfile.TemporaryDirectory() as scratch:
        reference = Path(scratch) / "reference.npz"
        named = {INPUT + key: value for key, value in reference_feeds.items()}
        named |= {OUTPUT + key: value for key, value in reference_outputs.items()}
        write_arrays(reference, named)
        device = record_target.device or "CPU"
        rest: list[Member] = [
            ("LICENSE", _licence()),
            ("reference.npz", reference),
            ("requirements.txt", _requirements(record_target).encode("utf-8")),
            ("run.py", RUN_PY.format(runtime=runtime, device=device).encode("utf-8")),
            *_runtimes(runtime),
        ]
        members = [*_model(artifact), *rest]
        manifest = _manifest(record_target, artifact, members, provenance, preprocess, tolerance)
        position = len(members) - len(rest)
        members.insert(position, ("manifest.json", _json(manifest | {"name": name})))
        target = (
            out if out.name.endswith(".tar.gz") else out / f"{name}-{record_target.name}.tar.gz"
        )
        _write(target, members)
    return target


def coded_size(artifact: Artifact) -> int:
    """Bytes of the artifact's model files as they travel: inside the package's own compression."""
    sink = _Counter()
    members = [(name, path) for name, path in _model(artifact) if not name.endswith(MANIFEST)]
    _pack(sink, members)
    return sink.total


def _model(artifact: Artifact) -> list[Member]:
    """The artifact's files, the one an engine opens first, `artifact.json` last."""
    names = [artifact.entry, *sorted(set(artifact.files) - {artifact.entry}), MANIFEST]
    return [(f"model/{name}", artifact.root / name) for name in names]


def _runtimes(runtime: str) -> list[Member]:
    """Our own code for the device: what all runtimes share, and the one that is needed."""
    root = Path(runtimes.__file__).parent
    wanted = [
        path
        for path in sorted(root.glob("*.py"))
        if not path.name.startswith("rt_") or path.stem == f"rt_{runtime}"
    ]
    return [(f"runtimes/{path.name}", path) for path in wanted]


def _manifest(
    target: TargetResult,
    artifact: Artifact,
    members: Sequence[Member],
    provenance: Mapping[str, Any],
    preprocess: Mapping[str, Any] | None,
    tolerance: float,
) -> dict[str, Any]:
    shipped = next((c for c in target.candidates if c.name == target.shipped), None)
    return {
        "schema": PACKAGE_SCHEMA,
        "target": target.name,
        "runtime": target.runtime or target.name,
        "device": target.device or "CPU",
        "format": artifact.format,
        "entry": f"model/{artifact.entry}",
        "inputs": [spec.to_json() for spec in artifact.inputs],
        "outputs": [spec.to_json() for spec in artifact.outputs],
        "preprocess": None if preprocess is None else dict(preprocess),
        "versions": dict(target.versions),
        "tolerance": tolerance,
        "files": {
            name: {"sha256": _digest(source), "size_bytes": _length(source)}
            for name, source in members
        },
        "licences": [
            {"files": "runtimes/, run.py", "licence": "Apache-2.0", "text": "LICENSE"},
            {
                "files": "model/, reference.npz",
                "licence": "its owner's: made from the user's model",
            },
        ],
        "provenance": dict(provenance)
        | {
            "artifact": artifact.digest(),
            "shipped": target.shipped,
            "steps": list(provenance.get("steps", shipped.steps if shipped else [])),
        },
        # States, not figures: measured times differ from run to run, the package's bytes must not.
        "verdict": {
            "state": target.state,
            "gates": {check.gate: check.state for check in (shipped.checks if shipped else [])},
        },
    }


def _json(value: Any) -> bytes:
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
    return (text + "\n").encode("utf-8")


def _requirements(target: TargetResult) -> str:
    """Requirements for pip: the engine as it was judged; numpy as the device has it."""
    lines = ["numpy"]
    for name, version in sorted(target.versions.items()):
        if name == "numpy":
            lines[0] = f"numpy  # judged with {version}"
            continue
        try:
            # The engine's own version may carry a build number that no index knows.
            lines.append(f"{name}=={importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            lines.append(f"# judged with {name} {version}")
    return "\n".join(lines) + "\n"


def _licence() -> bytes:
    """The text of our own licence, from the checkout or the installed distribution."""
    checkout = Path(__file__).parents[2] / "LICENSE"
    if checkout.is_file():
        return checkout.read_bytes()
    try:
        files = importlib.metadata.files("edge-compressor") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "LICENSE":
            return Path(str(file.locate())).read_bytes()
    raise BuildFailed(
        "the LICENSE of edge-compressor is not installed, and packages must carry it",
        where="package",
        fix="install edge-compressor again",
    )


def _write(path: Path, members: Sequence[Member]) -> None:
    """Write the archive beside its place, then move it there."""
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
            info.size, info.mode, info.mtime = _length(source), 0o644, 0
            if isinstance(source, bytes):
                archive.addfile(info, io.BytesIO(source))
            else:
                with source.open("rb") as stream:
                    archive.addfile(info, stream)


def _length(source: Path | bytes) -> int:
    return len(source) if isinstance(source, bytes) else source.stat().st_size


def _digest(source: Path | bytes) -> str:
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    return sha256_of(source)


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
