"""yosys' AIGER file as the arrays that the gate simulator reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from runtimes.errors import BuildFailed


def convert(source: Path, target: Path) -> None:
    """Write `target` (npz) from a binary AIGER file with one output and named inputs.

    Raises `BuildFailed` where it is no such file.
    """
    data = source.read_bytes()
    head, _, rest = data.partition(b"\n")
    fields = head.split()
    if len(fields) != 6 or fields[0] != b"aig" or fields[4] != b"1":
        raise BuildFailed("yosys wrote no AIGER file of one output", where=str(source))
    variables, inputs, latches, _, gates = (int(n) for n in fields[1:])
    lines = rest.split(b"\n", latches + 1)
    after = [int(line.split()[0]) for line in lines[:latches]]
    output, body = int(lines[latches]), lines[latches + 1]
    first = 2 * (inputs + 1)
    rows, at = np.empty((gates, 3), np.int32), 0
    for i in range(gates):
        gate = first + 2 * latches + 2 * i
        back, at = _number(body, at)
        more, at = _number(body, at)
        rows[i] = gate, gate - back, gate - back - more
    own = [first + 2 * i for i in range(latches)]
    np.savez_compressed(
        target, ands=rows, latches=np.array([own, after], np.int32).T,
        names=np.array(_names(body[at:], inputs)), variables=variables, output=output,
    )  # fmt: skip


def _number(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while data[at] & 0x80:
        value |= (data[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
    return value | data[at] << shift, at + 1


def _names(symbols: bytes, inputs: int) -> list[str]:
    names = [""] * inputs
    for line in symbols.decode("utf-8", "replace").splitlines():
        kind, _, name = line.partition(" ")
        if kind[:1] == "i" and kind[1:].isdigit():
            names[int(kind[1:])] = name.split()[0]
    return names
