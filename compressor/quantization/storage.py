"""Which weights are stored in how many bits: 4 bits almost everywhere, 8 where they hurt most.

Label-free: the damage of a tensor is the noise share of its 4-bit rounding (1/SQNR), which adds up
over layers to first order; the cheapest tensors in bytes go first.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from exporters.base import Context, Env, where_installed
from runtimes.errors import Refusal, Unsupported, UsageError
from runtimes.types import Artifact

WIDTHS = (4, 8, 16, 32)


@dataclass(frozen=True)
class Rounded:
    """A weight as it will be stored: integers and scales, or halves (`bits` 16, no scale).

    Attributes:
        integers: with the weight's shape.
        scale: per channel, [channels, blocks] where `block` columns share one.
        bits: stored for each value.
        noise: power of the error over that of the values (of outputs where their inputs are known).
        block: columns that share a scale; 0: all.
    """

    integers: Any
    scale: Any
    bits: int
    noise: float = 0.0
    block: int = 0


@dataclass(frozen=True)
class Tensor:
    """A weight to store: its name, number of values, and noise share (1/SQNR) at 4 bits."""

    name: str
    elements: int
    noise: float


def keep_in_8_bits(tensors: Sequence[Tensor], share: float) -> set[str]:
    """Names of tensors to keep in 8 bits, so that at least `share` of all values have 4.

    Greedy by noise removed per value: the first convolution, depthwise ones and the output layer
    are small and come out first without being named.
    """
    budget = (1.0 - share) * sum(t.elements for t in tensors)
    chosen: set[str] = set()
    for tensor in sorted(tensors, key=lambda t: (-t.noise / t.elements, t.name)):
        if tensor.elements <= budget:
            budget -= tensor.elements
            chosen.add(tensor.name)
    return chosen


def assigned(assign: Mapping[str, int], names: Sequence[str]) -> int | None:
    """What `assign` gives a weight known by `names`, the first that occurs."""
    return next((assign[name] for name in names if name in assign), None)


def asked_block(options: Any, names: Sequence[str]) -> int:
    """Columns that share a scale in a weight known by `names`; 0: all of a channel."""
    wanted = assigned(options.blocks, names)
    block: int = options.block if wanted is None else wanted
    return block


def asked_bits(options: Any, names: Sequence[str], *, integer: bool) -> int:
    """Bits asked for a weight known by `names`; what is INT8 already changes for 4 only."""
    wanted = assigned(options.assign, names)
    bits: int = options.bits if wanted is None else wanted
    return 32 if integer and bits != 4 else bits


def halves(values: Any) -> Rounded:
    """Values in float16; what lies beyond its range is cut."""
    top = float(np.finfo(np.float16).max)
    return Rounded(np.clip(values, -top, top).astype(np.float16), None, 16)


def check_widths(assign: Mapping[str, int], where: str) -> None:
    """`UsageError` where a width cannot be stored."""
    for name, bits in assign.items():
        if bits not in WIDTHS:
            raise UsageError(
                f"{bits} bits cannot be stored",
                where=f"{where}.assign {name!r}",
                expected=f"one of {', '.join(map(str, WIDTHS))}",
                got=str(bits),
                fix="32 leaves a weight as it is",
            )


def unknown_names(options: Any, known: Iterable[str]) -> list[str]:
    """A sentence for every name in `assign` (32 bits ask for nothing) or `blocks` that no weight
    goes by.
    """
    names = sorted(set(known))
    asked = [("assign", name) for name, bits in options.assign.items() if bits != 32]
    said = []
    for option, name in sorted([*asked, *(("blocks", name) for name in options.blocks)]):
        if name in names:
            continue
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        said.append(f"{option}: no weight here is called {name}{hint}")
    return said


def tools() -> dict[str, str]:
    """Versions of what reads and writes the models; OpenVINO's where it is installed."""
    return where_installed(("onnx", "onnxruntime", "openvino"))


def refusals(source: Artifact, options: Any, context: Context) -> list[Refusal]:
    """Why an artifact's weights cannot be stored in fewer bits."""
    if source.format == "openvino":
        from compressor.quantization import openvino_storage

        return openvino_storage.refusals(source, options, context)
    from compressor.quantization import onnx_storage

    return onnx_storage.refusals(source, options, context)


def run(source: Artifact, options: Any, env: Env, *, where: str, reconstructed: bool) -> Artifact:
    """Store an artifact's weights, rounded to nearest or by reconstruction.

    Raises `Unsupported` where there are none, or nothing shrank.
    """
    if found := refusals(source, options, env.context):
        raise Unsupported(f"weights cannot be stored in {options.bits} bits", found, where=where)
    if source.format == "openvino":
        from compressor.quantization import openvino_storage, reconstruction_openvino

        if not reconstructed:
            return openvino_storage.run(source, options, env)
        openvino_rounding = partial(reconstruction_openvino.rounded, source, options, env)
        return openvino_storage.run(source, options, env, openvino_rounding)
    from compressor.quantization import onnx_storage, reconstruction_onnx

    if not reconstructed:
        return onnx_storage.run(source, options, env)
    rounding = partial(reconstruction_onnx.rounded, source, options, env)
    return onnx_storage.run(source, options, env, rounding)
