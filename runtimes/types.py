"""The two types every layer shares: `TensorSpec` and `Artifact`.

An `Artifact` is an immutable *folder* with `artifact.json` beside its files. Every step reads one
and writes a new one; that single choice gives the cache, resume, inspection and remote steps.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from runtimes.errors import BadArtifact

SCHEMA = 1
MANIFEST = "artifact.json"
Dim = Union[int, str]


@dataclass(frozen=True)
class TensorSpec:
    """Name, numpy dtype name and shape of an input or output; a `str` is a named free dimension."""

    name: str
    dtype: str
    shape: Tuple[Dim, ...]

    def to_json(self) -> Dict[str, Any]:
        """The spec as plain JSON."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> TensorSpec:
        """The inverse of `to_json`."""
        return TensorSpec(data["name"], data["dtype"], tuple(data["shape"]))

    def __str__(self) -> str:
        return "{} {}[{}]".format(self.name, self.dtype, ", ".join(str(d) for d in self.shape))


def canonical(value: Any) -> bytes:
    """`value` as canonical JSON bytes: sorted keys, no spaces, NaN refused."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for chunk in iter(lambda: stream.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()


@dataclass(frozen=True)
class Artifact:
    """A model in some format, on disk.

    Attributes:
        root: the folder.
        format: `module`, `exported`, `onnx`, `onnxruntime`, `openvino`, … what the files are.
        entry: the file an engine opens, relative to `root`.
        inputs: input specs, in the model's order.
        outputs: output specs, in the model's order.
        facts: what the step that wrote it found out; plain JSON. Known keys are listed in
            docs/architecture.md.
        files: relative path → SHA-256 of every file but `artifact.json`.
    """

    root: Path
    format: str
    entry: str
    inputs: Tuple[TensorSpec, ...]
    outputs: Tuple[TensorSpec, ...]
    facts: Mapping[str, Any]
    files: Mapping[str, str]

    @staticmethod
    def write(
        root: Path,
        format: str,  # noqa: A002 - the field's name
        entry: str,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        facts: Optional[Mapping[str, Any]] = None,
    ) -> Artifact:
        """Describe the files that already lie in `root` and write `artifact.json` beside them."""
        files = {
            path.relative_to(root).as_posix(): sha256_of(path)
            for path in sorted(root.rglob("*"))
            if path.is_file() and path != root / MANIFEST
        }
        made = Artifact(
            root, format, entry, tuple(inputs), tuple(outputs), dict(facts or {}), files
        )
        text = json.dumps(made.to_json(), indent=1, sort_keys=True, allow_nan=False)
        (root / MANIFEST).write_text(text + "\n", encoding="utf-8")
        return made

    @staticmethod
    def load(root: Path) -> Artifact:
        """Read `root/artifact.json`; raises `BadArtifact` where it is missing or malformed."""
        path = Path(root) / MANIFEST
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["schema"] != SCHEMA:
                raise BadArtifact(
                    "artifact of another schema",
                    where=str(path),
                    expected=str(SCHEMA),
                    got=str(data["schema"]),
                    fix="build it again with this version",
                )
            return Artifact(
                Path(root),
                data["format"],
                data["entry"],
                tuple(TensorSpec.from_json(s) for s in data["inputs"]),
                tuple(TensorSpec.from_json(s) for s in data["outputs"]),
                data["facts"],
                data["files"],
            )
        except FileNotFoundError as error:
            raise BadArtifact(f"not an artifact folder: no {MANIFEST}", where=str(root)) from error
        except (ValueError, KeyError, TypeError) as error:
            raise BadArtifact(f"unreadable {MANIFEST}: {error}", where=str(root)) from error

    def to_json(self) -> Dict[str, Any]:
        """What `artifact.json` holds."""
        return {
            "schema": SCHEMA,
            "format": self.format,
            "entry": self.entry,
            "inputs": [s.to_json() for s in self.inputs],
            "outputs": [s.to_json() for s in self.outputs],
            "facts": dict(self.facts),
            "files": dict(self.files),
        }

    @property
    def path(self) -> Path:
        """The file an engine opens."""
        return self.root / self.entry

    def digest(self) -> str:
        """SHA-256 over everything in `artifact.json`, which names every file's own digest."""
        return hashlib.sha256(canonical(self.to_json())).hexdigest()

    @property
    def model_files(self) -> List[str]:
        """The files of the model itself: in a bundle not all."""
        return sorted(self.facts.get("model_files") or self.files)

    @property
    def size_bytes(self) -> int:
        """Bytes of the model's own files."""
        return sum((self.root / name).stat().st_size for name in self.model_files)

    def verify(self) -> None:
        """Raise `BadArtifact` naming the first file that is missing or has other bytes."""
        for name, expected in self.files.items():
            path = self.root / name
            if not path.is_file():
                raise BadArtifact("file is missing", where=str(path), fix="build it again")
            got = sha256_of(path)
            if got != expected:
                raise BadArtifact(
                    "file was changed after it was made",
                    where=str(path),
                    expected="sha256 " + expected,
                    got=got,
                    fix="build it again, or fetch the package again",
                )
