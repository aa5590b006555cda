"""A synthesised netlist simulated as AND gates and registers, 64 vectors in a machine word.

`gates.npz` holds it in the numbering of AIGER (Biere et al., 2011): literal 2v is variable v, 2v+1
its inverse, 0 is false. The netlist is the one that the router got, with its shift register: a
vector is shifted in bit by bit, its result out, exactly as pins would see it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, List, Mapping, Tuple

import numpy as np

from runtimes.errors import BadArtifact
from runtimes.fixed.spec import Spec
from runtimes.fpga import words

FILE = "sim/gates.npz"
ALL = np.uint64(0xFFFFFFFFFFFFFFFF)


class Netlist:
    """Gates in levels: those of one level read only what lies before it.

    Attributes:
        inputs: name → variable.
        output: literal of the one output.
    """

    def __init__(self, path: Path) -> None:
        try:
            with np.load(path, allow_pickle=False) as file:
                self._ands = file["ands"].astype(np.int64)
                self._latches = file["latches"].astype(np.int64)
                names, self.variables = file["names"], int(file["variables"])
                self.output = int(file["output"])
        except (OSError, KeyError, ValueError) as error:
            raise BadArtifact(f"no netlist: {error}", where=str(path)) from error
        self.inputs = {str(name): i + 1 for i, name in enumerate(names)}
        self._levels = self._sorted()

    def _sorted(self) -> List[Tuple[Any, ...]]:
        """Per level: results, first operands and whether inverted, second ones."""
        depth = np.zeros(self.variables + 1, np.int64)
        for gate, first, second in self._ands.tolist():  # in order of dependence, as AIGER is
            depth[gate >> 1] = 1 + max(depth[first >> 1], depth[second >> 1])
        order = depth[self._ands[:, 0] >> 1]
        levels = []
        for level in range(1, int(order.max(initial=0)) + 1):
            rows = self._ands[order == level]
            sides: List[Any] = [rows[:, 0] >> 1]
            for side in (1, 2):
                inverted = np.where(rows[:, side] & 1, ALL, np.uint64(0))[:, None]
                sides += [rows[:, side] >> 1, inverted]
            levels.append(tuple(sides))
        return levels

    def run(self, bits: Any, stages: int, wide: int) -> Any:
        """Results [vectors, wide] for vectors [vectors, bits] of booleans.

        The last bit goes in first. The register that holds the input is full after as many clocks
        as there are bits, the result of `net_core` `stages` clocks later.
        """
        packed = _packed(bits)
        state = np.zeros((self.variables + 1, packed.shape[1]), np.uint64)
        self._set(state, "shift", True)
        for row in packed[::-1]:
            state[self.inputs["din"]] = row
            self._clock(state)
        self._set(state, "shift", False)
        for _ in range(stages):
            self._clock(state)
        self._set(state, "load", True)
        self._clock(state)
        self._set(state, "load", False)
        found = np.empty((wide, packed.shape[1]), np.uint64)
        for i in range(wide):
            self._settle(state)
            found[i] = state[self.output >> 1] ^ (ALL if self.output & 1 else np.uint64(0))
            self._clock(state)
        return _unpacked(found, len(bits))

    def _set(self, state: Any, name: str, value: bool) -> None:
        state[self.inputs[name]] = ALL if value else np.uint64(0)

    def _settle(self, state: Any) -> None:
        for made, first, not_first, second, not_second in self._levels:
            state[made] = (state[first] ^ not_first) & (state[second] ^ not_second)

    def _clock(self, state: Any) -> None:
        self._settle(state)
        latch, after = self._latches[:, 0], self._latches[:, 1]
        inverted = np.where(after & 1, ALL, np.uint64(0))[:, None]
        state[latch >> 1] = state[after >> 1] ^ inverted


def simulated(netlist: Netlist, spec: Spec, tensors: Mapping[str, Any], stages: int) -> Any:
    """Output words [vectors, words] for integers of the inputs by name."""
    formats = words.out_formats(spec)
    bits = words.to_bits(words.in_words(spec, tensors), words.in_formats(spec))
    return words.from_bits(netlist.run(bits, stages, sum(f.bits for f in formats)), formats)


def _packed(bits: Any) -> Any:
    """[bits, words of 64 vectors]."""
    count = -(-len(bits) // 64)
    padded = np.zeros((64 * count, bits.shape[1]), bool)
    padded[: len(bits)] = bits
    lanes = padded.T.reshape(bits.shape[1], count, 64)
    packed = np.ascontiguousarray(np.packbits(lanes, axis=2, bitorder="little"))
    return packed.view("<u8")[:, :, 0].astype(np.uint64)


def _unpacked(lanes: Any, count: int) -> Any:
    wide = np.ascontiguousarray(lanes.astype("<u8")).view(np.uint8).reshape(len(lanes), -1)
    return np.unpackbits(wide, axis=1, bitorder="little")[:, :count].T.astype(bool)
