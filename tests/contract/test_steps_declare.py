"""Every step says what it is: attributes, options, tools, before anything runs."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from compressor.docs import option_docs
from compressor.steps import load_step, options_json, parse_options, step_modules, target_names
from exporters.base import StepSpec, Target
from runtimes.base import load_runtime
from runtimes.errors import UsageError
from tests.contract.subjects import FORMATS, ROLES, STEPS, field_names, usable
from tests.layers.test_bare import HOOK
from tests.layers.tree import CORE, HEAVY, ROOT

every_step = pytest.mark.parametrize("name", STEPS)


@every_step
def test_attributes(name: str) -> None:
    step = load_step(name)
    assert isinstance(step.REV, int)
    assert step.REV >= 1
    assert isinstance(step.ACCEPTS, frozenset)
    assert step.ACCEPTS
    assert step.ACCEPTS <= FORMATS
    assert step.PRODUCES in FORMATS | {"same"}


@every_step
def test_data_roles(name: str) -> None:
    step = load_step(name)
    assert isinstance(step.NEEDS, frozenset)
    assert isinstance(step.USES, frozenset)
    assert not step.NEEDS - {"calibration", "training"}
    assert step.USES <= ROLES, "evaluation data is for judging alone"


@every_step
def test_options_are_a_frozen_dataclass_with_defaults(name: str) -> None:
    options = load_step(name).Options
    assert dataclasses.is_dataclass(options)
    assert options.__dataclass_params__.frozen
    assert options() == options()


@every_step
def test_every_option_is_documented(name: str) -> None:
    options = load_step(name).Options
    explained = option_docs(options)
    assert [f for f in field_names(options) if not explained.get(f)] == []
    assert set(explained) <= set(field_names(options)), "explains a field that is not there"


@every_step
def test_options_survive_json(name: str) -> None:
    options = load_step(name).Options()
    plain = json.loads(json.dumps(options_json(options)))
    assert parse_options(StepSpec(name, plain), name) == options


@every_step
def test_an_unknown_option_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="no_such_option"):
        parse_options(StepSpec(name, {"no_such_option": 1}), name)


@every_step
def test_tools(name: str) -> None:
    """Versions of what is installed; `usable` skips, showing the fix, where it is not."""
    tools = usable(name).tools()
    assert all(isinstance(k, str) and isinstance(v, str) and v for k, v in tools.items())


@every_step
def test_a_missing_tool_names_the_extra(name: str) -> None:
    """With the extras blocked, a step either needs none of them or says which to install."""
    code = f"""
import importlib, json
from runtimes.errors import MissingTool
try:
    importlib.import_module({step_modules()[name]!r}).tools()
except MissingTool as error:
    print(json.dumps(error.fix))
else:
    print(json.dumps(None))
"""
    hook = HOOK.format(blocked=set(HEAVY - CORE))
    done = subprocess.run(
        [sys.executable, "-c", hook + code],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    fix = json.loads(done.stdout)
    assert fix is None or "edge-compressor[" in fix


TARGETS = [n for n in STEPS if hasattr(load_step(n), "TARGET")]


@pytest.mark.parametrize("name", TARGETS)
def test_targets_chain(name: str) -> None:
    """A target's twin and every rung lead from ONNX to a format that the target ships."""
    target: Target = load_step(name).TARGET
    assert name == f"to_{target.name}"
    assert target.name in target_names()
    assert load_runtime(target.runtime).FORMATS & target.formats
    for specs in (target.twin, target.half_twin, *(rung.steps for rung in target.ladder)):
        fmt = "onnx"
        for spec in specs:
            step = load_step(spec.name)
            assert fmt in step.ACCEPTS, f"{spec.name} takes no {fmt}"
            parse_options(spec, name)
            fmt = fmt if step.PRODUCES == "same" else step.PRODUCES
        assert fmt in target.formats or not specs
