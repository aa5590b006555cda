"""Fits what a user hands in to the model's inputs: names, dtypes, shapes, finite values.

Every error names where the data came from, the array, and the sample.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtimes.errors import UsageError
from runtimes.types import TensorSpec

Array = NDArray[Any]
Feed = dict[str, Array]
Labels = Any  # one a sample: an array, a list, or None
LABELS = "labels"


@dataclass
class Binder:
    """The model's inputs, and what may be done to data so that it fits them.

    Attributes:
        inputs: the model's input specs, in order.
        cast: integers may become floats (the user says so: pixels 0–255 are meant).
        names: name in the data → name of the input.
        label: name of the array that holds the labels; None = `labels`, if there.
        notes: what was done or ignored, as sentences for the user; grows.
    """

    inputs: tuple[TensorSpec, ...]
    cast: bool = False
    names: Mapping[str, str] = field(default_factory=dict)
    label: str | None = None
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Remember a sentence for the user, once."""
        if text not in self.notes:
            self.notes.append(text)

    @property
    def batched(self) -> bool:
        """Every input has the same kind of batch axis in front, so that a feed is rows."""
        return bool(self.inputs) and all(spec.shape for spec in self.inputs)

    def split_label(self, raw: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
        """(arrays by input name, labels or None) of a mapping, renamed as the user said."""
        wanted = [spec.name for spec in self.inputs]
        arrays = {self.names.get(name, name): value for name, value in raw.items()}
        if self.label is not None and self.label not in arrays:
            close = difflib.get_close_matches(self.label, list(arrays), 1, cutoff=0.3)
            raise UsageError(
                f"no array {self.label!r} with labels",
                where="labels",
                got=", ".join(arrays),
                fix=f"did you mean {close[0]!r}?" if close else "",
            )
        name = self.label or LABELS
        return arrays, None if name in wanted else arrays.pop(name, None)

    def select(self, arrays: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The arrays the model takes, in its order; others are ignored with a note."""
        wanted = [spec.name for spec in self.inputs]
        extra = [name for name in arrays if name not in wanted]
        for name in wanted:
            if name not in arrays:
                raise _missing(name, arrays, extra, where)
        for name in extra:
            self.note(f"{where}: array {name!r} is no input of the model and was ignored")
        return {name: arrays[name] for name in wanted}

    def convert(self, array: Array, spec: TensorSpec, where: str) -> Array:
        """`array` in the dtype of `spec`, where that loses nothing that matters."""
        want = np.dtype(spec.dtype)
        if array.dtype == want:
            return array
        if not self._may_cast(array.dtype, want):
            raise _wrong_dtype(array.dtype, spec, where)
        if array.dtype.kind in "iu" and want.kind in "iu":
            _check_fits(array, want, spec, where)
        self.note(f"{spec.name}: {array.dtype} was converted to {want}")
        return array.astype(want)

    def _may_cast(self, have: np.dtype[Any], want: np.dtype[Any]) -> bool:
        if have.kind == "f":
            return want.kind == "f"
        if have.kind in "iub":
            return want.kind in "iu" or (want.kind == "f" and self.cast)
        return False

    def check_shapes(self, feed: Mapping[str, Array], where: str, *, rows: bool) -> None:
        """Raise `UsageError` where a shape does not fit; with `rows` the first axis is free."""
        sizes: dict[str, int] = {}
        for spec in self.inputs:
            array = feed[spec.name]
            skip = 1 if rows else 0
            if array.ndim != len(spec.shape) or not _axes_fit(array.shape, spec, skip, sizes):
                raise _wrong_shape(array, spec, where)

    def bind(self, raw: Mapping[str, Any], where: str, *, rows: bool) -> Feed:
        """One feed, fully checked: names, dtypes, shapes (not yet: finite values)."""
        chosen = self.select(raw, where)
        feed = {}
        for spec in self.inputs:
            array = as_array(chosen[spec.name], f"{where}: array {spec.name!r}")
            feed[spec.name] = self.convert(array, spec, where)
        self.check_shapes(feed, where, rows=rows)
        return feed


def as_array(value: Any, where: str) -> Array:
    """A numpy array from an array, a torch tensor (torch is not imported), a list or a number."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        try:
            value = value.numpy()
        except TypeError as error:  # bfloat16 has no numpy dtype
            raise UsageError(f"tensor numpy cannot hold: {error}", where=where) from error
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise UsageError("rows of different lengths", where=where, expected="an array") from error
    if array.dtype.kind == "O":
        raise UsageError(
            "not an array of numbers", where=where, got=type(value).__name__, expected="an array"
        )
    return array


def rows_of(feed: Mapping[str, Array]) -> int | None:
    """The common length of the first axes, or None where the inputs share none."""
    lengths = {array.shape[0] if array.ndim else -1 for array in feed.values()}
    return lengths.pop() if len(lengths) == 1 and -1 not in lengths else None


def check_finite(feed: Mapping[str, Array], where: str, names: Sequence[str]) -> None:
    """Raise `UsageError` naming the first sample that holds NaN or infinity.

    Args:
        feed: arrays with samples along the first axis (or one whole feed and one name).
        where: file or object the data came from.
        names: how to call each sample.
    """
    for name, array in feed.items():
        if array.dtype.kind != "f":
            continue
        good = np.isfinite(array)
        if good.all():
            continue
        bad = ~good.reshape(len(names), -1).all(axis=1)
        row = int(np.flatnonzero(bad)[0])
        kind = "NaN" if np.isnan(array.reshape(len(names), -1)[row]).any() else "infinity"
        raise UsageError(
            f"{kind} in array {name!r}, {names[row]}",
            where=where,
            expected="finite numbers",
            got=f"{int(bad.sum())} bad of {len(names)} samples read",
            fix="repair or drop these samples",
        )


def join_labels(labels: Iterable[Any], where: str) -> Labels:
    """One label a sample: an array where all have one shape, else the list of them."""
    found = list(labels)
    try:
        plain = [as_array(label, where) for label in found]
    except UsageError:
        return found
    if len({(a.shape, a.dtype.kind) for a in plain}) == 1 and plain[0].dtype.kind not in "SV":
        return np.stack(plain)
    return found


def split_labels(label: Any, rows: int, where: str) -> list[Any]:
    """The labels of `rows` samples that came in one piece."""
    if hasattr(label, "detach"):
        label = as_array(label, where)
    counted = isinstance(label, list | tuple) or (isinstance(label, np.ndarray) and label.ndim > 0)
    if counted and len(label) == rows:
        return list(label)
    if rows == 1:
        return [label]
    got = f"{len(label)}" if counted else type(label).__name__
    raise UsageError("labels do not match", where=where, expected=f"{rows} labels", got=got)


def _axes_fit(shape: tuple[int, ...], spec: TensorSpec, skip: int, sizes: dict[str, int]) -> bool:
    for want, have in zip(spec.shape[skip:], shape[skip:], strict=True):
        if isinstance(want, str):
            if want and sizes.setdefault(want, have) != have:
                return False
        elif want != have:
            return False
    return True


def _missing(name: str, arrays: Mapping[str, Any], extra: Sequence[str], where: str) -> UsageError:
    close = difflib.get_close_matches(name, extra, 1, cutoff=0.3) or list(extra)[:1]
    fix = f"name an array {name!r}"
    if close:
        fix = f"rename {close[0]!r} to {name!r}, or say names: {{{close[0]}: {name}}}"
    return UsageError(
        f"no array for the model's input {name!r}",
        where=where,
        expected=name,
        got=", ".join(sorted(map(str, arrays))) or "no array at all",
        fix=fix,
    )


def _wrong_dtype(have: np.dtype[Any], spec: TensorSpec, where: str) -> UsageError:
    fix = f"convert it with .astype({spec.dtype!r}) if that is what the model was trained on"
    if have.kind in "iub" and np.dtype(spec.dtype).kind == "f":
        fix = "scale it as in training (x / 255?) and store it as " + spec.dtype
        fix += "; say cast: true if the model takes these very numbers"
    return UsageError(
        f"wrong dtype of array {spec.name!r}",
        where=where,
        expected=spec.dtype,
        got=str(have),
        fix=fix,
    )


def _check_fits(array: Array, want: np.dtype[Any], spec: TensorSpec, where: str) -> None:
    bounds = np.iinfo(want)
    if array.size and (array.min() < bounds.min or array.max() > bounds.max):
        raise UsageError(
            f"values of array {spec.name!r} do not fit {want}",
            where=where,
            expected=f"{bounds.min}–{bounds.max}",
            got=f"{array.min()}–{array.max()}",
        )


def _wrong_shape(array: Array, spec: TensorSpec, where: str) -> UsageError:
    fix = ""
    if array.ndim == len(spec.shape) - 1:
        fix = "add the missing axis (x[:, None] for one channel, x[None] for one sample)"
    elif array.ndim == 4 and len(spec.shape) == 4 and array.shape[3] == spec.shape[1]:
        fix = "the channels stand last: x.transpose(0, 3, 1, 2)"
    return UsageError(
        f"wrong shape of array {spec.name!r}",
        where=where,
        expected=str(spec),
        got=str(list(array.shape)),
        fix=fix,
    )
