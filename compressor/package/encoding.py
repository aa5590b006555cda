"""The host's half of `runtimes.blob` and `runtimes.nibbles`: files in, one blob out."""

from __future__ import annotations

import lzma
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from runtimes.blob import FILTERS, HEAD, MAGIC, Copy, gaps, square
from runtimes.coding import Segment, Weights, to_values
from runtimes.nibbles import BITS, FRAME_HEAD, LOW, Table, lanes_of

Array = np.ndarray[Any, Any]
FRAME = 1 << 22  # symbols after which a frame ends: bounds memory


def encode(
    data: bytes, segments: Sequence[Segment], base: bytes = b"", copies: Sequence[Copy] = ()
) -> bytes:
    """Code files that lie one after another in `data`; `runtimes.blob.decode` gives them back.

    Args:
        data: the files.
        segments: where weights lie in it, in ascending order, not overlapping.
        base: older files, which the decoder has too.
        copies: how the bytes outside segments are made, in order; what is left is literal.
    """
    coder = Encoder()
    weights = Weights(coder.code, bytearray(data), base, reads=False)
    tapped = bytearray()
    for segment in segments:
        taps = fit_taps(data, segment)
        tapped += taps.tobytes()
        weights.code(segment, square(taps, segment.kernel))
    rest = b"".join(data[a:b] for a, b in gaps(segments, len(data)))
    literals = bytearray()
    at = 0
    for copy in copies:
        literals += rest[at : at + copy.literals]
        at += copy.literals + copy.size
    plain = _numbers(_spell(segments, copies)) + bytes(tapped) + bytes(literals) + rest[at:]
    packed = lzma.compress(plain, lzma.FORMAT_RAW, filters=FILTERS)
    return HEAD.pack(MAGIC, len(plain), len(packed)) + packed + coder.finish()


def fit_taps(data: bytes, segment: Segment) -> Array:
    """What the weights before it in a kernel foretell of each weight, by least squares.

    int8 [kernel * (kernel - 1) / 2] in sixteenths, row after row; all 0 where there is nothing
    to tell, empty where none are used.
    """
    if not segment.taps:
        return np.zeros(0, np.int8)
    values = to_values(
        np.frombuffer(data[segment.offset : segment.offset + segment.size], np.uint8), segment
    )[: 1 << 18]
    gram = (values.T @ values).astype(np.float64)
    rows = []
    for k in range(1, segment.kernel):
        ridge = np.eye(k) * (1 + 1e-6 * gram[k, k])
        rows.append(np.linalg.solve(gram[:k, :k] + ridge, gram[:k, k]))
    return np.clip(np.round(np.concatenate(rows) * 16), -128, 127).astype(np.int8)


def _spell(segments: Sequence[Segment], copies: Sequence[Copy]) -> Iterator[int]:
    """Header as numbers, column by column, places as distances from where they are expected."""
    rows = []
    end = old_end = 0
    for segment in segments:
        gap = segment.offset - end
        moved = segment.old - (old_end + gap)
        old = 0 if segment.old < 0 else 1 + (-2 * moved - 1 if moved < 0 else 2 * moved)
        rows.append((gap, segment.size, segment.kind, segment.kernel, old))
        end = segment.offset + segment.size
        old_end = segment.old + segment.size if segment.old >= 0 else old_end + gap + segment.size
    for table in (rows, list(copies)):
        yield len(table)
        for column in zip(*table, strict=True):
            yield from column


def _numbers(values: Iterable[int]) -> bytes:
    """Unsigned numbers, seven bits a byte, the lowest first."""
    made = bytearray()
    for value in values:
        while value > 127:
            made.append(value & 127 | 128)
            value >>= 7
        made.append(value)
    return bytes(made)


class Encoder:
    """Takes symbols, gives bytes."""

    def __init__(self) -> None:
        self._frames = bytearray()
        self._chunks: list[tuple[Array, Array]] = []
        self._pending = 0

    def code(self, table: Table, contexts: Array, symbols: Array | None) -> Array:
        """Append `symbols` (0–15), each in its context; returns them."""
        assert symbols is not None
        symbols = symbols.astype(np.int64)
        for part in table.chunks(len(symbols)):
            where, what = contexts[part], symbols[part]
            bounds = table.bounds()
            starts = bounds[where, what]
            self._chunks.append((starts, bounds[where, what + 1] - starts))
            table.learn(where, what)
            self._pending += len(what)
            if self._pending >= FRAME:
                self._end_frame()
        return symbols

    def finish(self) -> bytes:
        """Everything coded, as bytes."""
        if self._pending:
            self._end_frame()
        return bytes(self._frames)

    def _end_frame(self) -> None:
        """Code the pending symbols, last first, as rANS must."""
        lanes = lanes_of(self._pending)
        states = np.full(lanes, LOW, np.uint64)
        words: list[Array] = []
        for starts, shares in reversed(self._chunks):
            wide, begin = shares.astype(np.uint64), starts.astype(np.uint64)
            for at in range((len(wide) - 1) // lanes * lanes, -1, -lanes):
                share, start = wide[at : at + lanes], begin[at : at + lanes]
                state = states[: len(share)]
                full = state >= share << np.uint64(32 - BITS)
                words.append((state[full] & np.uint64(0xFFFF)).astype("<u2"))
                state[full] >>= np.uint64(16)
                whole = state // share
                state[:] = (whole << np.uint64(BITS)) + (state - whole * share) + start
        spilt = np.concatenate(words[::-1])
        self._frames += FRAME_HEAD.pack(self._pending, len(spilt))
        self._frames += states.astype("<u4").tobytes() + spilt.tobytes()
        self._chunks, self._pending = [], 0
