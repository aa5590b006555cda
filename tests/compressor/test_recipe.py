"""Recipes: what is accepted, and that what is wrong is named with its place and fix."""

from __future__ import annotations

import pytest
import yaml

from compressor.recipe import (
    load_recipe,
    parse_range,
    recipe_folder,
    recipe_json,
    with_targets,
)
from compressor.schema import Problems
from runtimes.errors import UsageError


@pytest.mark.parametrize(
    ("data", "fragments"),
    [
        ({"modle": {}}, ["recipe: unknown key", "got modle", "did you mean 'model'?"]),
        ({"targets": {"openvino": {"devise": "x"}}}, ["recipe.targets.openvino", "'device'"]),
        ({"measure": {"effort": "max"}}, ["recipe.measure.effort", "'quick'", "got 'max'"]),
        ({"measure": {"batch": [0]}}, ["recipe.measure.batch", "integers ≥ 1"]),
        ({"steps": [3]}, ["recipe.steps[0]: not a step"]),
        ({"steps": [{"a": {}, "b": {}}]}, ["recipe.steps[0]: not a step"]),
        ({"data": {"calib": "x"}}, ["recipe.data.calib: unknown role", "calibration"]),
        ({"keep": {"float": [{"operator": "Softmax"}]}}, ["keep.float[0]", "{op: Type}"]),
        ({"schema": 7}, ["schema", "expected 1", "got 7"]),
    ],
)
def test_what_is_wrong_is_named(data: dict, fragments: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe(data)
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(Problems) as caught:
        load_recipe({"model": {"sauce": 1, "source": 3}, "seed": "x"})
    assert len(caught.value.problems) == 3


def test_on_and_off_are_words_and_true_is_not(tmp_path) -> None:
    """As they are in a lock file that was written from them."""
    (tmp_path / "r.yaml").write_text(
        "steps:\n- prune_channels: {keep: {latency: 50%}, on: openvino, repair: false}\n"
        "- quantize_static: {smooth: off}\ntargets: {openvino: {}}\n"
    )
    recipe = load_recipe(tmp_path / "r.yaml")
    prune, quantize = (dict(step.options) for step in recipe.shared_steps())
    assert prune == {"keep": {"latency": "50%"}, "on": "openvino", "repair": False}
    assert quantize == {"smooth": "off"}
    (tmp_path / "lock.yaml").write_text(yaml.safe_dump(recipe_json(recipe)))
    assert load_recipe(tmp_path / "lock.yaml") == recipe


def test_yaml_that_is_none(tmp_path) -> None:
    (tmp_path / "r.yaml").write_text("a: [1")
    with pytest.raises(UsageError, match="not valid YAML"):
        load_recipe(tmp_path / "r.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(UsageError, match="expected a mapping, got list"):
        load_recipe(tmp_path / "list.yaml")
    with pytest.raises(UsageError, match="no such recipe"):
        load_recipe(tmp_path / "none.yaml")


def test_a_recipe_survives_the_round_trip() -> None:
    data = {
        "model": {"source": "m.onnx"},
        "steps": [{"prune_channels": {"keep": {"macs": "40%"}}}],
        "targets": {"openvino": {"device": "CPU"}, "onnxruntime": {}},
        "gates": ["size_reduction>=75%"],
        "schema": 1,
    }
    assert recipe_json(load_recipe(recipe_json(load_recipe(data)))) == data


def test_target_flag_selects_or_adds() -> None:
    recipe = load_recipe({"targets": {"openvino": {"device": "GPU"}, "onnxruntime": {}}})
    chosen = with_targets(recipe, ["openvino"])
    assert list(chosen.targets) == ["openvino"]
    assert chosen.target("openvino").device == "GPU"
    assert list(with_targets(recipe, ["tensorrt"]).targets) == ["tensorrt"]


@pytest.mark.parametrize(
    ("text", "expected"), [("4", (4, 4, 4)), ("1..8", (1, 8, 8)), ("1..8@4", (1, 4, 8))]
)
def test_ranges(text: str, expected: tuple[int, int, int]) -> None:
    assert parse_range(text, "x") == expected


@pytest.mark.parametrize("text", ["8..1", "0", "1..8@9", "a", "1.."])
def test_bad_ranges(text: str) -> None:
    with pytest.raises(UsageError, match="not a dimension"):
        parse_range(text, "targets.x.shape.image")


def test_a_lock_file_is_a_recipe_whose_paths_start_where_it_says(tmp_path) -> None:
    lock = tmp_path / "out" / "recipe.lock.yaml"
    lock.parent.mkdir()
    lock.write_text("model: {source: m.onnx}\nlocked: {base: .., steps: []}\n")
    assert load_recipe(lock).model.source == "m.onnx"
    assert recipe_folder(lock) == tmp_path
