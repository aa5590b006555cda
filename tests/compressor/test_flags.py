"""What flags mean as a recipe."""

from __future__ import annotations

import pytest

from compressor.cli import build_parser
from compressor.flags import recipe_from_flags
from compressor.recipe import Recipe
from runtimes.errors import UsageError


def recipe(*flags: str) -> Recipe:
    args = build_parser().parse_args(["run", "net.onnx", "--target", "onnxruntime", *flags])
    return recipe_from_flags(args)[0]


def test_a_metric_may_have_options() -> None:
    assert recipe("--metric", "{name: top1, output: mask}").metric["output"] == "mask"
    with pytest.raises(UsageError, match="not a metric"):
        recipe("--metric", "{name: top1")


def test_a_drop_may_be_a_percentage() -> None:
    assert recipe("--max-drop", "1%").gates == recipe("--max-drop", "0.01").gates


@pytest.mark.parametrize("flag", ["--batch", "--threads"])
def test_counts_start_at_one(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        recipe(flag, "0")
    assert "0 is not at least 1" in capsys.readouterr().err


def test_effort_is_the_recipes_unless_a_flag_names_one() -> None:
    parse = build_parser().parse_args
    assert parse(["run", "recipe.yaml"]).effort is None
    assert parse(["run", "recipe.yaml", "--effort", "certify"]).effort == "certify"
