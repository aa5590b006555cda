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
    """Raise `UsageError` naming the samples that `a` and `b` share, up to five and their count."""
    first, second = a.digests(), b.digests()
    if _kind(first) != _kind(second):
        first, second = a.array_digests(), b.array_digests()
    seen = {digest: i for i, digest in reversed(list(enumerate(second)))}
    shared = [(i, seen[digest]) for i, digest in enumerate(first) if digest in seen]
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
