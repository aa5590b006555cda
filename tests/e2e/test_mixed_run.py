"""Mixed precision as a user meets it: in a recipe, repeated by its assignment, under a budget."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import compressor
from tests import models

MIXED = {"quantize_mixed": {"speed": False, "samples": 32}}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A trained model file, and data by role."""
    root = tmp_path_factory.mktemp("mixed")
    train = models.fashion_like(256, seed=1)
    model = models.trained(models.convnet(), train)
    parts = {r: models.fashion_like(n, seed=s) for s, (r, n) in enumerate(ROLES.items(), 2)}
    return {"model": models.save(model, root / "net.onnx"), "root": root, **parts}


ROLES = {"calibration": 64, "selection": 128, "evaluation": 256}


def run(given: dict[str, Any], name: str, targets: dict[str, Any], **more: Any) -> Any:
    recipe = {
        "metric": "top1",
        "targets": targets,
        "measure": {"effort": "quick"},
        "gates": ["size_reduction>=50%", "relative_drop<=20%", "speedup>=0.01"],
        **more,
    }
    data = {role: given[role] for role in ROLES}
    return compressor.compress(
        str(given["model"]),
        recipe,
        **data,
        out=given["root"] / name,
        store=given["root"] / "store",
    )


@pytest.mark.slow
def test_a_search_says_what_it_chose_and_its_assignment_repeats_it(given: dict[str, Any]) -> None:
    steps = ["to_onnxruntime", MIXED]
    found = run(given, "found", {"onnxruntime": {"steps": steps}})
    artifact = found.artifacts["onnxruntime"]
    assign = artifact.facts["mixed"]["assign"]
    assert set(assign.values()) & {"w4", "int8-w4", "int8", "w8"}
    size = found.record.reference.size_bytes
    assert artifact.size_bytes <= 0.5 * size
    again = {"quantize_mixed": {"assign": assign}}
    repeated = run(given, "again", {"onnxruntime": {"steps": ["to_onnxruntime", again]}})
    first, second = (Path(r.artifacts["onnxruntime"].path).read_bytes() for r in (found, repeated))
    assert first == second


@pytest.mark.slow
def test_where_int8_loses_too_much_tensorrt_gets_both(given: dict[str, Any]) -> None:
    """In INT8 alone this model has 20 dB; nothing is timed, and half the bytes is the limit."""
    result = run(given, "trt", {"tensorrt": {}}, gates=["sqnr>=25dB"])
    target = result.record.target("tensorrt")
    states = {c.name: c.state for c in target.candidates if c.role == "candidate"}
    assert (states, target.shipped) == ({"int8": "fail", "mixed": "pass"}, "mixed")
    artifact = result.artifacts["tensorrt"]
    assert set(artifact.facts["mixed"]["assign"].values()) == {"int8", "float"}
    assert artifact.size_bytes < 0.5 * result.record.reference.size_bytes
    layers = json.loads((artifact.root / "trt.json").read_text())["layers"]
    assert {row["precision"] for row in layers} == {"int8", "float16"}
    assert result.record.reproducible


@pytest.mark.slow
def test_spent_minutes_begin_no_candidate_and_the_twin_ships(given: dict[str, Any]) -> None:
    result = run(given, "short", {"onnxruntime": {}}, minutes=0.001)
    target = result.record.target("onnxruntime")
    tried = [c for c in target.candidates if c.role == "candidate"]
    reasons = [c.failure.message for c in tried if c.failure is not None]
    assert reasons == ["the minutes given were spent"] * len(tried)
    assert target.shipped == "twin"
    assert "the minutes given were spent" in target.reason


@pytest.mark.slow
def test_the_ladder_leaves_out_what_refuses_a_model(given: dict[str, Any]) -> None:
    """This LSTM is too small for dynamic INT8: the rung goes on without that step."""
    root = given["root"]
    path = models.save(models.lstm(), root / "lstm.onnx")
    rng = np.random.default_rng(0)
    feeds = {n: rng.random((96, 6, 28), np.float32) for n in models.feeds(models.lstm())}
    result = compressor.compress(
        str(path),
        {"targets": {"onnxruntime": {}}, "measure": {"effort": "quick"}},
        calibration=feeds,
        out=root / "lstm",
        store=root / "store",
    )
    first = result.record.target("onnxruntime").candidates[0]
    assert first.name == "int8-w4"
    assert first.size_bytes < 0.5 * result.record.reference.size_bytes
    ran = [s.step for s in result.record.steps if s.rung == "int8-w4"]
    assert "reconstruct_weights" in ran
    assert "quantize_dynamic" not in ran


@pytest.mark.slow
def test_another_metric_is_searched_for_anew(given: dict[str, Any]) -> None:
    """Trials are scored by it: what was found under one says nothing about another."""
    targets = {"onnxruntime": {"steps": ["to_onnxruntime", MIXED]}}
    status = {}
    for name, metric in (("top1", "top1"), ("top5", "top5"), ("again", "top1")):
        result = run(given, name, targets, metric=metric)
        status[name] = [s.status for s in result.record.steps if s.step == "quantize_mixed"]
    assert status["top1"] in (["ran"], ["hit"])  # another test may have found it
    assert status["top5"] == ["ran"]
    assert status["again"] == ["hit"]
