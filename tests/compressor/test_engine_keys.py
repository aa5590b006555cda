"""What a stored step's key depends on besides its own options."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from compressor.engine import Engine
from compressor.plan import PlannedStep
from compressor.steps import load_step, parse_options
from exporters.base import Context, StepSpec


def planned(name: str, target: str | None, **options: Any) -> PlannedStep:
    parsed = parse_options(StepSpec(name, options), name)
    return PlannedStep(name, parsed, Context(target=target), name, None)


def parts(step: PlannedStep, *rest: PlannedStep) -> dict[str, Any]:
    engine = Engine.__new__(Engine)
    parent: Any = SimpleNamespace(digest=lambda: "parent", format="module")
    engine.source, engine.identity, engine.base_dir = parent, "same", None
    engine.data, engine.metric = {}, "top1"
    return engine._key_parts(load_step(step.name), step, rest, parent)


@pytest.mark.parametrize(
    ("keep", "target", "depends"),
    [
        ({"latency": 0.5}, "onnxruntime", True),
        ({"latency": 0.5}, None, False),  # a shared step times the twin's steps
        ({"macs": 0.5}, "onnxruntime", False),
    ],
)
def test_what_is_timed_with_later_steps_depends_on_them(keep, target, depends):
    pytest.importorskip("torch_pruning", reason="needs the torch extra")
    step = planned("prune_channels", target, keep=keep)
    later = [planned("quantize_weights", target, bits=bits) for bits in (8, 4)]
    assert (parts(step, later[0]) != parts(step, later[1])) == depends
    assert parts(step, later[0]) == parts(step, planned("quantize_weights", target, bits=8))
