"""Weights as nibbles, each in a context that both sides know; encoding and decoding are one code.

An integer's context is what it was in the base, or what the weights before it in its kernel
foretell; a low half's is its high half. Floats go nibble by nibble from the top. Where there is a
base, floats and integers of 8 bits are coded as differences from it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, Dict, Iterator, NamedTuple, Optional, Tuple

import numpy as np

from runtimes.nibbles import Table

if TYPE_CHECKING:
    from runtimes.nibbles import Array

# Kinds of segments. Integers of 4 bits lie two a byte, the first in the low half.
COPY, INT4, UINT4, INT8, UINT8, HALF, WORD = range(7)
MAX_KERNEL = 9
# Bytes that a segment of each kind is a multiple of.
WIDTHS = {COPY: 1, INT4: 1, UINT4: 1, INT8: 1, UINT8: 1, HALF: 2, WORD: 4}
_SLAB = 1 << 20  # bytes at once: bounds memory


class Segment(NamedTuple):
    """A run of weights.

    Attributes:
        offset: of its first byte, in the files one after another.
        size: bytes.
        kind: `INT4` to `WORD`, or `COPY`: the base's bytes unchanged.
        kernel: weights that lie together in one kernel (3x3: 9), or 1.
        old: where the same weights lie in the base, or -1.
    """

    offset: int
    size: int
    kind: int
    kernel: int = 1
    old: int = -1

    @property
    def taps(self) -> int:
        """How many coefficients foretell its weights."""
        return 0 if self.old >= 0 else self.kernel * (self.kernel - 1) // 2


# Takes a table, contexts and, where it encodes, symbols; returns the symbols.
Code = Callable[[Table, "Array", Optional["Array"]], "Array"]


class Weights:
    """Codes segments one after another; what it learns of one kind serves the next of it."""

    def __init__(self, code: Code, new: bytearray, base: bytes, *, reads: bool) -> None:
        self.nibbles, self.new, self.base, self.reads = code, new, base, reads
        self.tables: Dict[Tuple[int, bool, str], Table] = {}

    def code(self, segment: Segment, taps: Array) -> None:
        """Code a segment of `new` from it, or into it."""
        if segment.kind == COPY:
            self.new[segment.offset : segment.offset + segment.size] = self.base[
                segment.old : segment.old + segment.size
            ]
            return
        for (kind, against, _), table in self.tables.items():
            if (kind, against) == (segment.kind, segment.old >= 0):
                table.fade()
        for start, size in _slabs(segment):
            part = slice(segment.offset + start, segment.offset + start + size)
            given = None if self.reads else np.frombuffer(bytes(self.new[part]), np.uint8)
            old = None
            if segment.old >= 0:
                begin = segment.old + start
                old = np.frombuffer(self.base[begin : begin + size], np.uint8)
            if segment.kind in (HALF, WORD):
                made = self._words(segment, size, given, old)
            else:
                made = self._integers(segment, size, taps, given, old)
            if self.reads:
                self.new[part] = made.tobytes()

    def _table(self, segment: Segment, role: str, contexts: int) -> Table:
        key = (segment.kind, segment.old >= 0, role)
        return self.tables.setdefault(key, Table(contexts))

    def _integers(
        self, segment: Segment, size: int, taps: Array, given: Optional[Array], old: Optional[Array]
    ) -> Array:
        """Bytes of integers; a column is a place in the kernel, foretold from those before it."""
        values = None if given is None else to_values(given, segment)
        before = None if old is None else to_values(old, segment)
        count = 2 * size if segment.kind in (INT4, UINT4) else size
        made = np.zeros((count // segment.kernel, segment.kernel), np.int64)
        for k in range(segment.kernel):
            column = None if values is None else values[:, k]
            if before is not None:
                made[:, k] = self._against(segment, before[:, k], column)
            else:
                made[:, k] = self._foretold(segment, made[:, :k] @ taps[k, :k], column)
        return from_values(made, segment)

    def _foretold(self, segment: Segment, foretold: Array, column: Optional[Array]) -> Array:
        """A column of integers, given what is foretold of each, in sixteenths."""
        narrow = segment.kind in (INT4, UINT4)
        shift = 4 if narrow else 8
        context = np.clip((foretold * 2 + (1 << shift - 1)) >> shift, -6, 6) + 6
        high = self._table(segment, "high", 13)
        if narrow:
            return self.nibbles(high, context, None if column is None else column + 8) - 8
        return self._byte(segment, high, context, None if column is None else column + 128) - 128

    def _against(self, segment: Segment, old: Array, column: Optional[Array]) -> Array:
        """A column of integers, given what each was in the base."""
        if segment.kind in (INT4, UINT4):
            table = self._table(segment, "high", 16)
            return self.nibbles(table, old + 8, None if column is None else column + 8) - 8
        # 136: differences of -8 to 7 share one high half.
        moved = None if column is None else (column - old + 136) & 255
        moved = self._byte(segment, self._table(segment, "high", 9), np.abs(old) >> 4, moved)
        return ((moved - 136 + old + 128) & 255) - 128

    def _byte(
        self, segment: Segment, table: Table, context: Array, given: Optional[Array]
    ) -> Array:
        """Numbers in 0–255: high half in `context`, low half in that of the high one."""
        high = self.nibbles(table, context, None if given is None else given >> 4)
        low = self._table(segment, "low", 16)
        return (high << 4) + self.nibbles(low, high, None if given is None else given & 15)

    def _words(
        self, segment: Segment, size: int, given: Optional[Array], old: Optional[Array]
    ) -> Array:
        """Bytes of floats, or of integers as wide: nibbles from the top, after the difference."""
        width = 4 if segment.kind == WORD else 2
        bits = 8 * width
        word = np.dtype(f"<u{width}")
        before = None if old is None else old.view(word).astype(np.int64)
        values = None if given is None else given.view(word).astype(np.int64)
        if values is not None and before is not None:
            values = _zigzag(values - before, bits)
        made = np.zeros(size // width, np.int64)
        context = np.zeros(len(made), np.int64)
        for k in range(2 * width):
            shift = bits - 4 * (k + 1)
            nibble = None if values is None else (values >> shift) & 15
            nibble = self.nibbles(self._table(segment, str(k), 17), context, nibble)
            # Below sign and exponent only leading zeros tell about the next nibble.
            context = nibble if k < 2 else np.where(made > 0, 16, nibble)
            made = (made << 4) + nibble
        if before is not None:
            made = (before + _unzigzag(made)) & ((1 << bits) - 1)
        return made.astype(word).view(np.uint8)


def _zigzag(moved: Array, bits: int) -> Array:
    """Differences modulo 2**bits as numbers that are small where they are near 0."""
    half = 1 << (bits - 1)
    signed = ((moved + half) & ((1 << bits) - 1)) - half
    return np.where(signed < 0, -2 * signed - 1, 2 * signed)


def _unzigzag(coded: Array) -> Array:
    return np.where(coded & 1, -(coded + 1) // 2, coded // 2)


def _slabs(segment: Segment) -> Iterator[Tuple[int, int]]:
    """(start, bytes) of the parts that are coded at once; each holds whole kernels."""
    step = _SLAB // segment.kernel * segment.kernel
    for start in range(0, segment.size, step):
        yield start, min(step, segment.size - start)


def to_values(data: Array, segment: Segment) -> Array:
    """Bytes of integers → int64 [kernels, kernel], around 0."""
    if segment.kind in (INT4, UINT4):
        halves = np.empty(2 * len(data), np.int64)
        halves[0::2], halves[1::2] = data & 15, data >> 4
        values = halves - 8 if segment.kind == UINT4 else (halves ^ 8) - 8
    elif segment.kind == INT8:
        values = data.view(np.int8).astype(np.int64)
    else:
        values = data.astype(np.int64) - 128
    return values.reshape(-1, segment.kernel)


def from_values(values: Array, segment: Segment) -> Array:
    """The inverse of `to_values`."""
    flat = values.reshape(-1)
    if segment.kind in (INT4, UINT4):
        halves = flat + 8 if segment.kind == UINT4 else flat & 15
        return (halves[0::2] | halves[1::2] << 4).astype(np.uint8)
    return ((flat + 128 if segment.kind == UINT8 else flat) & 255).astype(np.uint8)
