"""Where samples lie: arrays, feeds one by one, map-style data sets. Read on demand where it can be.

A reader gives rows (samples) by index. It has checked names, dtypes and shapes of what it returns;
`compressor.data` looks at the values.
"""

from __future__ import annotations

import mmap
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from compressor.data.bind import (
    Array,
    Binder,
    Feed,
    Labels,
    as_array,
    join_labels,
    rows_of,
    split_labels,
)
from runtimes.errors import UsageError

MEMORY_LIMIT = 4 << 30  # of an iterable that must be held: it can be read only once


class Reader(Protocol):
    """Samples by index."""

    where: str
    labels: Labels
    ragged: bool

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int]) -> Feed:
        """The samples as one feed."""

    def name(self, index: int) -> str:
        """What to call a sample in a message."""

    def file_digests(self) -> list[str] | None:
        """Digests of the files the samples are, or None: then their values are digested."""


class ArrayReader:
    """Arrays by input name, samples along the first axis; memory-mapped ones stay on disk."""

    ragged = False

    def __init__(self, raw: Mapping[str, Any], binder: Binder, where: str) -> None:
        arrays, labels = binder.split_label(raw)
        self.where, self.binder = where, binder
        self._mapped = [m for m in map(_mapping, arrays.values()) if m is not None]
        self.arrays = {
            name: as_array(value, f"{where}: array {name!r}")
            for name, value in binder.select(arrays, where).items()
        }
        self._check()
        self.labels = None if labels is None else check_labels(labels, len(self), where)

    def _check(self) -> None:
        for spec in self.binder.inputs:
            array = self.arrays[spec.name]
            self.binder.convert(array[:1] if array.ndim else array, spec, self.where)
        self.binder.check_shapes(self.arrays, self.where, rows=True)
        if rows_of(self.arrays) is None:
            raise UsageError(
                "arrays of different lengths",
                where=self.where,
                expected="one row a sample in each",
                got=", ".join(f"{n}: {len(a)}" for n, a in self.arrays.items()),
            )

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def read(self, indices: Sequence[int]) -> Feed:
        """The samples as one feed."""
        index = np.asarray(indices, dtype=np.int64)
        feed = {}
        for spec in self.binder.inputs:
            rows = np.asarray(self.arrays[spec.name][index])
            feed[spec.name] = self.binder.convert(rows, spec, self.where)
        for mapped in self._mapped:
            mapped.madvise(mmap.MADV_DONTNEED)  # pages once read would stay resident to the end
        return feed

    def name(self, index: int) -> str:
        """What to call a sample in a message."""
        return f"sample {index}"

    def file_digests(self) -> list[str] | None:
        """None: the values are digested."""
        return None


def _mapping(array: Any) -> mmap.mmap | None:
    """The map of a file behind a memory-mapped array that is only read."""
    if not isinstance(array, np.memmap) or array.mode != "r" or not hasattr(mmap, "MADV_DONTNEED"):
        return None
    mapped = array._mmap  # type: ignore[attr-defined]
    return mapped if isinstance(mapped, mmap.mmap) else None


class FeedReader:
    """Whole feeds, loaded one by one, each cut into its rows where its inputs share a batch axis.

    Args:
        load: feed number → checked feed.
        sizes: rows of each feed; None = the feed is one sample, batch axis and all.
        names: what to call each feed.
        labels: one a sample, or None.
    """

    def __init__(
        self,
        load: Callable[[int], Feed],
        sizes: Sequence[int | None],
        names: Sequence[str],
        labels: Labels,
        where: str,
        *,
        ragged: bool,
    ) -> None:
        self.where, self.labels, self.ragged = where, labels, ragged
        self._load, self._names, self._sizes = load, names, sizes
        self._place = [(f, r) for f, size in enumerate(sizes) for r in _rows(size)]
        self._last: tuple[int, Feed] | None = None

    def __len__(self) -> int:
        return len(self._place)

    def read(self, indices: Sequence[int]) -> Feed:
        """The samples as one feed."""
        rows = [self._row(index) for index in indices]
        if len(rows) == 1:
            return rows[0]
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

    def _row(self, index: int) -> Feed:
        number, row = self._place[index]
        if self._last is None or self._last[0] != number:
            self._last = number, self._load(number)
        feed = self._last[1]
        return feed if row is None else {n: a[row : row + 1] for n, a in feed.items()}

    def name(self, index: int) -> str:
        """What to call a sample in a message."""
        number, row = self._place[index]
        alone = row is None or self._sizes[number] == 1
        return self._names[number] + ("" if alone else f", row {row}")

    def file_digests(self) -> list[str] | None:
        """None: the values are digested."""
        return None


def _rows(size: int | None) -> Iterable[int | None]:
    return [None] if size is None else range(size)


class ItemReader:
    """A map-style data set, `dataset[i]` → one sample without its batch axis; read on demand."""

    def __init__(self, items: Any, binder: Binder, where: str, indices: Sequence[int]) -> None:
        self.where, self.binder, self.items = where, binder, items
        self.indices = list(indices)
        shapes: set[tuple[tuple[int, ...], ...]] = set()
        labels = []
        for number in range(len(self)):
            feed, label = self._item(number)
            shapes.add(tuple(array.shape for array in feed.values()))
            labels.append(label)
        self.ragged = len(shapes) > 1
        self.labels = joined(labels, where)

    def __len__(self) -> int:
        return len(self.indices)

    def _item(self, number: int) -> tuple[Feed, Any]:
        place = f"{self.where}[{self.indices[number]}]"
        arrays, label = split_item(self.items[self.indices[number]], self.binder, place)
        arrays = {n: as_array(v, f"{place}: array {n!r}")[None] for n, v in arrays.items()}
        return self.binder.bind(arrays, place, rows=True), label

    def read(self, indices: Sequence[int]) -> Feed:
        """The samples as one feed."""
        rows = [self._item(index)[0] for index in indices]
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

    def name(self, index: int) -> str:
        """What to call a sample in a message."""
        return f"sample {self.indices[index]}"

    def file_digests(self) -> list[str] | None:
        """None: the values are digested."""
        return None


def split_item(item: Any, binder: Binder, where: str) -> tuple[dict[str, Any], Any]:
    """(arrays by input name, label or None) of whatever one item of a data set is."""
    wanted = [spec.name for spec in binder.inputs]
    if isinstance(item, Mapping):
        return binder.split_label(item)
    if isinstance(item, list | tuple):
        if item and isinstance(item[0], Mapping) and len(item) <= 2:
            arrays, label = binder.split_label(item[0])
            return arrays, item[1] if len(item) == 2 else label
        if len(item) == 2 and isinstance(item[0], list | tuple) and len(item[0]) == len(wanted):
            return dict(zip(wanted, item[0], strict=True)), item[1]
        if len(item) in (len(wanted), len(wanted) + 1):
            label = item[len(wanted)] if len(item) > len(wanted) else None
            return dict(zip(wanted, item, strict=False)), label
    elif len(wanted) == 1:
        return {wanted[0]: item}, None
    raise UsageError(
        "cannot tell inputs and label apart",
        where=where,
        expected=f"a mapping with {', '.join(wanted)}, or (inputs, label)",
        got=type(item).__name__ + (f" of {len(item)}" if isinstance(item, list | tuple) else ""),
    )


def read_feeds(items: Iterable[Any], binder: Binder, where: str, limit: int | None) -> Reader:
    """An iterable of feeds or (feeds, label), batch axis included: read once, held in memory."""
    feeds: list[Feed] = []
    labels: list[Any] = []
    held = count = 0
    for number, item in enumerate(items):
        place = f"{where}[{number}]"
        arrays, label = split_item(item, binder, place)
        feed = binder.bind(arrays, place, rows=binder.batched)
        rows = rows_of(feed) if binder.batched else None
        feeds.append(feed)
        labels += [None] * (rows or 1) if label is None else _labels(label, rows, place)
        held += sum(array.nbytes for array in feed.values())
        count += rows if rows is not None else 1
        _check_memory(held, where)
        if limit is not None and count >= limit:
            break
    names = [f"sample {i}" for i in range(len(feeds))]
    return feed_reader(lambda i: feeds[i], feeds, names, labels, binder, where)


def _labels(label: Any, rows: int | None, where: str) -> list[Any]:
    return [label] if rows is None else split_labels(label, rows, where)


def _check_memory(held: int, where: str) -> None:
    if held > MEMORY_LIMIT:
        raise UsageError(
            f"more than {MEMORY_LIMIT >> 30} GiB from an iterable that can be read only once",
            where=where,
            fix="set limit, or hand in a folder of .npz files or a data set with [index] and len()",
        )


def feed_reader(
    load: Callable[[int], Feed],
    feeds: Sequence[Feed],
    names: Sequence[str],
    labels: Sequence[Any],
    binder: Binder,
    where: str,
) -> FeedReader:
    """A reader over feeds that were seen once: `feeds` gives their shapes (rows may be empty)."""
    sizes = [rows_of(feed) if binder.batched else None for feed in feeds]
    shapes = {tuple(array.shape[1:] for array in feed.values()) for feed in feeds}
    ragged = len(shapes) > 1 or None in sizes
    return FeedReader(load, sizes, names, joined(labels, where), where, ragged=ragged)


def joined(labels: Sequence[Any], where: str) -> Labels:
    """Labels as one array where they can be, None where there are none, an error where some are."""
    missing = [i for i, label in enumerate(labels) if label is None]
    if len(missing) == len(labels):
        return None
    if missing:
        raise UsageError(
            "some samples have a label and some have none",
            where=where,
            got=f"none for sample {missing[0]} ({len(missing)} of {len(labels)})",
        )
    return join_labels(labels, where)


def check_labels(labels: Any, count: int, where: str) -> Labels:
    """Labels of `count` samples; `UsageError` where there are more or fewer, or NaN among them."""
    found = labels if isinstance(labels, list | tuple) else as_array(labels, f"{where}: labels")
    if np.ndim(found) == 0 or len(found) != count:
        got = "one value" if np.ndim(found) == 0 else str(len(found))
        fix = "give one label for each sample, in the same order"
        raise UsageError(
            "wrong number of labels", where=where, expected=f"{count}", got=got, fix=fix
        )
    if isinstance(found, np.ndarray) and found.dtype.kind == "f" and not np.isfinite(found).all():
        row = int(np.flatnonzero(~np.isfinite(found.reshape(count, -1)).all(axis=1))[0])
        raise UsageError(f"label of sample {row} is not a number", where=where)
    return found


# ── .npz ─────────────────────────────────────────────────────────────────────────────────────────


def open_npz(path: Path) -> dict[str, Array]:
    """The arrays of an `.npz`; those stored uncompressed are memory-mapped. Never unpickles."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [i for i in archive.infolist() if i.filename.endswith(".npy")]
            return {info.filename[:-4]: _member(path, archive, info) for info in members}
    except FileNotFoundError as error:
        raise UsageError("no such file", where=str(path)) from error
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise UsageError(
            f"not a readable .npz: {error}", where=str(path), fix="write it again with np.savez"
        ) from error


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Array:
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        header = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            header = np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(stream)
        if dtype.hasobject:
            raise _pickled(path, info.filename[:-4])
        if info.compress_type == zipfile.ZIP_STORED and 0 not in shape and shape:
            order = "F" if fortran else "C"
            offset = _data_offset(path, info) + stream.tell()
            return np.memmap(path, dtype, "r", offset, shape, order)  # type: ignore[call-overload,no-any-return]
    with archive.open(info) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def _pickled(path: Path, name: str) -> UsageError:
    return UsageError(
        f"array {name!r} holds pickled objects, which are never loaded",
        where=str(path),
        expected="arrays of numbers or text",
        fix="store numbers; for samples of different shapes, one .npz file each in a folder",
    )


def _data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    # the local header has its own name and extra field, of other lengths than the central one
    with path.open("rb") as stream:
        stream.seek(info.header_offset + 26)
        lengths = np.frombuffer(stream.read(4), "<u2")
    return info.header_offset + 30 + int(lengths[0]) + int(lengths[1])


def array_names(spec: Any, base_dir: Path) -> list[str]:
    """Names of the arrays of a data set as the user names it, where they show before it is opened.

    Args:
        spec: as in `open_data`.
        base_dir: what a relative path starts from.
    """
    path = spec.get("path") if isinstance(spec, Mapping) else spec
    if isinstance(path, str | Path):
        found = (base_dir / path).expanduser()
        return list(open_npz(found)) if found.suffix == ".npz" and found.is_file() else []
    first = spec[0] if isinstance(spec, tuple) and spec else spec
    return [str(name) for name in first] if isinstance(first, Mapping) else []


def read_npz_folder(folder: Path, binder: Binder, limit: int | None) -> Reader:
    """A folder of `.npz` files, one complete feed each (batch axis included), read on demand."""
    paths = sorted(folder.glob("*.npz"))[:limit]
    shapes: list[Feed] = []
    labels: list[Any] = []

    def load(number: int) -> Feed:
        arrays, _ = binder.split_label(open_npz(paths[number]))
        return binder.bind(arrays, str(paths[number]), rows=binder.batched)

    for number, path in enumerate(paths):
        feed = load(number)
        label = binder.split_label(open_npz(path))[1]
        rows = rows_of(feed) if binder.batched else None
        # keep the shapes alone: a view of one element, repeated
        shapes.append({n: np.broadcast_to(a.dtype.type(0), a.shape) for n, a in feed.items()})
        labels += [None] * (rows or 1) if label is None else _labels(label, rows, str(path))
    names = [path.name for path in paths]
    return feed_reader(load, shapes, names, labels, binder, str(folder))
