"""Every step keeps the promises of `exporters/base.py` on a small real model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from exporters._drop_in import drop_in_differences
from exporters.base import Refusal
from runtimes.errors import CompressError
from runtimes.types import Artifact
from tests import models
from tests.contract.subjects import (
    STEPS,
    bytes_of,
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

every_step = pytest.mark.parametrize("name", STEPS)


@every_step
def test_makes_a_sound_artifact(name: str, tmp_path: Path) -> None:
    given = subject(tmp_path, name)
    step, options = step_and_options(name)
    env = env_of(tmp_path, name, given, "run")
    made = step.run(given, options, env)
    assert made.root == env.work
    assert made.format == (given.format if step.PRODUCES == "same" else step.PRODUCES)
    loaded = Artifact.load(made.root)
    loaded.verify()
    assert loaded.digest() == made.digest()


@every_step
def test_is_a_drop_in(name: str, tmp_path: Path) -> None:
    given = subject(tmp_path, name)
    assert drop_in_differences(given, run(tmp_path, name, given)) == []


@every_step
def test_leaves_its_inputs_alone(name: str, tmp_path: Path) -> None:
    given = subject(tmp_path, name)
    step, options = step_and_options(name)
    env = env_of(tmp_path, name, given, "run")
    before = bytes_of(given.root), bytes_of(env.reference.root)
    arrays = {role: dict(samples.feeds([0, 1])) for role, samples in env.data.items()}
    step.run(given, options, env)
    assert (bytes_of(given.root), bytes_of(env.reference.root)) == before
    for role, samples in env.data.items():
        np.testing.assert_array_equal(samples.feeds([0, 1])["image"], arrays[role]["image"])


@every_step
def test_same_input_same_bytes(name: str, tmp_path: Path) -> None:
    given = subject(tmp_path, name)
    first, second = (run(tmp_path, name, given, label) for label in ("first", "second"))
    assert first.files == second.files
    assert first.digest() == second.digest()


@every_step
def test_the_result_runs_as_declared(name: str, tmp_path: Path) -> None:
    made = run(tmp_path, name, subject(tmp_path, name))
    with opened(made) as session:
        outputs = session.run(images(3))
    assert list(outputs) == [spec.name for spec in made.outputs]
    for spec in made.outputs:
        assert outputs[spec.name].shape[0] == 3
        assert str(outputs[spec.name].dtype) == spec.dtype
        assert np.isfinite(outputs[spec.name]).all()


@every_step
@pytest.mark.parametrize("model", sorted(models.ALL))
def test_refusals_are_reasons(name: str, model: str, tmp_path: Path) -> None:
    step = usable(name)
    if "onnx" not in step.ACCEPTS:
        pytest.skip("takes no ONNX")
    _, options = step_and_options(name)
    found = step.refusals(onnx_artifact(tmp_path / "in", model), options, context(name))
    assert all(isinstance(one, Refusal) and one.where and one.why for one in found)


@every_step
@pytest.mark.slow
@pytest.mark.parametrize("model", sorted(set(models.ALL) - {"convnet"}))
def test_refusals_beat_crashes(name: str, model: str, tmp_path: Path) -> None:
    """What was not refused works, or says in a typed error what to change: never a traceback."""
    step = usable(name)
    if "onnx" not in step.ACCEPTS:
        pytest.skip("takes no ONNX")
    given = onnx_artifact(tmp_path / "in", model)
    _, options = step_and_options(name)
    if step.refusals(given, options, context(name)):
        pytest.skip("refused before any work")
    made, code = attempt(tmp_path, name, given)
    assert code in (0, 2, 4)
    assert made is None or drop_in_differences(given, made) == []


def attempt(tmp_path: Path, name: str, given: Artifact) -> tuple[Artifact | None, int]:
    """The artifact and 0, or the exit code of the typed error; anything else is a crash."""
    try:
        return run(tmp_path, name, given), 0
    except CompressError as error:
        return None, error.exit_code
