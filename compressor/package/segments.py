"""Where the weights lie in model files: read from their structure, without any engine.

ONNX is walked as protobuf (wire format: field number and type, then the value), because the byte
offsets of raw data are wanted, which no parser tells. An OpenVINO IR names offsets itself.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from runtimes.coding import HALF, INT4, INT8, MAX_KERNEL, UINT4, UINT8, WORD
from runtimes.wire import fields, varint

# Tensors with less are not worth a segment's header.
LEAST_BYTES = 32
# Kernels foretell their weights by coefficients, which must be worth their bytes.
LEAST_KERNELS = 256
_ONNX = {1: WORD, 2: UINT8, 3: INT8, 6: WORD, 10: HALF, 12: WORD, 16: HALF, 21: UINT4, 22: INT4}
_IR = {
    "f32": WORD, "i32": WORD, "u32": WORD, "f16": HALF, "bf16": HALF,
    "i8": INT8, "u8": UINT8, "i4": INT4, "u4": UINT4,
}  # fmt: skip
# Fields of onnx.proto: graph, its nodes and initializers, an attribute's tensor and subgraph.
_GRAPH, _NODE, _INITIALIZER, _ATTRIBUTE, _TENSOR, _SUBGRAPH = 7, 1, 5, 5, 5, 6


class Stored(NamedTuple):
    """A tensor's bytes: file, offset and size, kind as in `runtimes.coding`, kernel, name."""

    file: str
    offset: int
    size: int
    kind: int
    kernel: int
    name: str


def find_weights(root: Path, files: Sequence[str]) -> list[Stored]:
    """Tensors of an artifact's files, by file in the order of `files` and offset; none overlap.

    What cannot be read as a model is no error: it holds no tensors that we know of.
    """
    found: list[Stored] = []
    for name in files:
        try:
            if name.endswith(".onnx"):
                found += _onnx(root / name, name)
            elif name.endswith(".xml"):
                found += _openvino(root / name, name[:-4] + ".bin")
        except (ValueError, IndexError, RecursionError, ET.ParseError, UnicodeDecodeError):
            continue
    place = {name: position for position, name in enumerate(files)}
    inside = [t for t in found if t.file in place and _ends(t) <= (root / t.file).stat().st_size]
    kept: list[Stored] = []
    for tensor in sorted(inside, key=lambda t: (place[t.file], t.offset)):
        if not kept or kept[-1].file != tensor.file or _ends(kept[-1]) <= tensor.offset:
            kept.append(tensor)
    return kept


def _ends(tensor: Stored) -> int:
    return tensor.offset + tensor.size


def _stored(
    file: str, offset: int, size: int, kind: int | None, shape: Sequence[int], name: str
) -> Iterator[Stored]:
    """The tensor, where it is worth a segment and its size is that of its shape."""
    if kind is None or size < LEAST_BYTES:
        return
    count = math.prod(shape)
    bits = {INT4: 4, UINT4: 4, INT8: 8, UINT8: 8, HALF: 16, WORD: 32}[kind]
    if size != (count * bits + 7) // 8:
        return
    kernel = math.prod(shape[2:]) if len(shape) > 2 else 1
    useful = bits <= 8 and 1 < kernel <= MAX_KERNEL and count // kernel >= LEAST_KERNELS
    if not useful or count % 2:  # an odd count of halves ends in a filler
        kernel = 1
    yield Stored(file, offset, size, kind, kernel, name)


def _openvino(xml: Path, weights: str) -> Iterator[Stored]:
    for layer in ET.parse(xml).getroot().iter("layer"):  # noqa: S314 - an artifact of ours
        data = layer.find("data")
        if layer.get("type") != "Const" or data is None:
            continue
        text = (data.get("shape") or "").split(",")
        shape = [int(size) for size in text if size.strip()]
        kind = _IR.get(data.get("element_type", ""))
        offset, size = int(data.get("offset", "0")), int(data.get("size", "0"))
        yield from _stored(weights, offset, size, kind, shape, layer.get("name", ""))


def _onnx(path: Path, name: str) -> Iterator[Stored]:
    data = memoryview(path.read_bytes())
    for field, start, end in fields(data, 0, len(data)):
        if field == _GRAPH:
            yield from _graph(data, start, end, name)


def _graph(data: memoryview, start: int, end: int, file: str) -> Iterator[Stored]:
    for field, a, b in fields(data, start, end):
        if field == _INITIALIZER:
            yield from _tensor(data, a, b, file)
        elif field == _NODE:
            for inner, c, d in fields(data, a, b):
                if inner == _ATTRIBUTE:
                    yield from _attribute(data, c, d, file)


def _attribute(data: memoryview, start: int, end: int, file: str) -> Iterator[Stored]:
    for field, a, b in fields(data, start, end):
        if field == _TENSOR:
            yield from _tensor(data, a, b, file)
        elif field == _SUBGRAPH:
            yield from _graph(data, a, b, file)


def _tensor(data: memoryview, start: int, end: int, file: str) -> Iterator[Stored]:
    """A TensorProto: dims 1, data_type 2, name 8, raw_data 9, external_data 13."""
    shape: list[int] = []
    kind, name, raw, external = None, "", (0, 0), {}
    for field, a, b in fields(data, start, end):
        if field == 1:
            shape += [a] if b < 0 else _packed(data, a, b)
        elif field == 2:
            kind = _ONNX.get(a)
        elif field == 8:
            name = str(data[a:b], "utf-8")
        elif field == 9:
            raw = (a, b)
        elif field == 13:
            key, value = (str(data[c:d], "utf-8") for _, c, d in fields(data, a, b))
            external[key] = value
    if "location" in external:
        offset, size = int(external.get("offset", 0)), int(external.get("length", 0))
        beside = (PurePosixPath(file).parent / external["location"]).as_posix()
        yield from _stored(beside, offset, size, kind, shape, name)
    else:
        yield from _stored(file, raw[0], raw[1] - raw[0], kind, shape, name)


def _packed(data: memoryview, at: int, end: int) -> list[int]:
    found = []
    while at < end:
        number, at = varint(data, at)
        found.append(number)
    return found
