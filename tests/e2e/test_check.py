"""`compress check`: one line for each node that matters, one for all that only follow others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compressor.cli import main
from tests import models


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(models.save(models.transformer_block(), tmp_path / "block.onnx"))


def test_what_stays_float_is_told_with_the_reason(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", model, "--target", "onnxruntime"]) == 0
    said = capsys.readouterr().out
    assert "onnxruntime takes every node" in said
    assert "softmax (Softmax): " in said
    assert said.count("nothing to do") == 0
    assert "more nodes without weights" in said


def test_all_tells_every_node(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", model, "--target", "onnxruntime", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["onnxruntime"]
    assert main(["check", model, "--target", "onnxruntime", "--all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("  ") and "fix:" not in line for line in lines) == len(rows)
