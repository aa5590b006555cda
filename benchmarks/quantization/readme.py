"""The README's lines on quantization, from results.json. A test holds the two together.

python benchmarks/quantization/readme.py
"""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.example_01.readme import between  # noqa: E402
from benchmarks.quantization.tables import reached  # noqa: E402


def lines() -> list[str]:
    """The first two paragraphs of table.md, wrapped as the README is."""
    summary = json.loads((HERE / "results.json").read_text())["summary"]
    ours, _, theirs, *_ = reached(summary)
    return [*textwrap.wrap(ours, 140), "", *textwrap.wrap(theirs, 140)]


def main() -> None:
    path = ROOT / "README.md"
    path.write_text(between(path.read_text(), "QUANTIZATION", "\n".join(lines())))


if __name__ == "__main__":
    main()
