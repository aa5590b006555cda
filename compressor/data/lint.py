"""What is suspicious about calibration data: nothing stops, each finding is a sentence.

A sentence names the input, what was found, what was expected, and the fix. Chance alone must not
cause one: limits are chosen so that a fair draw of good data passes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from compressor.data.bind import Array
from compressor.data.features import EXPECTED, Slices, named
from runtimes.errors import UsageError

if TYPE_CHECKING:
    from compressor.data import DataSet

FEW_CALIBRATION = 100
_PLANES = 4  # images have up to four channels; of feature maps, some are constant by nature
_COPIES = 0.05  # of the samples: fewer equal ones are found in good data sets too
_BATCH = 256
_WIDER = 8  # times another range: 255 is, and no fair draw


class Profile:
    """What one pass over samples keeps of them.

    Attributes:
        ranges: float input → (lowest, highest) value.
        planes: input with the shape of pictures → (lowest, highest) of each channel.
        slices: (input with the shape of tables or sequences, axis) → its features.
        shapes: input → shape of the first sample.
        rows: how many samples were looked at; of pictures in files, some.
        zeros: samples whose inputs are 0 throughout.
        floats: every input holds floats.
    """

    def __init__(self) -> None:
        self.ranges: dict[str, tuple[float, float]] = {}
        self.planes: dict[str, tuple[Array, Array]] = {}
        self.slices: dict[tuple[str, int], Slices] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.rows, self.zeros, self.floats = 0, 0, True

    def add(self, feed: Mapping[str, Array], rows: int) -> None:
        """Look at a batch of `rows` samples."""
        zero = np.ones(rows, bool)
        self.rows += rows
        for name, array in feed.items():
            self.shapes.setdefault(name, array.shape[1:])
            if array.dtype.kind != "f":
                self.floats = False
            elif array.size:
                low, high = self.ranges.get(name, (np.inf, -np.inf))
                self.ranges[name] = min(low, float(array.min())), max(high, float(array.max()))
                self._planes(name, array)
                self._slices(name, array)
                zero &= ~array.reshape(rows, -1).any(axis=1)
        self.zeros += int(zero.sum()) if self.floats and self.ranges else 0

    def _planes(self, name: str, array: Array) -> None:
        axis = _channels(array.shape)
        if axis is None:
            return
        others = tuple(i for i in range(4) if i != axis)
        low, high = array.min(axis=others), array.max(axis=others)
        if name in self.planes and self.planes[name][0].shape == low.shape:
            low = np.minimum(low, self.planes[name][0])
            high = np.maximum(high, self.planes[name][1])
        self.planes[name] = low, high

    def _slices(self, name: str, array: Array) -> None:
        for axis in range(1, array.ndim if array.ndim in (2, 3) else 0):
            known = self.slices.setdefault((name, axis), Slices.empty(array.shape[axis]))
            if len(known.low) == array.shape[axis]:
                known.add(array, axis)


def _channels(shape: Sequence[int]) -> int | None:
    """The axis of a batch of pictures that holds their two to four channels."""
    if len(shape) != 4:
        return None
    return next((axis for axis in (1, 3) if 1 < shape[axis] <= _PLANES), None)


def require_varied(data: DataSet) -> None:
    """`UsageError` where calibration data is one value throughout: no range can come of it."""
    ranges = data.profile.ranges
    if not data.profile.floats or not ranges or any(low < high for low, high in ranges.values()):
        return
    raise UsageError(
        "every value of the calibration data is the same",
        where=f"data.{data.role}: {data.reader.where}",
        expected="samples as the model will see them",
        got=", ".join(f"{name} is {low:g} throughout" for name, (low, _) in ranges.items()),
        fix="check how the samples are read and scaled",
    )


def alone(data: DataSet) -> list[str]:
    """What is suspicious about calibration data by itself."""
    found = []
    if len(data) < FEW_CALIBRATION:
        count = "1 sample" if len(data) == 1 else f"{len(data)} samples"
        text = f"only {count}: ranges from fewer than {FEW_CALIBRATION} are unreliable"
        found.append(f"{text}; hand in about 300")
    seen = data.profile
    if seen.floats and seen.ranges:
        found += _constant(seen)
        found += _copies(data)
    return found


def _constant(seen: Profile) -> list[str]:
    found = []
    if seen.zeros:
        found.append(
            f"{seen.zeros:,} samples hold nothing but zeros; real ones were expected: "
            "drop them, or check how they are read"
        )
    for name, (low, high) in seen.planes.items():
        for channel in np.flatnonzero(low == high):
            found.append(
                f"{name}: channel {channel} is {low[channel]:g} in all {seen.rows:,} samples; "
                "values that differ were expected: is a colour missing, or an alpha channel there?"
            )
    for (name, axis), slices in seen.slices.items():
        if stuck := slices.stuck():
            which = named(stuck, axis, len(seen.shapes[name]) + 1)
            found.append(
                f"{name}: {which} constant in all {slices.rows:,} samples; values that differ were "
                "expected: are columns missing, or filled in?"
            )
    return found


def _copies(data: DataSet) -> list[str]:
    copies = len(data) - len(set(data.digests()))
    if copies <= _COPIES * len(data):
        return []
    text = f"{copies:,} of {len(data):,} samples are copies of others, and count for nothing"
    return [f"{text}; distinct ones were expected: hand in others"]


def beside(a: DataSet, b: DataSet) -> list[str]:
    """What does not fit between `a` and the data `b` that stands for what the model will see."""
    return [*_layouts(a, b), *_ranges(a, b), *_features(a, b), *_classes(a, b)]


def _layouts(a: DataSet, b: DataSet) -> list[str]:
    found = []
    for name, shape in a.profile.shapes.items():
        other = b.profile.shapes.get(name, shape)
        if shape != other and len(shape) > 2 and sorted(shape) == sorted(other):
            found.append(
                f"{name}: samples are {list(shape)} here and {list(other)} in the {b.role} data: "
                f"their axes stand in another order; transpose one of them"
            )
    return found


def _ranges(a: DataSet, b: DataSet) -> list[str]:
    found = []
    here, there = a.profile.ranges, b.profile.ranges
    for name in sorted(set(here) & set(there)):
        (low, high), (other_low, other_high) = here[name], there[name]
        span, other = high - low, other_high - other_low
        wider = span > _WIDER * other or other > _WIDER * span
        centred = (low < -0.1 * span) != (other_low < -0.1 * other)
        if wider or (centred and min(span, other) > 0):
            found.append(
                f"{name} lies in {low:.4g}–{high:.4g} here and in {other_low:.4g}–{other_high:.4g} "
                f"in the {b.role} data: is one of them scaled or normalised differently? "
                "Prepare both alike"
            )
    return found


def _features(a: DataSet, b: DataSet) -> list[str]:
    """Features that are constant in `a`, and vary in `b` too often for chance."""
    found = []
    for (name, axis), here in a.profile.slices.items():
        there = b.profile.slices.get((name, axis))
        if there is None or b.ragged:
            continue
        batches = (feed[name] for _, feed in b.batches(_BATCH))
        if missing := here.missing(there, batches, axis):
            which = named(missing, axis, len(a.profile.shapes[name]) + 1)
            found.append(
                f"{name}: {which} constant in all {here.rows:,} samples here, and not in the "
                f"{b.role} data: prepare both alike, and draw the samples at random"
            )
    return found


def _classes(a: DataSet, b: DataSet) -> list[str]:
    """Classes of `b` of which a fair draw of the size of `a` would not have none."""
    here, there = _counts(a.labels), _counts(b.labels)
    if not here or not there or {*map(type, here)} != {*map(type, there)}:
        return []
    enough = EXPECTED * len(b) / len(a)
    missing = [label for label, count in there.items() if count >= enough and label not in here]
    if not missing:
        return []
    shown = ", ".join(map(str, sorted(missing)[:5]))
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    text = f"no sample of class {shown}{more}, which the {b.role} data holds"
    return [f"{text}; every class was expected: draw the samples at random"]


def _counts(labels: Any) -> Counter[Any]:
    """How often each label occurs, where labels are numbers or names of classes."""
    if labels is None or len(labels) == 0:
        return Counter()
    if isinstance(labels, np.ndarray):
        whole = labels.ndim == 1 and labels.dtype.kind in "iuU"
        return Counter(labels.tolist()) if whole else Counter()
    plain = all(isinstance(label, str | int | np.integer) for label in labels)
    return Counter(labels) if plain else Counter()
