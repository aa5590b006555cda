"""Digests of samples, and what two data sets must not share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from compressor.data.bind import Array, as_array
from runtimes.errors import UsageError

if TYPE_CHECKING:
    from compressor.data import DataSet


def row_digests(feed: Mapping[str, Array], whole: bool) -> list[str]:
    """One digest a row of the feed; with `whole` the feed is one sample, its shapes included."""
    names = sorted(feed)
    arrays = [np.ascontiguousarray(feed[name]) for name in names]
    count = 1 if whole else len(arrays[0])
    made = []
    for row in range(count):
        digest = hashlib.blake2b(digest_size=16)
        for array in arrays:
            part = array if whole else array[row]
            if whole:
                digest.update(str(part.shape).encode())
            digest.update(part.tobytes())
        made.append("array:" + digest.hexdigest())
    return made


def label_bytes(label: Any) -> bytes:
    """A label as bytes, whatever it is: text, numbers, boxes, a mapping of those."""
    if isinstance(label, str):
        return label.encode() + b"\0"
    if isinstance(label, Mapping):
        return b"".join(str(k).encode() + label_bytes(label[k]) for k in sorted(label))
    array = as_array(label, "label")
    return str((array.dtype, array.shape)).encode() + np.ascontiguousarray(array).tobytes()


def check_disjoint(a: DataSet, b: DataSet) -> None:
    """Raise `UsageError` naming the samples that `a` and `b` share, up to five and their count.

    Where both hold the same kind of values but in another range (0–255 in one, 0–1 in the other),
    a sentence is added to `a.warnings`.
    """
    first, second = a.digests(), b.digests()
    if _kind(first) != _kind(second):
        first, second = a.array_digests(), b.array_digests()
    seen = {digest: i for i, digest in reversed(list(enumerate(second)))}
    shared = [(i, seen[digest]) for i, digest in enumerate(first) if digest in seen]
    for text in _range_warnings(a, b):
        if text not in a.warnings:
            a.warnings.append(text)
    if not shared:
        return
    named = [f"{a.role}[{i}] equals {b.role}[{j}]" for i, j in shared[:5]]
    more = f" and {len(shared) - 5:,} more" if len(shared) > 5 else ""
    raise UsageError(
        f"{len(shared):,} of {len(a):,} {a.role} samples are in the {b.role} data",
        where=f"data.{a.role}",
        got="; ".join(named) + more,
        fix=f"take them out of one of the two: a score on data seen in {a.role} says nothing",
    )


def _kind(digests: Sequence[str]) -> str:
    return digests[0].partition(":")[0] if digests else ""


def _range_warnings(a: DataSet, b: DataSet) -> list[str]:
    found = []
    for name in sorted(set(a.ranges) & set(b.ranges)):
        (low, high), (other_low, other_high) = a.ranges[name], b.ranges[name]
        span, other = high - low, other_high - other_low
        wider = span > 8 * other or other > 8 * span
        centred = (low < -0.1 * span) != (other_low < -0.1 * other)
        if wider or (centred and min(span, other) > 0):
            found.append(
                f"{name} lies in {low:.4g}–{high:.4g} here and in {other_low:.4g}–{other_high:.4g} "
                f"in the {b.role} data: is one of them scaled or normalised differently?"
            )
    return found
