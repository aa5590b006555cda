"""Every step keeps the promises of `exporters/base.py` on a small real model.

A step runs once a format here, and once more in a fresh process; the tests look at what that made.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporters._drop_in import drop_in_differences
from exporters.base import Refusal
from runtimes.errors import CompressError
from runtimes.types import Artifact
from tests import models
from tests.contract.subjects import (
    bytes_of,
    cases,
    context,
    env_of,
    images,
    onnx_artifact,
    opened,
    run,
    step_and_options,
    subject,
    usable,
)
from tests.layers.tree import ROOT

every_case = pytest.mark.parametrize(("name", "fmt"), cases())
every_onnx_step = pytest.mark.parametrize("name", [n for n, fmt in cases() if fmt == "onnx"])
every_model = pytest.mark.parametrize("model", sorted(models.ALL))


@dataclass(frozen=True)
class Ran:
    """One run of a step: what it had, before and after, and what it made."""

    given: Artifact
    env: Any
    made: Artifact
    before: list[Any]
    after: list[Any]


Once = Callable[[str, str], Ran]


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Runs a step on a format the first time it is asked for."""

    @cache
    def ran(name: str, fmt: str) -> Ran:
        folder = tmp_path_factory.mktemp(name)
        given = subject(folder, name, fmt)
        step, options = step_and_options(name)
        env = env_of(folder, name, given, "run")
        before = inputs_of(given, env)
        made = step.run(given, options, env)
        return Ran(given, env, made, before, inputs_of(given, env))

    return ran


def inputs_of(given: Artifact, env: Any) -> list[Any]:
    """Digests of every file and array that a step reads."""
    arrays = [s.feeds([0, 1])["image"].tobytes() for s in env.data.values()]
    return [bytes_of(given.root), bytes_of(env.reference.root), *arrays]


@every_case
def test_makes_a_sound_drop_in(name: str, fmt: str, once: Once) -> None:
    ran, (step, _) = once(name, fmt), step_and_options(name)
    assert ran.made.root == ran.env.work
    assert ran.made.format == (ran.given.format if step.PRODUCES == "same" else step.PRODUCES)
    loaded = Artifact.load(ran.made.root)
    loaded.verify()
    assert loaded.digest() == ran.made.digest()
    assert drop_in_differences(ran.given, ran.made) == []


@every_case
def test_leaves_its_inputs_alone(name: str, fmt: str, once: Once) -> None:
    ran = once(name, fmt)
    assert ran.after == ran.before


@every_case
def test_the_result_runs_as_declared(name: str, fmt: str, once: Once) -> None:
    made = once(name, fmt).made
    with opened(made) as session:
        outputs = session.run(images(3))
    assert list(outputs) == [spec.name for spec in made.outputs]
    for spec in made.outputs:
        assert outputs[spec.name].shape[0] == 3
        assert str(outputs[spec.name].dtype) == spec.dtype
        assert np.isfinite(outputs[spec.name]).all()


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Step and format → digest of what it makes in another process, or why it makes nothing.

    Another hash seed, another address space, other steps before it: the order is reversed.
    """
    code = f"""
import json, pathlib
from tests.contract.subjects import cases, run, subject
for at, (name, fmt) in enumerate(reversed(cases())):
    place = pathlib.Path({str(tmp_path_factory.mktemp("fresh"))!r}) / str(at)
    try:
        told = run(place, name, subject(place, name, fmt)).digest()
    except BaseException as error:
        told = repr(error)
    print("DIGEST", json.dumps([name + " " + fmt, told]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [line.partition("DIGEST ") for line in done.stdout.splitlines()]
    return dict(json.loads(told) for _, mark, told in lines if mark)


@pytest.mark.slow
@pytest.mark.timeout(900)  # the first one waits for all
@every_case
def test_same_bytes_in_a_fresh_process(
    name: str, fmt: str, once: Once, fresh: dict[str, str]
) -> None:
    assert fresh[f"{name} {fmt}"] == once(name, fmt).made.digest()


@every_onnx_step
@every_model
def test_refuses_with_reasons_or_works(name: str, model: str, tmp_path: Path) -> None:
    """What was not refused works, or says in a typed error what to change: never a traceback."""
    step = usable(name)
    given = onnx_artifact(tmp_path / "in", model)
    _, options = step_and_options(name)
    refused = step.refusals(given, options, context(name))
    assert all(isinstance(one, Refusal) and one.where and one.why for one in refused)
    if refused:
        return
    made, code = attempt(tmp_path, name, given)
    assert code in (0, 2, 4)
    assert made is None or drop_in_differences(given, made) == []


def attempt(tmp_path: Path, name: str, given: Artifact) -> tuple[Artifact | None, int]:
    """The artifact and 0, or the exit code of the typed error; anything else is a crash."""
    try:
        return run(tmp_path, name, given), 0
    except CompressError as error:
        return None, error.exit_code
