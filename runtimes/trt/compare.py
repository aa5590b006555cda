"""An engine's outputs beside those of ONNX Runtime on the same file, which the bundle carries."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Sequence, Tuple

import numpy as np

from .errors import BAD, TrtError

Arrays = Dict[str, "np.ndarray[Any, Any]"]
SAME_DB = 200.0  # past the precision of float64; also what equal arrays get


def read_reference(path: Path) -> Tuple[Arrays, Arrays]:
    """(inputs, outputs) of `reference.npz`, by name."""
    try:
        with np.load(str(path), allow_pickle=False) as held:
            arrays = {name: held[name] for name in held.files}
    except (OSError, ValueError, KeyError) as error:
        raise TrtError(f"unreadable: {error}", BAD, where=str(path)) from error
    parts = {"in": {}, "out": {}}  # type: Dict[str, Arrays]
    for name, array in arrays.items():
        kind, _, tensor = name.partition("/")
        parts.get(kind, {})[tensor] = array
    return parts["in"], parts["out"]


def batches(feeds: Arrays, specs: Sequence[Mapping[str, Any]]) -> List[Tuple[int, int]]:
    """(first, last + 1) rows of each call that feeds every sample within the inputs' bounds.

    All calls have the same size, so that one profile serves them: the last one may repeat some.
    """
    free = [spec for spec in specs if spec["shape"]]
    held = {len(feeds[spec["name"]]) for spec in free}
    size = min((_most(spec, len(feeds[spec["name"]])) for spec in free), default=1)
    total = max(held, default=1)
    if len(held) != 1 or total <= size:
        return [(0, total)]  # one call, as it is
    starts = [*range(0, total - size, size), total - size]
    return [(start, start + size) for start in starts]


def _most(spec: Mapping[str, Any], have: int) -> int:
    """Rows that one call takes: the profile's most, or a fixed first dimension."""
    if spec.get("max"):
        return int(spec["max"][0])
    return int(spec["shape"][0]) if isinstance(spec["shape"][0], int) else have


def rows(feeds: Arrays) -> int:
    """The batch size of some feeds: rows of their first array that has any."""
    return next((len(array) for array in feeds.values() if array.ndim), 1)


def run_all(
    run: Callable[[Arrays], Arrays], feeds: Arrays, calls: Sequence[Tuple[int, int]]
) -> Arrays:
    """Outputs of `run` on all rows of `feeds`, in their order."""
    if len(calls) == 1:
        return run(feeds)
    total, made = calls[-1][1], {}  # type: Tuple[int, Arrays]
    for first, end in calls:
        for name, got in run({key: value[first:end] for key, value in feeds.items()}).items():
            whole = made.setdefault(name, np.zeros((total, *got.shape[1:]), got.dtype))
            whole[first:end] = got
    return made


def compare(got: Arrays, expected: Arrays) -> Dict[str, Dict[str, Any]]:
    """Per output: SQNR in dB, largest absolute difference, share of equal values."""
    missing = sorted(set(expected) - set(got))
    if missing:
        raise TrtError(
            "the engine lacks outputs of the model",
            BAD,
            expected=", ".join(sorted(expected)),
            got=", ".join(sorted(got)),
        )
    return {name: _difference(got[name], expected[name]) for name in sorted(expected)}


def _difference(got: np.ndarray[Any, Any], want: np.ndarray[Any, Any]) -> Dict[str, Any]:
    if got.shape != want.shape:
        raise TrtError(
            "an output has another shape", BAD, expected=str(want.shape), got=str(got.shape)
        )
    ours, theirs = got.astype(np.float64), want.astype(np.float64)
    wrong = int(np.count_nonzero(np.isfinite(ours) != np.isfinite(theirs)))
    both = np.isfinite(ours) & np.isfinite(theirs)
    noise = np.where(both, ours - theirs, 0.0)
    return {
        "sqnr_db": -SAME_DB if wrong else sqnr_db(theirs[both], noise[both]),
        "max_abs": float(np.abs(noise).max()) if noise.size else 0.0,
        "equal": float(np.mean(got == want)) if got.size else 1.0,
        "not_finite": wrong,
        "float": bool(want.dtype.kind == "f"),
    }


def sqnr_db(signal: np.ndarray[Any, Any], noise: np.ndarray[Any, Any]) -> float:
    """10·log10(signal power / noise power), kept within ±200."""
    have, lost = float(np.square(signal).sum()), float(np.square(noise).sum())
    if lost == 0.0:
        return SAME_DB
    return float(np.clip(10.0 * np.log10(have / lost), -SAME_DB, SAME_DB)) if have else -SAME_DB


def mismatches(numeric: Mapping[str, Mapping[str, Any]], least_db: float) -> List[str]:
    """Sentences on outputs below the tolerance; class numbers count only where nothing is float."""
    judged = {k: v for k, v in numeric.items() if v["float"]} or dict(numeric)
    return [
        f"{name}: SQNR {row['sqnr_db']:.1f} dB, at least {least_db:g} expected"
        + (f", {row['not_finite']} values are not finite" if row["not_finite"] else "")
        for name, row in judged.items()
        if row["sqnr_db"] < least_db
    ]
