"""Vectors of integers as words of a bus, bit by bit and as hexadecimal text."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Sequence, Tuple

import numpy as np

from runtimes.fixed.spec import Format, Spec


def in_formats(spec: Spec) -> List[Format]:
    """One format a word of the input bus, the first word in the lowest bits."""
    return [one.format for one in spec.inputs for _ in range(_size(one.shape))]


def out_formats(spec: Spec) -> List[Format]:
    """One format a word of the output bus."""
    shapes, forms = spec.shapes, spec.formats
    return [forms[o.tensor] for o in spec.outputs for _ in range(_size(shapes[o.tensor]))]


def _size(shape: Sequence[int]) -> int:
    return int(np.prod(shape)) if shape else 1


def in_words(spec: Spec, tensors: Mapping[str, Any]) -> Any:
    """Integers of all inputs side by side: [vectors, words]."""
    count = len(tensors[spec.inputs[0].name])
    return np.concatenate([tensors[i.name].reshape(count, -1) for i in spec.inputs], 1)


def out_words(spec: Spec, tensors: Mapping[str, Any]) -> Any:
    """The same of all outputs."""
    count = len(tensors[spec.outputs[0].tensor])
    return np.concatenate([tensors[o.tensor].reshape(count, -1) for o in spec.outputs], 1)


def out_tensors(spec: Spec, words: Any) -> Dict[str, Any]:
    """The inverse of `out_words`: the outputs' tensors by name."""
    made, at, shapes = {}, 0, spec.shapes
    for out in spec.outputs:
        size = _size(shapes[out.tensor])
        made[out.tensor] = words[:, at : at + size].reshape(len(words), *shapes[out.tensor])
        at += size
    return made


def to_bits(words: Any, formats: Sequence[Format]) -> Any:
    """[vectors, bits] of booleans, the lowest bit of the first word first."""
    columns = [(words[:, i, None] >> np.arange(form.bits)) & 1 for i, form in enumerate(formats)]
    return np.concatenate(columns, 1).astype(bool)


def from_bits(bits: Any, formats: Sequence[Format]) -> Any:
    """The inverse of `to_bits`."""
    made, at = [], 0
    for form in formats:
        weights = np.int64(1) << np.arange(form.bits, dtype=np.int64)
        if form.signed:
            weights[-1] = -weights[-1]
        made.append((bits[:, at : at + form.bits] * weights).sum(1))
        at += form.bits
    return np.stack(made, 1).astype(np.int64)


def to_hex(words: Any, formats: Sequence[Format]) -> str:
    """One vector a line."""
    bits = to_bits(words, formats)
    digits = -(-bits.shape[1] // 4)
    padded = np.zeros((len(bits), 4 * digits), bool)
    padded[:, : bits.shape[1]] = bits
    values = (padded.reshape(len(bits), digits, 4) * (1, 2, 4, 8)).sum(2)[:, ::-1]
    return "".join("".join(map("{:x}".format, row)) + "\n" for row in values.tolist())


def from_hex(text: str, formats: Sequence[Format]) -> Any:
    """The inverse of `to_hex`."""
    total = sum(form.bits for form in formats)
    rows = []
    for line in text.split():
        number = int(line, 16)
        rows.append([number >> i & 1 for i in range(total)])
    return from_bits(np.array(rows, bool).reshape(len(rows), total), formats)


def edges(spec: Spec) -> Dict[str, Any]:
    """Vectors at the ends: all inputs at their least, all at their largest, and chequered."""
    rows: Dict[str, Any] = {}
    for one in spec.inputs:
        low, high = one.format.low, one.format.high
        turns = np.arange(_size(one.shape)) % 2
        rows[one.name] = np.stack(
            [
                np.full(one.shape, low),
                np.full(one.shape, high),
                np.where(turns, high, low).reshape(one.shape),
                np.where(turns, low, high).reshape(one.shape),
            ]
        )
    return rows


def random_vectors(spec: Spec, count: int, seed: int) -> Dict[str, Any]:
    """Uniformly drawn integers for every input."""
    rng = np.random.default_rng(seed)
    return {
        i.name: rng.integers(i.format.low, i.format.high + 1, (count, *i.shape))
        for i in spec.inputs
    }


def joined(parts: Sequence[Mapping[str, Any]]) -> Dict[str, Any]:
    """Sets of vectors one after the other."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def shown(expected: Any, got: Any) -> Tuple[int, str]:
    """How many vectors differ, and the first of them in words."""
    wrong = np.flatnonzero((expected != got).any(1)) if len(expected) else np.zeros(0, int)
    if not wrong.size:
        return 0, ""
    at = int(wrong[0])
    word = int(np.flatnonzero(expected[at] != got[at])[0])
    return int(wrong.size), (
        f"vector {at}, word {word}: {int(got[at, word])} instead of {int(expected[at, word])}"
    )


def from_dais(spec: Spec, logic: Any, tensors: Mapping[str, Any]) -> Any:
    """Output words [vectors, words] by da4ml's interpreter of its own graph (`CombLogic`)."""
    given = [
        tensors[i.name].reshape(len(tensors[i.name]), -1) * 2.0**-i.format.fraction
        for i in spec.inputs
    ]
    found = logic.predict(np.ascontiguousarray(np.concatenate(given, 1)), n_threads=1)
    scale = np.array([2.0**form.fraction for form in out_formats(spec)])
    return np.rint(found * scale).astype(np.int64)
