"""The README's table: what the cards say, and `zoo.json`, where they lie together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples.zoo import MODELS

HERE = Path(__file__).parent
CARDS, README = HERE / "zoo.json", HERE / "README.md"
START, END = "<!-- TABLE -->\n", "<!-- /TABLE -->\n"


def write(out: Path) -> None:
    """Put the cards of the folders in `out` into `zoo.json`, and their table into the README.

    A model whose folder is not there keeps the card it has.
    """
    kept = {card["name"]: card for card in json.loads(CARDS.read_text())}
    for name in MODELS:
        path = out / name / "card.json"
        if path.is_file():
            kept[name] = json.loads(path.read_text())
    cards = [kept[name] for name in MODELS if name in kept]
    CARDS.write_text(json.dumps(cards, indent=1) + "\n")
    README.write_text(with_table(README.read_text(), cards))


def with_table(text: str, cards: Sequence[dict[str, Any]]) -> str:
    """The README's text with the table of these cards."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return before + START + table(cards) + END + after


def table(cards: Sequence[dict[str, Any]]) -> str:
    """One row a model."""
    lines = [
        "| name | what it is | data and weights | licence | score | bytes |",
        "|---|---|---|---|---|---|",
    ]
    for card in cards:
        metric = str(card["metric"]).rpartition(":")[2]
        score = f"{metric} {card['score']:.4g} (n = {card['n_evaluation']:,})"
        cells = [f"`{card['name']}`", card["architecture"], card["source"], card["licence"]]
        lines.append("| " + " | ".join([*cells, score, f"{card['bytes']:,}"]) + " |")
    return "\n".join(lines) + "\n"
