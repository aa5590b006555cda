"""Models of the zoo as recipes name them: torch modules, and their ONNX files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples.zoo import load


def recipe_of(name: str, zoo: Path, roles: Sequence[str]) -> dict[str, Any]:
    """Model, data and metric of the zoo's `name`, whose weights lie in the folder `zoo`."""
    about, place = load(name).ABOUT, f"examples.zoo.{name}"
    return {
        "model": {
            "source": f"{place}:build",
            "weights": str(zoo.resolve() / name / "weights.safetensors"),
            "inputs": dict(about.inputs), "outputs": list(about.outputs),
        },
        "data": {role: f"{place}:{role}" for role in roles},
        "metric": about.metric,
    }  # fmt: skip


def graph_recipe_of(name: str, zoo: Path, roles: Sequence[str]) -> dict[str, Any]:
    """The zoo's `name` as an ONNX file with its arrays, which lie in the folder `zoo`."""
    folder = zoo.resolve() / name
    return {
        "model": {"source": str(folder / "model.onnx")},
        "data": {role: str(folder / f"{role}.npz") for role in roles},
        "metric": load(name).ABOUT.metric,
    }
