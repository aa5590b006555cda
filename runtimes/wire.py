"""Protobuf's wire format: the fields of a message by where they lie, without copying anything."""

from __future__ import annotations

from typing import Iterator, Tuple


def fields(data: memoryview, at: int, end: int) -> Iterator[Tuple[int, int, int]]:
    """(field, start, end) of each field of the message from `at` to `end`.

    A number is (field, number, -1); fixed 4 and 8 bytes are left out. `ValueError` or `IndexError`
    where it is no message.
    """
    while at < end:
        key, at = varint(data, at)
        field, wire = key >> 3, key & 7
        if wire == 0:
            number, at = varint(data, at)
            yield field, number, -1
        elif wire == 2:
            length, at = varint(data, at)
            if at + length > end:
                raise ValueError("field past the end of its message")
            yield field, at, at + length
            at += length
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")


def varint(data: memoryview, at: int) -> Tuple[int, int]:
    """The number at `at`, seven bits a byte, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("number without an end")
