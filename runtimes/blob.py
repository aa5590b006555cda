"""Several files out of one blob: its header, plain bytes and coded weights.

    blob      magic, sizes, an LZMA stream (header and plain bytes), frames of coded nibbles
    header    segments: where weights lie, of what kind, and where in the base their old ones lie;
              copies from the base; coefficients that foretell weights of a kernel

What comes from elsewhere is checked before it is used: every number against its bounds, every
length against what is there. `BadArtifact` says what was wrong; nothing is executed.
"""

from __future__ import annotations

import lzma
import struct
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, NamedTuple, Sequence, Tuple

import numpy as np

from runtimes.coding import (
    COPY,
    INT4,
    MAX_KERNEL,
    UINT4,
    WIDTHS,
    Segment,
    Weights,
)
from runtimes.errors import BadArtifact
from runtimes.nibbles import Decoder

if TYPE_CHECKING:
    from runtimes.nibbles import Array

MAGIC = b"ECC1"
HEAD = struct.Struct("<4sQQ")
FILTERS: List[Dict[str, Any]] = [{"id": lzma.FILTER_LZMA2, "preset": 6, "pb": 0}]
_SPARE = 1 << 22  # bytes that a header may take beside the files' own
MAX_ROWS = 1 << 16  # segments, or copies


class Copy(NamedTuple):
    """`literals` bytes as they are, then `size` bytes of the base from `old`."""

    literals: int
    size: int
    old: int


def decode(blob: bytes, size: int, base: bytes = b"") -> bytearray:
    """The files that were encoded, `size` bytes in all.

    Raises:
        BadArtifact: the blob is damaged, or was not made from files of this size and this base.
    """
    plain, symbols = _open(memoryview(blob), size)
    reader = _Reader(plain)
    segments = _read_segments(reader, size, len(base))
    copies = _read_copies(reader, len(base))
    taps = [square(reader.taps(segment), segment.kernel) for segment in segments]
    rest = _read_rest(reader, copies, base, size - sum(s.size for s in segments))
    data, at = bytearray(size), 0
    for start, end in gaps(segments, size):
        data[start:end] = rest[at : at + end - start]
        at += end - start
    coder = Decoder(symbols)
    weights = Weights(coder.code, data, base, reads=True)
    for segment, each in zip(segments, taps):
        weights.code(segment, each)
    coder.finish()
    return data


def square(taps: Array, kernel: int) -> Array:
    """Row k: what each earlier weight adds to what is foretold of weight k."""
    made = np.zeros((kernel, kernel), np.int64)
    if len(taps):
        made[np.tril_indices(kernel, -1)] = taps
    return made


def gaps(segments: Sequence[Segment], size: int) -> Iterator[Tuple[int, int]]:
    """Where the bytes outside segments lie."""
    at = 0
    for segment in segments:
        yield at, segment.offset
        at = segment.offset + segment.size
    yield at, size


# ── the header ───────────────────────────────────────────────────────────────────────────────────


class _Reader:
    """Reads the plain bytes from their start."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def number(self) -> int:
        value = shift = 0
        while shift < 63 and self.at < len(self.data):
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
        raise BadArtifact("damaged coding: a number has no end")

    def columns(self, count: int) -> List[Tuple[int, ...]]:
        """As many rows as the number that comes first, each of `count` numbers."""
        rows = self.number()
        if rows > MAX_ROWS or rows * count > len(self.data) - self.at:
            raise BadArtifact("damaged coding: more rows than there can be")
        columns = [[self.number() for _ in range(rows)] for _ in range(count)]
        return list(zip(*columns))

    def taps(self, segment: Segment) -> Array:
        return np.frombuffer(self.bytes(segment.taps), np.int8)

    def bytes(self, count: int) -> bytes:
        if not 0 <= count <= len(self.data) - self.at:
            raise BadArtifact("damaged coding: plain bytes are missing")
        self.at += count
        return self.data[self.at - count : self.at]


def _open(blob: memoryview, size: int) -> Tuple[bytes, memoryview]:
    """(header and plain bytes, coded symbols) of a blob."""
    if len(blob) < HEAD.size:
        raise BadArtifact("damaged coding: it ends too early")
    magic, length, packed = HEAD.unpack(blob[: HEAD.size])
    if magic != MAGIC:
        raise BadArtifact("not a coding known here", expected=MAGIC.decode(), got=repr(magic))
    middle = HEAD.size + packed
    if length > size + _SPARE or middle > len(blob):
        raise BadArtifact("damaged coding: sizes that cannot be")
    try:
        opened = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=FILTERS)
        plain = opened.decompress(blob[HEAD.size : middle], max_length=length + 1)
    except lzma.LZMAError as error:
        raise BadArtifact(f"damaged coding: {error}") from error
    if len(plain) != length or not opened.eof or opened.unused_data:
        raise BadArtifact("damaged coding: plain bytes of another length")
    return plain, blob[middle:]


def _read_segments(reader: _Reader, size: int, base: int) -> List[Segment]:
    segments = []
    end = old_end = 0
    for gap, length, kind, kernel, coded in reader.columns(5):
        moved = -(coded // 2) if coded % 2 == 0 else (coded - 1) // 2
        old = old_end + gap + moved if coded else -1
        segment = Segment(end + gap, length, kind, kernel, old)
        _check(segment, size, base)
        segments.append(segment)
        end = segment.offset + length
        old_end = old + length if coded else old_end + gap + length
    return segments


def _check(segment: Segment, size: int, base: int) -> None:
    """Refuse a segment that the coder must not see."""
    weights = segment.size * (2 if segment.kind in (INT4, UINT4) else 1)
    sound = (
        segment.kind in WIDTHS
        and segment.offset + segment.size <= size
        and 1 <= segment.kernel <= MAX_KERNEL
        and weights % segment.kernel == 0
        and segment.size % WIDTHS[segment.kind] == 0
        and (segment.kernel == 1 or WIDTHS[segment.kind] == 1)
        and -1 <= segment.old <= base - segment.size * (segment.old >= 0)
        and (segment.kind != COPY or segment.old >= 0)
    )
    if not sound:
        raise BadArtifact("damaged coding: a segment that cannot be")


def _read_copies(reader: _Reader, base: int) -> List[Copy]:
    copies = [Copy(*row) for row in reader.columns(3)]
    if any(copy.old + copy.size > base for copy in copies):
        raise BadArtifact("damaged coding: a copy from outside the base")
    return copies


def _read_rest(reader: _Reader, copies: Sequence[Copy], base: bytes, size: int) -> bytes:
    """The bytes outside segments."""
    literals = reader.bytes(len(reader.data) - reader.at)
    if not copies and len(literals) == size:
        return literals
    made, at = bytearray(), 0
    for copy in copies:
        made += literals[at : at + copy.literals] + base[copy.old : copy.old + copy.size]
        at += copy.literals
        if at > len(literals) or len(made) > size:
            raise BadArtifact("damaged coding: copies that cannot be")
    made += literals[at:]
    if len(made) != size:
        raise BadArtifact("damaged coding: plain bytes of another length")
    return bytes(made)
