"""Optimisation profiles: the sizes an engine is built for, from named dimensions and `shape`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from exporters.base import batch_names
from runtimes.types import TensorSpec

BATCH = (1, 1, 8)  # smallest, typical, largest, where nobody says
_EXAMPLE = "1..64@16"
Shapes = Mapping[str, Mapping[str, tuple[int, int, int]]]


def ranges(inputs: Sequence[TensorSpec], shapes: Shapes) -> dict[str, tuple[int, int, int]]:
    """Free dimension → (smallest, typical, largest); those without a range are not in it."""
    found = dict.fromkeys(batch_names(inputs), BATCH)
    for dims in shapes.values():
        found.update({name: (low, best, high) for name, (low, best, high) in dims.items()})
    return found


def without_range(inputs: Sequence[TensorSpec], shapes: Shapes) -> list[tuple[TensorSpec, str]]:
    """(input, free dimension) for which somebody has to say a range; each dimension once."""
    known, found = ranges(inputs, shapes), dict[str, TensorSpec]()
    for spec in inputs:
        for dim in spec.shape:
            if isinstance(dim, str) and dim not in known:
                found.setdefault(dim, spec)
    return [(spec, dim) for dim, spec in found.items()]


def shape_flag(spec: TensorSpec, shapes: Shapes) -> str:
    """The `--shape` to type for `spec`, with examples where nothing is known."""
    known = ranges([spec], shapes)
    parts = [_range(known.get(dim)) if isinstance(dim, str) else str(dim) for dim in spec.shape]
    free = [i for i, dim in enumerate(spec.shape) if isinstance(dim, str)]
    return f"--shape {spec.name}={parts[free[0]] if len(free) == 1 else ','.join(parts)}"


def _range(known: tuple[int, int, int] | None) -> str:
    return _EXAMPLE if known is None else f"{known[0]}..{known[2]}@{known[1]}"


def profile(spec: TensorSpec, shapes: Shapes, inputs: Sequence[TensorSpec]) -> dict[str, Any]:
    """The smallest, typical and largest shape of `spec`, as `trt.json` holds them."""
    known = ranges(inputs, shapes)
    sides = {
        side: [known[d][i] if isinstance(d, str) else d for d in spec.shape]
        for i, side in enumerate(("min", "opt", "max"))
    }
    return {**spec.to_json(), **sides}
