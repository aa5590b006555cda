"""Symbols of 4 bits, coded near their entropy: rANS over adaptive tables, in lanes for numpy.

The method is Duda's range variant of asymmetric numeral systems (arXiv 1311.2540, 2013), with
32-bit states renormalised by 16-bit words and interleaved as Giesen does (arXiv 1402.3392, 2014).
Tables are counts of what was coded before, so none travel; everything is integer arithmetic, so
that all machines agree. This is what a device needs; the encoder is the host's.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Iterator, Optional

import numpy as np

from runtimes.errors import BadArtifact

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

SYMBOLS = 16
BITS = 14  # of a frequency
TOTAL = 1 << BITS
LOW = 1 << 16  # states lie in [LOW, LOW << 16)
_LANES = 2048
_PER_LANE = 4096  # symbols that a lane's four bytes of state are spread over
FRAME_HEAD = struct.Struct("<II")


class Table:
    """How often each symbol came in each of `contexts` contexts."""

    def __init__(self, contexts: int) -> None:
        self.counts = np.ones((contexts, SYMBOLS), np.int64)
        self.seen = 0

    def fade(self, weight: int = 128) -> None:
        """A new tensor begins: each context's past weighs as `weight` symbols at most."""
        total = self.counts.sum(axis=1, keepdims=True)
        limit = 2 * weight
        self.counts = np.where(total > limit, 1 + self.counts * limit // total, self.counts)
        self.seen = 0

    def bounds(self) -> Array:
        """int64 [contexts, 17]: where each symbol's share of the range begins and ends."""
        total = self.counts.sum(axis=1, keepdims=True)
        shares = 1 + self.counts * (TOTAL - SYMBOLS) // total
        rows = np.arange(len(shares))
        shares[rows, shares.argmax(axis=1)] += TOTAL - shares.sum(axis=1)
        made = np.zeros((len(shares), SYMBOLS + 1), np.int64)
        np.cumsum(shares, axis=1, out=made[:, 1:])
        return made

    def learn(self, contexts: Array, symbols: Array) -> None:
        """Count symbols that were coded (each twice: the prior is half a symbol)."""
        cells = np.bincount(contexts * SYMBOLS + symbols, minlength=self.counts.size)
        self.counts += 2 * cells.reshape(self.counts.shape)
        self.seen += len(symbols)

    def chunks(self, count: int) -> Iterator[slice]:
        """Parts between which the table learns: small at first, then a quarter of the past."""
        start = 0
        while start < count:
            end = min(count, start + min(max(64, self.seen // 4), 1 << 16))
            yield slice(start, end)
            start = end


def lanes_of(count: int) -> int:
    """How many states a frame of so many symbols has."""
    return min(max(1, count // _PER_LANE), _LANES)


class Decoder:
    """Takes bytes, gives symbols; `BadArtifact` where the bytes are no encoder's."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._left = 0
        self._states = np.full(1, LOW, np.uint64)
        self._words = np.zeros(0, np.uint64)
        self._at = 0

    def code(self, table: Table, contexts: Array, _symbols: Optional[Array]) -> Array:
        """Read one symbol (0–15) for each context."""
        found = np.empty(len(contexts), np.int64)
        for part in table.chunks(len(contexts)):
            if not self._left:
                self._begin_frame()
            self._left -= part.stop - part.start
            if self._left < 0:
                raise BadArtifact("damaged coding: a frame ends too early")
            self._read(table.bounds(), contexts[part], found[part])
            table.learn(contexts[part], found[part])
            if not self._left:
                self._end_frame()
        return found

    def finish(self) -> None:
        """Make sure that nothing is left over."""
        if self._left or len(self._data):
            raise BadArtifact("damaged coding: symbols are left over")

    def _begin_frame(self) -> None:
        if len(self._data) < FRAME_HEAD.size:
            raise BadArtifact("damaged coding: symbols are missing")
        count, words = FRAME_HEAD.unpack(self._data[: FRAME_HEAD.size])
        lanes = lanes_of(count)
        middle = FRAME_HEAD.size + 4 * lanes
        end = middle + 2 * words
        if not count or end > len(self._data):
            raise BadArtifact("damaged coding: a frame is longer than the data")
        self._states = np.frombuffer(self._data[FRAME_HEAD.size : middle], "<u4").astype(np.uint64)
        self._words = np.frombuffer(self._data[middle:end], "<u2").astype(np.uint64)
        self._data, self._left, self._at = self._data[end:], count, 0

    def _read(self, bounds: Array, contexts: Array, found: Array) -> None:
        lanes, low, sixteen = len(self._states), np.uint64(LOW), np.uint64(16)
        bounds = bounds.astype(np.uint64)
        inner = bounds[:, 1:SYMBOLS]
        for at in range(0, len(found), lanes):
            context = contexts[at : at + lanes]
            state = self._states[: len(context)]
            slot = state & np.uint64(TOTAL - 1)
            symbol = (slot[:, None] >= inner[context]).sum(axis=1)
            start = bounds[context, symbol]
            state[:] = (bounds[context, symbol + 1] - start) * (state >> np.uint64(BITS))
            state += slot - start
            short = state < low
            words = self._words[self._at : self._at + int(short.sum())]
            if len(words) != int(short.sum()):
                raise BadArtifact("damaged coding: a frame runs out of words")
            state[short] = (state[short] << sixteen) | words
            self._at += len(words)
            found[at : at + lanes] = symbol

    def _end_frame(self) -> None:
        if self._at != len(self._words) or (self._states != LOW).any():
            raise BadArtifact("damaged coding: a frame does not end where it began")
