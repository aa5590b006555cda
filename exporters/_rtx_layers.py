"""The layers of a TensorRT-RTX engine, as its builder lists them at detailed verbosity.

Without a GPU nothing else tells what an engine computes in: its inspector wants the plan
deserialized, which wants a driver.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

_LINE = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>.*?), Inputs: (?P<inputs>\[.*?\])"
    r"(?:, Constants: (?P<constants>\[.*?\]))?, Outputs: (?P<outputs>\[.*?\]), TacticName: .*?"
    r"Metadata: (?P<metadata>.*)",
    re.DOTALL,
)
_TENSOR = re.compile(r"Name: .*?Dimensions: \[(?P<dims>[^\]]*)\].*?Datatype: (?P<type>\w+)")
_ONNX = "[ONNX Layer: "
_BETWEEN = "\x1f"  # the unit separator stands between the names of fused nodes
_NAMES = {
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "E4M3 FP8": "fp8",
}


@dataclass(frozen=True)
class EngineTensor:
    """Data type in our names, and how many values; free dimensions count as one."""

    dtype: str
    values: int


@dataclass(frozen=True)
class EngineLayer:
    """One line of the table.

    Attributes:
        name: the engine's own.
        kind: `correlation` (convolution), `gemm`, `deconv`, `kgen` (a generated kernel), …
        inputs, constants, outputs: what it reads and writes, in the table's order.
        nodes: names of the ONNX nodes that it computes, or computes a part of.
    """

    name: str
    kind: str
    inputs: tuple[EngineTensor, ...]
    constants: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]
    nodes: tuple[str, ...]


def parse_table(lines: Iterable[str]) -> list[EngineLayer]:
    """The layers of a table; lines that describe none are passed over."""
    found = (_LINE.fullmatch(line) for line in lines)
    return [_layer(match) for match in found if match is not None]


def _layer(match: re.Match[str]) -> EngineLayer:
    names = (part for part in match["metadata"].split(_BETWEEN) if part.startswith(_ONNX))
    return EngineLayer(
        match["name"],
        match["kind"],
        _tensors(match["inputs"]),
        _tensors(match["constants"] or ""),
        _tensors(match["outputs"]),
        tuple(part[len(_ONNX) : -1] for part in names),
    )


def _tensors(text: str) -> tuple[EngineTensor, ...]:
    return tuple(
        EngineTensor(
            _NAMES.get(match["type"], match["type"].lower()),
            math.prod(max(1, int(size)) for size in match["dims"].split(",") if size),
        )
        for match in _TENSOR.finditer(text)
    )
