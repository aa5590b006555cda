"""Files of a package in few bytes: weights found and aligned, the rest copied from the base.

`encoding` does the work and `runtimes.blob` undoes it; this decides what they are told.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compressor.package.encoding import encode
from compressor.package.matching import match
from compressor.package.segments import Stored, find_weights
from runtimes.blob import MAX_ROWS
from runtimes.coding import COPY, HALF, INT4, UINT4, WORD, Segment, to_values

# A tensor that LZMA makes this much smaller is left to it, tried on so many bytes. A small one
# is not tried alone, since what is learnt of its like counts there: it must plainly repeat.
REPEATS, SAMPLE = 0.98, 1 << 16
PLAINLY, SMALL = 0.9, 1 << 14


def code_files(
    root: Path, files: Sequence[str], base: Path | None = None, base_files: Sequence[str] = ()
) -> bytes:
    """The blob of `files` in `root`, given those in `base` where it is named.

    Args:
        root: a folder.
        files: names in it; their order is part of the blob.
        base: the folder of the version before, which the decoder has too.
        base_files: names in it.
    """
    data = _joined(root, files)
    found = [t for t in _placed(root, files) if not _repeats(data, t)][:MAX_ROWS]
    if base is None:
        return min(encode(data, [_segment(t) for t in found]), encode(data, []), key=len)
    before = _joined(base, base_files)
    old = _placed(base, base_files)
    segments = [_aligned(data, before, t, o) for t, o in _pairs(found, old)]
    copies = match(_outside(data, found), before, _gaps(old, len(before)))
    return encode(data, segments, before, copies)


def _joined(root: Path, files: Sequence[str]) -> bytes:
    return b"".join((root / name).read_bytes() for name in files)


def _placed(root: Path, files: Sequence[str]) -> list[Stored]:
    """Weights with their offsets in the files one after another."""
    starts: dict[str, int] = {}
    total = 0
    for name in files:
        starts[name] = total
        total += (root / name).stat().st_size
    return [t._replace(offset=starts[t.file] + t.offset) for t in find_weights(root, files)]


def _segment(tensor: Stored) -> Segment:
    return Segment(tensor.offset, tensor.size, tensor.kind, tensor.kernel)


def _bytes(data: bytes, offset: int, size: int) -> np.ndarray[Any, Any]:
    return np.frombuffer(data, np.uint8, size, offset)


def _repeats(data: bytes, tensor: Stored) -> bool:
    """Whether LZMA does better on a tensor: a table, a mask, rows of zeros."""
    step = 4 * tensor.kernel
    size = tensor.size if tensor.size <= SAMPLE else SAMPLE // step * step
    sample = data[tensor.offset : tensor.offset + size]
    if size < SMALL:
        return len(zlib.compress(sample, 1)) < PLAINLY * _entropy(_bytes(sample, 0, size)) - 16
    alone = encode(sample, [Segment(0, size, tensor.kind, tensor.kernel)])
    return len(encode(sample, [])) < REPEATS * len(alone)


def _entropy(symbols: np.ndarray[Any, Any], contexts: np.ndarray[Any, Any] | int = 0) -> float:
    """Bytes of symbols in 0–255, each in its context in 0–255, by their own frequencies."""
    cells = np.bincount(symbols + 256 * contexts)
    table = np.pad(cells, (0, -len(cells) % 256)).reshape(-1, 256).astype(np.float64)
    totals = table.sum(axis=1, keepdims=True)
    shares = np.divide(table, totals, out=np.ones_like(table), where=table > 0)
    return float(-(table * np.log2(shares)).sum() / 8)


def _pairs(new: Sequence[Stored], old: Sequence[Stored]) -> list[tuple[Stored, Stored | None]]:
    """Each tensor with the one that it was: of the same name, else the next of the same form."""
    named: Mapping[object, Stored] = {(o.file, o.name, o.kind, o.size): o for o in old}
    formed: dict[object, list[Stored]] = {}
    ours = {(n.file, n.name, n.kind, n.size) for n in new}
    for o in old:
        if (o.file, o.name, o.kind, o.size) not in ours:
            formed.setdefault((o.file, o.kind, o.size, o.kernel), []).append(o)
    pairs: list[tuple[Stored, Stored | None]] = []
    for n in new:
        same = named.get((n.file, n.name, n.kind, n.size))
        like = formed.get((n.file, n.kind, n.size, n.kernel), [])
        pairs.append((n, same or (like.pop(0) if like else None)))
    return pairs


def _aligned(data: bytes, before: bytes, tensor: Stored, old: Stored | None) -> Segment:
    """The cheapest way to code a tensor: copied, against the old one, or on its own."""
    plain = _segment(tensor)
    if old is None:
        return plain
    now = _bytes(data, tensor.offset, tensor.size)
    then = _bytes(before, old.offset, old.size)
    if np.array_equal(now, then):
        return Segment(tensor.offset, tensor.size, COPY, 1, old.offset)
    return plain._replace(old=old.offset) if _related(plain, now, then) else plain


def _related(segment: Segment, now: np.ndarray[Any, Any], then: np.ndarray[Any, Any]) -> bool:
    """Whether a tensor costs less given the old one, on its first million weights."""
    now, then = now[: 1 << 20], then[: 1 << 20]
    if segment.kind in (HALF, WORD):
        width = 4 if segment.kind == WORD else 2
        a, b = (x.view(f"<u{width}").astype(np.int64) for x in (now, then))
        return bool(np.median(np.abs(a - b)) < 1 << (8 * width - 8))
    whole = segment._replace(kernel=1)
    a, b = (to_values(x, whole).ravel() + 128 for x in (now, then))
    if segment.kind in (INT4, UINT4):
        return _entropy(a, b) < 0.95 * _entropy(a)
    return _entropy((a - b) & 255) < 0.95 * _entropy(a)


def _outside(data: bytes, tensors: Sequence[Stored]) -> bytes:
    return b"".join(data[a:b] for a, b in _gaps(tensors, len(data)))


def _gaps(tensors: Sequence[Stored], size: int) -> list[tuple[int, int]]:
    """Where no tensor lies."""
    edges = [0]
    for tensor in tensors:
        edges += [tensor.offset, tensor.offset + tensor.size]
    edges.append(size)
    return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b > a]
