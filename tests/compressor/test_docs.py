"""The recipe reference is the code's."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import yaml

from compressor import docs
from tests.layers.tree import ROOT


@dataclass(frozen=True)
class Options:
    """What it does.

    Attributes:
        first, second: share
            one text.
        third: has | a bar.

    Raises:
        nothing: at all.
    """

    first: int = 1
    second: bool = False
    third: dict[str, int] = field(default_factory=lambda: {"a": 1})


def test_the_file_is_current() -> None:
    current = (ROOT / "docs" / "recipe.md").read_text() == docs.reference()
    assert current, "docs/recipe.md is not what the code says: run `make docs`"


def test_attributes_are_read() -> None:
    assert docs.option_docs(Options) == {
        "first": "share one text.",
        "second": "share one text.",
        "third": "has | a bar.",
    }


def test_a_table_row_each() -> None:
    rows = list(docs.option_table(Options))[2:]
    assert rows == [
        "| `first` | `int` | `1` | share one text. |",
        "| `second` | `bool` | `false` | share one text. |",
        "| `third` | `dict[str, int]` | `{a: 1}` | has \\| a bar. |",
    ]


def test_every_step_and_target_is_there() -> None:
    from compressor.steps import step_modules, target_names

    text = docs.reference()
    assert all(f"### `{name}`" in text for name in [*step_modules(), *target_names()])


def test_every_gate_shown_parses() -> None:
    from compressor.verdict import parse_gate

    shown = re.findall(r"`([a-z0-9_@]+(?:<=|>=)[^`]+)`", docs.GATES)
    assert len(shown) > 8
    for text in shown:
        parse_gate(text)
    for mapping in re.findall(r"`(\{gate: [^`]+\})`", docs.GATES):
        parse_gate(yaml.safe_load(mapping))
