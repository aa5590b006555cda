"""Patterns of zeros in weights, and which weights go under each.

A weight is [groups, outputs, columns] here, its columns the input channels × kernel positions of a
layer (`onnx_linear.matrix`). A pattern is made of units: single weights, or blocks of some outputs
× some input channels at one kernel position. Two of every four input channels at one position is
what sparse tensor cores skip (Mishra et al., "Accelerating Sparse Deep Neural Networks", arXiv
2104.08378, 2021).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtimes.errors import UsageError

Mask = NDArray[np.bool_]
_QUAD = 4  # input channels, of which two stay
_MOST = 64  # outputs or channels of a block
_EXPECTED = '"2:4", unstructured, or a block of outputs x input channels such as 1x4, 4x1 or 4x4'


@dataclass(frozen=True)
class Pattern:
    """`quads`: 2 of 4 input channels stay; else whole blocks of `outputs` × `inputs` go."""

    quads: bool = False
    outputs: int = 1
    inputs: int = 1

    def __str__(self) -> str:
        if self.quads:
            return "2:4"
        single = self.outputs == self.inputs == 1
        return "unstructured" if single else f"{self.outputs}x{self.inputs} blocks"

    def unfit(self, outputs: int, inputs: int) -> str:
        """Why a weight of so many outputs and input channels (of a group) cannot have it; ""."""
        if self.quads and inputs % _QUAD:
            return f"{inputs} input channels are no multiple of 4"
        if outputs % self.outputs or inputs % self.inputs:
            return f"{outputs} x {inputs} channels do not divide into {self}"
        return ""

    def units(self, scores: Any, kernel: int) -> Any:
        """The sum of the scores [groups, outputs, columns] of each unit, of any shape."""
        channels = _by_channel(scores, kernel)
        groups, outputs, places, _ = channels.shape
        parts = channels.reshape(
            groups, outputs // self.outputs, self.outputs, places, -1, self.inputs
        )
        return parts.sum(axis=(2, 5))

    def above(self, scores: Any, kernel: int, limit: float) -> Mask:
        """Which weights stay: those in units that score more than `limit`."""
        stays = self.units(scores, kernel) > limit
        wide = np.repeat(np.repeat(stays, self.outputs, axis=1), self.inputs, axis=3)
        return _as_columns(wide)

    def best(self, scores: Any, kernel: int, keep: float) -> Mask:
        """Which weights stay where the share `keep` of all units does, of quads 2 to 4 in each."""
        if not self.quads:
            return self.above(scores, kernel, threshold(self.units(scores, kernel), keep))
        channels = _by_channel(scores, kernel)
        quads = channels.reshape(*channels.shape[:3], -1, _QUAD)
        ranks = np.argsort(np.argsort(-quads, axis=-1, kind="stable"), axis=-1, kind="stable")
        return _as_columns((ranks < round(_QUAD * keep)).reshape(channels.shape))


def threshold(values: Any, keep: float) -> float:
    """What the share `keep` of `values` lies above; -inf where all stay."""
    flat = np.asarray(values).ravel()
    gone = min(len(flat) - 1, round(len(flat) * (1 - keep)))
    return -np.inf if gone < 1 else float(np.partition(flat, gone - 1)[gone - 1])


def _by_channel(values: Any, kernel: int) -> Any:
    """[groups, outputs, kernel positions, input channels] of [groups, outputs, columns]."""
    return values.reshape(*values.shape[:2], -1, kernel).swapaxes(2, 3)


def _as_columns(stays: Any) -> Mask:
    turned = stays.swapaxes(2, 3)
    return np.ascontiguousarray(turned.reshape(*turned.shape[:2], -1), bool)


def parse_pattern(given: Any) -> Pattern:
    """The pattern a recipe names; `UsageError` where it is none."""
    where = f"prune_pattern pattern {given!r}"
    if given == 124:  # YAML 1.1 reads 2:4 as two minutes and four seconds
        raise UsageError(
            "2:4 without quotes is the number 124 in YAML", where=where, expected=_EXPECTED,
            fix='write pattern: "2:4"',
        )  # fmt: skip
    if given == "2:4":
        return Pattern(quads=True)
    if given == "unstructured":
        return Pattern()
    block = re.fullmatch(r"(\d+)x(\d+)", given) if isinstance(given, str) else None
    sizes = [int(size) for size in block.groups()] if block else [0]
    if not all(1 <= size <= _MOST for size in sizes):
        fix = "only two of four has kernels" if re.fullmatch(r"\d+:\d+", str(given)) else ""
        raise UsageError("no such pattern", where=where, expected=_EXPECTED, fix=fix)
    return Pattern(outputs=sizes[0], inputs=sizes[1])


def parse_sparsity(given: Any, pattern: Pattern) -> float:
    """The share of weights that go, 0–1; `UsageError` where it is none, or does not fit."""
    where = f"prune_pattern sparsity {given!r}"
    text = str(given).strip()
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 < share < 1:
        fix = f"write {given}% if per cent is meant" if share >= 1 else ""
        raise UsageError(
            "not a share of the weights", where=where, expected="above 0 and below 1, or 50%",
            fix=fix,
        )  # fmt: skip
    if pattern.quads and share != 1 / 2:
        raise UsageError(
            "2:4 always takes half of the weights", where=where, expected="50%",
            fix="leave sparsity out, or use pattern: unstructured",
        )  # fmt: skip
    return share
