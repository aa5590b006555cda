"""`compress check`: one line for each node that matters, one for all that only follow others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from compressor.cli import main
from tests import models
from tests.exporters.test_trt_rules import plain


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


def test_a_quantized_model_is_told_every_violation_and_what_is_mended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unsigned = str(models.save(models.already_quantized(), tmp_path / "unsigned.onnx"))
    assert main(["check", unsigned, "--target", "tensorrt"]) == 0
    said = capsys.readouterr().out
    assert "tensorrt takes every node; 2 of 2 in INT8" in said
    assert said.count("mended") == 6
    shifted = plain(zero=7, kind=np.uint8, scale=[0.05])
    assert (
        main(["check", str(models.save(shifted, tmp_path / "m.onnx")), "--target", "tensorrt"]) == 4
    )
    said = capsys.readouterr().out
    assert all(rule in said for rule in ("R03: zero point 7", "R04: UINT8", "R18: a scale"))
    assert "fix: quantize symmetrically" in said


def test_a_free_dimension_gets_its_range_from_the_same_flag_as_a_run(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", model, "--target", "tensorrt"]) == 4
    assert "fix: add --shape tokens=1..8@1,1..64@16,32" in capsys.readouterr().out
    shape = ["--shape", "tokens=1..8@1,1..64@16,32"]
    assert main(["check", model, "--target", "tensorrt", *shape]) == 0
    assert "softmax (Softmax): normalization stays float" in capsys.readouterr().out
