"""Zeros in weights and size gates: the model file stays as large, the coded package shrinks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from compressor.gates import Gate
from exporters.base import StepSpec

MAKES_ZEROS = "prune_pattern"
_SIZES = frozenset({"size", "size_reduction"})


def makes_zeros(steps: Iterable[StepSpec]) -> bool:
    """Whether one of the steps shrinks nothing but the coded package."""
    return any(step.name == MAKES_ZEROS for step in steps)


def of_package(gates: Sequence[Gate]) -> tuple[Gate, ...]:
    """`gates`, default ones, with those on size reading the package."""
    return tuple(replace(g, of="package") if g.metric in _SIZES else g for g in gates)


def size_warnings(target: str, gates: Sequence[Gate]) -> list[str]:
    """A sentence for each gate of `target` that reads the model file, though weights get zeros."""
    return [
        f"targets.{target}: {gate} reads the model file, which {MAKES_ZEROS} makes no smaller; "
        f'{{gate: "{gate.text}", of: package}} reads the coded package, which it does'
        for gate in gates
        if gate.metric in _SIZES and gate.of == "model"
    ]
