"""The files a recipe reads: for depfiles, and to know that an output is up to date."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import compressor
from compressor.recipe import Recipe, recipe_json
from compressor.schema import to_json
from runtimes.types import sha256_of

HASHED_BYTES = 256 << 20  # beyond this a file counts as changed when its size or time did
TOOLS = ("numpy", "onnx", "onnxruntime", "openvino", "nncf", "torch", "torch-pruning", "onnxslim")


def input_files(recipe: Recipe, base_dir: Path, recipe_path: Path | None = None) -> list[Path]:
    """Every file the run reads, as far as the recipe names it, sorted.

    Of a `module:function` it is the module's own file and its neighbours in the same folder; what
    that code opens by itself is not known here.
    """
    found: set[Path] = set() if recipe_path is None else {recipe_path}
    code = [recipe.model.source, recipe.metric, recipe.evaluator, recipe.model.weights]
    for entry in [*code, *recipe.data.values()]:
        for text in _texts(entry):
            found.update(_files(text, base_dir))
    return sorted(found)


def _texts(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    if isinstance(entry, Mapping):
        return [text for value in entry.values() for text in _texts(value)]
    return []


def _files(text: str, base_dir: Path) -> list[Path]:
    path = base_dir / text
    if path.is_file():
        return [path, *_external_data(path)]
    if path.is_dir():
        return [p for p in path.rglob("*") if p.is_file()]
    module = base_dir.joinpath(*text.partition(":")[0].split(".")).with_suffix(".py")
    if ":" in text and module.is_file():
        return list(module.parent.glob("*.py"))
    return []


def _external_data(path: Path) -> list[Path]:
    """Files beside an ONNX model that carry its name: where exporters put external data."""
    if path.suffix != ".onnx":
        return []
    return [p for p in path.parent.glob(path.name + "*") if p != path and p.is_file()]


def stamp(recipe: Recipe, base_dir: Path, flags: Mapping[str, Any]) -> dict[str, Any]:
    """What the output depends on, cheaply: recipe, files, versions."""
    files = input_files(recipe, base_dir)
    hashed = sum(p.stat().st_size for p in files) <= HASHED_BYTES
    return {
        "tool": compressor.__version__,
        "versions": {name: _version(name) for name in TOOLS},
        "recipe": to_json(recipe_json(recipe)),
        "flags": dict(flags),
        "files": {str(p): _state(p, hashed) for p in files},
    }


def _state(path: Path, hashed: bool) -> str:
    if hashed:
        return sha256_of(path)
    status = path.stat()
    return hashlib.sha256(f"{status.st_size} {status.st_mtime_ns}".encode()).hexdigest()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
