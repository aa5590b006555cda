"""Formats, rounding and overflow, from their definitions; words on buses."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest

from runtimes.errors import BadArtifact
from runtimes.fixed import reference
from runtimes.fixed.spec import Format, Input, Layer, Output, Spec, read_spec, write_spec
from runtimes.fpga import words

FORMATS = [
    Format(True, 2, 3), Format(False, 1, 4, "TRN"), Format(True, -1, 5, "TRN", "WRAP"),
    Format(False, 3, -1, "RND", "WRAP"),
]  # fmt: skip


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_requantize_is_its_definition(form: Format) -> None:
    whole, fraction = np.arange(-700, 700), 6
    expected = []
    for value in whole.tolist():
        half = Fraction(1, 2) if form.rounding == "RND" else Fraction(0)
        made = floor(Fraction(value, 2**fraction) * Fraction(2) ** form.fraction + half)
        if form.overflow == "SAT":
            made = min(max(made, form.low), form.high)
        else:
            made = (made - form.low) % 2**form.bits + form.low
        expected.append(made)
    np.testing.assert_array_equal(reference.requantize(whole, fraction, form), expected)
    floats = reference.quantize(whole * 2.0**-fraction, form)
    np.testing.assert_array_equal(floats, expected)


def test_words_on_a_bus_are_read_back() -> None:
    forms = [FORMATS[0], FORMATS[1], FORMATS[2]]
    rng = np.random.default_rng(0)
    columns = [rng.integers(f.low, f.high + 1, 100) for f in forms]
    given = np.stack(columns, 1)
    np.testing.assert_array_equal(words.from_hex(words.to_hex(given, forms), forms), given)


def test_a_damaged_specification_is_refused(tmp_path) -> None:
    form = Format(True, 3, 4)
    layer = Layer("fc", "dense", ("x",), (2,), form, {"weight": {"bits": 2, "fraction": 1}})
    weights = {"fc.weight": np.array([[1, 5]] * 2), "fc.bias": np.zeros(2, np.int64)}
    spec = Spec(
        (Input("x", (2,), "float32", form),), (layer,), (Output("y", "fc", (2,), "float32"),),
        weights,
    )  # fmt: skip
    write_spec(spec, tmp_path)
    with pytest.raises(BadArtifact, match=r"fc\.weight holds more than 2 bits"):
        read_spec(tmp_path)
