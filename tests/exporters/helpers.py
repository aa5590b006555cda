"""ONNX artifacts of the test models, and a step run on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from compressor.sources import SourceSpec, open_source
from exporters.base import Context
from runtimes.types import Artifact
from tests import models
from tests.step_env import make_env


def artifact_of(model: onnx.ModelProto, tmp_path: Path, **asked: Any) -> Artifact:
    folder = tmp_path / f"source{len(list(tmp_path.glob('source*')))}"
    folder.mkdir()
    onnx.save(model, folder / "model.onnx")
    return open_source(SourceSpec(model=folder / "model.onnx", **asked), folder / "artifact")


def named(name: str, tmp_path: Path) -> Artifact:
    return artifact_of(models.ALL[name](), tmp_path)


def step(module: Any, source: Artifact, tmp_path: Path, **options: Any) -> Artifact:
    shapes = options.pop("shapes", {})
    factory = options.pop("factory", None)
    context = Context(shapes=shapes, dims={"batch": 2, "time": 6})
    env = make_env(tmp_path, reference=source, context=context, factory=factory)
    return module.run(source, module.Options(**options), env)
