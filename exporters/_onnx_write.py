"""A model's bytes, written tensor by tensor: protobuf holds a large model twice while it does so.

The file is the one that `SerializeToString` gives: fields in the order of their numbers, the graph
as one message whose length comes first (https://protobuf.dev/programming-guides/encoding/).
"""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any


def write_model(model: Any, path: Path) -> None:
    """Write a `ModelProto` to `path` with a fixed byte order."""
    before, after = _around(model, "graph")
    inside = _around(model.graph, "initializer")
    nodes, rest = (part.SerializeToString(deterministic=True) for part in inside)
    weights = model.graph.initializer
    tag = _tag(model.graph, "initializer")
    length = len(nodes) + len(rest)
    for tensor in weights:
        size = tensor.ByteSize()
        length += len(tag) + len(_varint(size)) + size
    with path.open("wb") as file:
        file.write(before.SerializeToString(deterministic=True))
        file.write(_tag(model, "graph") + _varint(length) + nodes)
        for tensor in weights:
            _write(file, tag, tensor.SerializeToString(deterministic=True))
        file.write(rest + after.SerializeToString(deterministic=True))


def _around(message: Any, name: str) -> tuple[Any, Any]:
    """Copies of `message` with the fields before the one called `name`, and with those after it."""
    number = message.DESCRIPTOR.fields_by_name[name].number
    before, after = type(message)(), type(message)()
    for field, value in message.ListFields():
        if field.number == number:
            continue
        part = before if field.number < number else after
        if hasattr(value, "MergeFrom"):
            getattr(part, field.name).MergeFrom(value)
        else:
            setattr(part, field.name, value)
    return before, after


def _tag(message: Any, name: str) -> bytes:
    """What stands before a field whose length is written."""
    return _varint(message.DESCRIPTOR.fields_by_name[name].number << 3 | 2)


def _varint(value: int) -> bytes:
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)


def _write(file: IO[bytes], tag: bytes, data: bytes) -> None:
    file.write(tag + _varint(len(data)))
    file.write(data)
