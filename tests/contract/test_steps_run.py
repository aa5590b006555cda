"""Every step keeps the promises of `exporters/base.py` on a small real model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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


@every_case
def test_makes_a_sound_artifact(name: str, fmt: str, tmp_path: Path) -> None:
    given = subject(tmp_path, name, fmt)
    step, options = step_and_options(name)
    env = env_of(tmp_path, name, given, "run")
    made = step.run(given, options, env)
    assert made.root == env.work
    assert made.format == (given.format if step.PRODUCES == "same" else step.PRODUCES)
    loaded = Artifact.load(made.root)
    loaded.verify()
    assert loaded.digest() == made.digest()


@every_case
def test_is_a_drop_in(name: str, fmt: str, tmp_path: Path) -> None:
    given = subject(tmp_path, name, fmt)
    assert drop_in_differences(given, run(tmp_path, name, given)) == []


@every_case
def test_leaves_its_inputs_alone(name: str, fmt: str, tmp_path: Path) -> None:
    given = subject(tmp_path, name, fmt)
    step, options = step_and_options(name)
    env = env_of(tmp_path, name, given, "run")
    before = bytes_of(given.root), bytes_of(env.reference.root)
    arrays = {role: dict(samples.feeds([0, 1])) for role, samples in env.data.items()}
    step.run(given, options, env)
    assert (bytes_of(given.root), bytes_of(env.reference.root)) == before
    for role, samples in env.data.items():
        np.testing.assert_array_equal(samples.feeds([0, 1])["image"], arrays[role]["image"])


@every_case
def test_same_input_same_bytes(name: str, fmt: str, tmp_path: Path) -> None:
    given = subject(tmp_path, name, fmt)
    first, second = (run(tmp_path, name, given, label) for label in ("first", "second"))
    assert first.files == second.files
    assert first.digest() == second.digest()


@every_case
def test_the_result_runs_as_declared(name: str, fmt: str, tmp_path: Path) -> None:
    made = run(tmp_path, name, subject(tmp_path, name, fmt))
    with opened(made) as session:
        outputs = session.run(images(3))
    assert list(outputs) == [spec.name for spec in made.outputs]
    for spec in made.outputs:
        assert outputs[spec.name].shape[0] == 3
        assert str(outputs[spec.name].dtype) == spec.dtype
        assert np.isfinite(outputs[spec.name]).all()


@pytest.mark.slow
@every_case
def test_same_bytes_in_a_fresh_process(name: str, fmt: str, tmp_path: Path) -> None:
    """Another hash seed, another address space, nothing imported or converted before."""
    usable(name)
    code = f"""
from pathlib import Path
from tests.contract.subjects import run, subject
place = Path({str(tmp_path)!r}) / "fresh"
print("DIGEST", run(place, {name!r}, subject(place, {name!r}, {fmt!r})).digest())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    here = run(tmp_path / "here", name, subject(tmp_path / "here", name, fmt))
    assert done.stdout.split()[-1] == here.digest()


@every_onnx_step
@every_model
def test_refusals_are_reasons(name: str, model: str, tmp_path: Path) -> None:
    step = usable(name)
    _, options = step_and_options(name)
    found = step.refusals(onnx_artifact(tmp_path / "in", model), options, context(name))
    assert all(isinstance(one, Refusal) and one.where and one.why for one in found)


@every_onnx_step
@every_model
def test_refusals_beat_crashes(name: str, model: str, tmp_path: Path) -> None:
    """What was not refused works, or says in a typed error what to change: never a traceback."""
    step = usable(name)
    given = onnx_artifact(tmp_path / "in", model)
    _, options = step_and_options(name)
    if step.refusals(given, options, context(name)):
        return  # said before any work, in words: the test above
    made, code = attempt(tmp_path, name, given)
    assert code in (0, 2, 4)
    assert made is None or drop_in_differences(given, made) == []


def attempt(tmp_path: Path, name: str, given: Artifact) -> tuple[Artifact | None, int]:
    """The artifact and 0, or the exit code of the typed error; anything else is a crash."""
    try:
        return run(tmp_path, name, given), 0
    except CompressError as error:
        return None, error.exit_code
