"""Example 05's own files: disjoint splits, and figures that its README may quote."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent.parent / "examples" / "05_fpga_digits"


def test_splits_share_no_digit(monkeypatch) -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    monkeypatch.syspath_prepend(str(EXAMPLE))
    data = importlib.import_module("digits_data")
    rows = [
        {pixels.tobytes() for pixels in part()["pixels"]}
        for part in (data.training, data.selection, data.evaluation)
    ]
    assert [len(part) for part in rows] == [1257, 180, 360]
    assert not rows[0] & rows[1]
    assert not (rows[0] | rows[1]) & rows[2]


def test_demo_is_what_the_readme_says() -> None:
    found = json.loads((EXAMPLE / "demo.json").read_text(encoding="utf-8"))
    text = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    figures = found["figures"]
    assert f"{100 * found['test_accuracy']:.1f} %" in text
    assert f"{figures['luts']['value']:,} of 7,680" in text
    assert f"{figures['latency_ns']['value']:.1f} ns" in text
    assert figures["latency_ns"]["provenance"] == "post-route"
    assert found["checks"]["gates"] == found["checks"]["verilator"] == found["checks"]["numpy"]
