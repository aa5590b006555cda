"""A test model in a target's own format, one step at a time, and what the engine ran of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compressor.steps import load_step, parse_options
from exporters.base import Keep, QuantScheme, Samples, StepSpec
from runtimes.base import load_runtime
from runtimes.types import Artifact
from tests.contract import subjects
from tests.step_env import make_env


def prepared(tmp_path: Path, model: str, target: str = "onnxruntime") -> Artifact:
    """Test model `model` in the target's format, in float32."""
    if target == "openvino":
        pytest.importorskip("openvino", reason="needs the openvino extra")
        pytest.importorskip("nncf", reason="needs the openvino extra")
    return subjects.source(tmp_path / f"{model}-{target}", target, model)


def apply(
    tmp_path: Path,
    given: Artifact,
    name: str,
    *,
    keep: Keep | None = None,
    scheme: QuantScheme | None = None,
    calibrated: bool = True,
    data: Mapping[str, Samples] | None = None,
    **options: Any,
) -> Artifact:
    """`given` after step `name`, as in a run for the target of its format."""
    context = replace(subjects.context(name, given.format), keep=keep or Keep())
    if scheme is not None:
        context = replace(context, scheme=scheme)
    if data is None:
        data = subjects.data(given) if calibrated else {}
    parsed = parse_options(StepSpec(name, options), name)
    env = make_env(
        tmp_path, reference=given, data=data, context=context, name=f"{name}-{given.format}"
    )
    return load_step(name).run(given, parsed, env)


def refused(given: Artifact, name: str, **options: Any) -> list[Any]:
    parsed = parse_options(StepSpec(name, options), name)
    return load_step(name).refusals(given, parsed, subjects.context(name, given.format))


def engine(artifact: Artifact) -> Any:
    return load_runtime(artifact.format)


def feeds_for(artifact: Artifact, batch: int = 8) -> dict[str, np.ndarray]:
    return dict(subjects.data(artifact, batch)["calibration"].feeds(range(batch)))


def executed(artifact: Artifact) -> Counter[str]:
    """Op types of the kernels the engine executed."""
    layers = engine(artifact).layer_precisions(artifact, feeds=feeds_for(artifact))
    return Counter(layer.op for layer in layers)


def precisions(artifact: Artifact) -> Counter[str]:
    layers = engine(artifact).layer_precisions(artifact, feeds=feeds_for(artifact))
    return Counter(layer.precision for layer in layers)


def sqnr_db(want: Artifact, got: Artifact) -> float:
    """10·log10(signal / noise) of all outputs, each through its own engine."""
    feeds = feeds_for(want, 32)
    with engine(want).open_session(want) as a, engine(got).open_session(got) as b:
        first, second = a.run(feeds), b.run(feeds)
    signal = sum(float((x**2).sum()) for x in first.values())
    noise = sum(float(((second[name] - x) ** 2).sum()) for name, x in first.items())
    return float(10 * np.log10(signal / max(noise, 1e-30)))
