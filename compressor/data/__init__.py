"""Opens calibration, training, selection and evaluation data, whatever form they come in.

Models with state take sequences, [n, steps, …] (`compressor.stateful`). Recipes name a path
(`.npz`, `.npy`, folder, `data.yaml`), a `module:function`, or a mapping around one of them; the
Python API also takes arrays, iterables of feeds, and torch data sets and loaders.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor.data.bind import LABELS, Array, Binder, Feed, Labels, check_finite
from compressor.data.checks import check_disjoint, label_bytes, row_digests
from compressor.data.lint import Profile, alone
from compressor.data.readers import (
    ArrayReader,
    ItemReader,
    Reader,
    open_npz,
    read_feeds,
    read_npz_folder,
)
from compressor.nearby import closest_file
from compressor.usercode import takes
from runtimes.errors import UsageError
from runtimes.types import TensorSpec, canonical

__all__ = ["DataSet", "DataSpec", "check_disjoint", "open_data"]

FEW_EVALUATION = 300
_SCAN = 256  # samples looked at at once, fewer where they are large
_SCAN_BYTES = 64 << 20
_PEEK = 32  # pictures decoded when opened, to see that they can be
_KEYS = ("path", "preprocess", "labels", "limit", "seed", "names", "cast", "classes")
_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


@dataclass(frozen=True)
class DataSpec:
    """What the recipe says of one data set.

    Attributes:
        path: file, folder or `module:function`.
        preprocess: how pictures become inputs, see `runtimes.preprocess`.
        labels: name of the array with labels; for pictures `folder`, `yolo`, or a CSV or JSON file.
        limit: use this many samples, drawn with `seed` (of iterables: the first).
        seed: of that draw.
        names: name in the data → name of the model's input.
        cast: integers may become floats as they are.
        classes: class names in the order of the model's outputs, where folders or CSVs name them.
    """

    path: str
    preprocess: Mapping[str, Any] | None = None
    labels: str | None = None
    limit: int | None = None
    seed: int = 0
    names: Mapping[str, str] | None = None
    cast: bool = False
    classes: Sequence[str] | None = None


class DataSet:
    """Samples of one role, checked; meets `exporters.base.Samples`.

    Attributes:
        fingerprint: SHA-256 over every sample and label (pictures: their files and preprocessing).
        ragged: shapes differ from sample to sample, so batches hold one.
        labels: one a sample, or None.
        description: one line for people.
        warnings: what the user should know.
        profile: what `compressor.data.lint` looks at.
        preprocess: how pictures were prepared, as JSON, or None.
    """

    def __init__(
        self, reader: Reader, role: str, inputs: Sequence[TensorSpec], indices: Sequence[int]
    ) -> None:
        self.reader, self.role, self.inputs = reader, role, tuple(inputs)
        self.indices = list(indices)
        self.ragged = reader.ragged
        self.warnings: list[str] = []
        self.preprocess: dict[str, Any] | None = None
        self.profile = Profile()
        self._labels = _take(reader.labels, self.indices)
        self._digests = self._scan()
        self.fingerprint = self._fingerprint()
        self.description = self._describe()

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def labels(self) -> Labels:
        """One label a sample, or None."""
        return self._labels

    def feeds(self, indices: Sequence[int]) -> Feed:
        """The named samples as one batch, by input name."""
        if self.ragged and len(indices) != 1:
            raise UsageError(
                "samples of different shapes make no batch", where=self.reader.where, fix="batch 1"
            )
        return self.reader.read([self.indices[i] for i in indices])

    def batches(
        self, size: int, indices: Sequence[int] | None = None
    ) -> Iterator[tuple[list[int], Feed]]:
        """Batches of (indices, feeds), in order; the last one may be smaller."""
        chosen = list(range(len(self)) if indices is None else indices)
        step = 1 if self.ragged else max(1, size)
        for start in range(0, len(chosen), step):
            part = chosen[start : start + step]
            yield part, self.feeds(part)

    def digests(self) -> list[str]:
        """One digest a sample: `file:…` of a picture's file, `array:…` of the values."""
        return self._digests

    def name(self, index: int) -> str:
        """What to call a sample in a message."""
        return self.reader.name(self.indices[index])

    def array_digests(self) -> list[str]:
        """Digests of the values the model is fed, whatever the samples come from."""
        batches = self.batches(self._scan_size())
        return [d for _, feed in batches for d in row_digests(feed, self.ragged)]

    def _scan_size(self) -> int:
        size = sum(array.nbytes for array in self.feeds([0]).values())
        return max(1, min(_SCAN, _SCAN_BYTES // max(1, size)))

    def _scan(self) -> list[str]:
        files = self.reader.file_digests()
        if files is None:
            return self._scan_values(range(len(self)), digest=True)
        self._scan_values(range(0, len(self), max(1, len(self) // _PEEK)), digest=False)
        return [f"file:{files[i]}" for i in self.indices]

    def _scan_values(self, indices: Iterable[int], *, digest: bool) -> list[str]:
        found: list[str] = []
        for part, feed in self.batches(self._scan_size(), list(indices)):
            check_finite(feed, self.reader.where, [self.name(i) for i in part])
            self.profile.add(feed, len(part))
            found += row_digests(feed, self.ragged) if digest else []
        return found

    def _fingerprint(self) -> str:
        digest = hashlib.sha256(canonical([str(spec) for spec in self.inputs]))
        for text in self._digests:
            digest.update(text.encode())
        if isinstance(self.labels, np.ndarray):
            digest.update(str(self.labels.dtype).encode() + str(self.labels.shape).encode())
            digest.update(np.ascontiguousarray(self.labels).tobytes())
        elif self.labels is not None:
            for label in self.labels:
                digest.update(label_bytes(label))
        return digest.hexdigest()

    def _describe(self) -> str:
        shown = []
        for spec in self.inputs:
            shape = ", ".join(str(d) for d in spec.shape[1:])
            shown.append(f"{spec.name} {spec.dtype}[{shape}]")
        labelled = "labelled" if self.labels is not None else "no labels"
        return f"{self.reader.where}: {len(self):,} samples of {', '.join(shown)}, {labelled}"


def open_data(spec: Any, role: str, inputs: Sequence[TensorSpec], base_dir: Path) -> DataSet:
    """The data set a recipe or the API names.

    Args:
        spec: a path, a `module:function`, a mapping `{path: …, preprocess: {…}, labels: …,
            limit: …, seed: …, names: {…}, cast: true, classes: […]}`; or arrays by input name
            (with `labels`), an array, an iterable of feeds or (feeds, label), a data set or loader.
        role: calibration, training, selection or evaluation.
        inputs: the model's inputs.
        base_dir: what relative paths and modules are relative to.

    Raises:
        UsageError: missing, empty or unreadable data; wrong names, dtypes, shapes; NaN.
    """
    if isinstance(spec, DataSet):
        return spec
    wanted = _data_spec(spec, role)
    binder = Binder(tuple(inputs))
    if wanted is None:
        reader = _open_object(spec, binder, role, DataSpec(""))
        return _finish(reader, binder, role, DataSpec(""))
    binder = Binder(tuple(inputs), wanted.cast, dict(wanted.names or {}), wanted.labels)
    return _finish(_open_path(wanted, role, binder, base_dir), binder, role, wanted)


def _data_spec(spec: Any, role: str) -> DataSpec | None:
    if isinstance(spec, str | Path):
        return DataSpec(str(spec))
    if not isinstance(spec, Mapping) or not isinstance(spec.get("path"), str | Path):
        return None
    for key in spec:
        if key not in _KEYS:
            close = difflib.get_close_matches(str(key), _KEYS, 1)
            raise UsageError(
                f"unknown key {key!r}",
                where=f"data.{role}",
                expected="one of " + ", ".join(_KEYS),
                fix=f"did you mean {close[0]!r}?" if close else "",
            )
        _check_value(str(key), spec[key], f"data.{role}.{key}")
    return DataSpec(**{**spec, "path": str(spec["path"])})


_VALUES: Mapping[str, tuple[type | tuple[type, ...], str]] = {
    "preprocess": (Mapping, "a mapping"),
    "labels": (str, "a name"),
    "limit": (int, "1 or more"),
    "seed": (int, "a whole number"),
    "names": (Mapping, "a mapping from name in the data to input"),
    "cast": (bool, "true or false"),
    "classes": ((list, tuple), "a list of names"),
}


def _check_value(key: str, value: Any, where: str) -> None:
    if key == "path" or value is None:
        return
    kind, wanted = _VALUES[key]
    odd = kind is int and (isinstance(value, bool) or (key == "limit" and value == 0))
    if odd or not isinstance(value, kind) or str(value).startswith("-"):
        raise UsageError("wrong value", where=where, expected=wanted, got=repr(value))


def _open_path(spec: DataSpec, role: str, binder: Binder, base_dir: Path) -> Reader:
    path = (base_dir / spec.path).expanduser()
    if not path.exists() and _REFERENCE.fullmatch(spec.path):
        from compressor.modules import import_reference

        function = import_reference(spec.path, base_dir)
        takes(function, 0, f"data.{role}: {spec.path}", "function() that returns the data")
        made = function()
        return _open_object(made, binder, spec.path, spec)
    if not path.exists():
        raise UsageError(
            "no such file or folder",
            where=f"data.{role}: {path}",
            fix=_near_miss(path),
        )
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return _open_arrays(open_npz(path), binder, path.name, spec)
    if suffix == ".npy":
        return _open_object(_open_npy(path), binder, path.name, spec)
    if suffix in (".yaml", ".yml") or path.is_dir():
        return _open_folder(path, spec, role, binder)
    raise UsageError(
        f"cannot read {suffix or 'this'} files as data",
        where=str(path),
        expected=".npz, .npy, a folder of .npz files or pictures, data.yaml, or module:function",
    )


def _open_folder(path: Path, spec: DataSpec, role: str, binder: Binder) -> Reader:
    from compressor.data.images import open_images, open_yolo

    if path.is_file():
        return open_yolo(path, role, spec.preprocess, binder)
    if any(path.glob("*.npz")):
        if spec.preprocess is not None:
            raise _no_pictures(str(path))
        return read_npz_folder(path, binder, None)
    return open_images(path, spec.preprocess, spec.labels, spec.classes, binder)


def _near_miss(path: Path) -> str:
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}"
    close = closest_file(path)
    return f"did you mean {close.name!r}?" if close else "check the path"


def _open_npy(path: Path) -> Array:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
    except (ValueError, OSError, EOFError) as error:
        raise UsageError(f"not a readable .npy: {error}", where=str(path)) from error


def _no_pictures(where: str) -> UsageError:
    return UsageError(
        "a preprocess block, but these are feeds and no pictures",
        where=where,
        fix="leave preprocess out, or hand in picture files or one uint8 array of pictures",
    )


def _open_arrays(raw: Mapping[str, Any], binder: Binder, where: str, spec: DataSpec) -> Reader:
    if spec.preprocess is None:
        return ArrayReader(raw, binder, where)
    from compressor.data.images import open_pictures

    return open_pictures(raw, spec.preprocess, binder, where)


def _open_object(made: Any, binder: Binder, where: str, spec: DataSpec) -> Reader:
    """A reader over arrays, a map-style data set, a loader, or any iterable of feeds."""
    if callable(made) and not hasattr(made, "__iter__") and not hasattr(made, "__getitem__"):
        made = made()
    if isinstance(made, Mapping):
        return _open_arrays(made, binder, where, spec)
    if isinstance(made, np.ndarray) or hasattr(made, "detach"):
        return _open_arrays(_alone(made, binder, where), binder, where, spec)
    if _is_pair_of_arrays(made):
        arrays = made[0] if isinstance(made[0], Mapping) else _alone(made[0], binder, where)
        return _open_arrays({**arrays, binder.label or LABELS: made[1]}, binder, where, spec)
    if spec.preprocess is not None:
        raise _no_pictures(where)
    if _is_map_style(made):
        return ItemReader(made, binder, where, _draw(len(made), spec.limit, spec.seed))
    if isinstance(made, Iterable) and not isinstance(made, str | bytes):
        return read_feeds(made, binder, where, spec.limit)
    raise UsageError(
        "not data",
        where=where,
        expected="arrays by input name, an iterable of feeds or (feeds, label), or a data set",
        got=type(made).__name__,
    )


def _alone(array: Any, binder: Binder, where: str) -> dict[str, Any]:
    if len(binder.inputs) != 1:
        names = ", ".join(spec.name for spec in binder.inputs)
        raise UsageError(
            "one array for a model with several inputs",
            where=where,
            expected=f"a mapping with {names}",
            got="one array",
        )
    return {binder.inputs[0].name: array}


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or hasattr(value, "detach")


def _is_pair_of_arrays(made: Any) -> bool:
    if not isinstance(made, tuple) or len(made) != 2 or isinstance(made[1], Mapping):
        return False
    first = made[0]
    good = _is_array(first) or (isinstance(first, Mapping) and all(map(_is_array, first.values())))
    return good and (_is_array(made[1]) or isinstance(made[1], list))


def _is_map_style(made: Any) -> bool:
    if isinstance(made, list | tuple | str | bytes) or hasattr(made, "batch_sampler"):
        return False
    return hasattr(made, "__getitem__") and hasattr(made, "__len__")


def _draw(count: int, limit: int | None, seed: int) -> list[int]:
    if limit is None or limit >= count:
        return list(range(count))
    drawn = np.random.default_rng(seed).permutation(count)[:limit]
    return sorted(int(i) for i in drawn)


def _finish(reader: Reader, binder: Binder, role: str, spec: DataSpec) -> DataSet:
    if len(reader) == 0:
        raise UsageError("no samples", where=f"data.{role}: {reader.where}")
    data = DataSet(reader, role, binder.inputs, _draw(len(reader), spec.limit, spec.seed))
    if len(data) < len(reader):
        data.warnings.append(f"{len(data):,} of {len(reader):,} samples are used (limit)")
    if role == "calibration":
        data.warnings += alone(data)
    if role == "evaluation" and len(data) < FEW_EVALUATION:
        text = f"only {len(data)} samples: fewer than {FEW_EVALUATION} cannot certify a drop of 1 %"
        data.warnings.append(text)
    data.warnings += binder.notes + list(getattr(reader, "notes", []))
    preprocess = getattr(reader, "preprocess", None)
    data.preprocess = preprocess.to_json() if preprocess is not None else None
    return data


def _take(labels: Labels, indices: Sequence[int]) -> Labels:
    if labels is None:
        return None
    if isinstance(labels, np.ndarray):
        return labels[np.asarray(indices, dtype=np.int64)]
    return [labels[i] for i in indices]
