"""`shape:` entries of a recipe, or `--shape`, as a range for each free dimension."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compressor.recipe import parse_range
from runtimes.errors import UsageError
from runtimes.types import TensorSpec


def resolve_shapes(
    raw: Mapping[str, Any], inputs: Sequence[TensorSpec], where: str
) -> dict[str, dict[str, tuple[int, int, int]]]:
    """`shape:` entries as input → free dimension → (min, opt, max).

    An entry is one range (the input has one free dimension), a list with one item per dimension,
    or a mapping from dimension name to range.
    """
    known = {spec.name: spec for spec in inputs}
    found: dict[str, dict[str, tuple[int, int, int]]] = {}
    for name, value in raw.items():
        place = f"{where}.shape.{name}"
        if name not in known:
            raise UsageError("no such input", where=place, expected="one of " + ", ".join(known))
        free = [d for d in known[name].shape if isinstance(d, str)]
        found[name] = _ranges(value, known[name], free, place)
    return found


def _ranges(
    value: Any, spec: TensorSpec, free: list[str], place: str
) -> dict[str, tuple[int, int, int]]:
    if isinstance(value, Mapping):
        if unknown := sorted(set(value) - set(free)):
            raise UsageError(
                f"no free dimension {unknown[0]!r}", where=place, expected=", ".join(free) or "none"
            )
        return {d: parse_range(v, f"{place}.{d}") for d, v in value.items()}
    if isinstance(value, list):
        if len(value) != len(spec.shape):
            raise UsageError(
                "wrong number of dimensions", where=place, expected=str(spec), got=str(value)
            )
        pairs = [(d, v) for d, v in zip(spec.shape, value, strict=True) if isinstance(d, str)]
        return {d: parse_range(v, place) for d, v in pairs}
    if len(free) != 1:
        raise UsageError(
            f"{spec.name} has {len(free)} free dimensions",
            where=place,
            expected=f"{{{', '.join(d + ': …' for d in free)}}}" if free else "no entry",
            got=repr(value),
        )
    return {free[0]: parse_range(value, place)}
