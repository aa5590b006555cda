"""Every runtime gives the model's own numbers, takes nothing else, and leaves feeds alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from runtimes.base import check_feeds, load_runtime
from runtimes.errors import BadArtifact, RuntimeUnavailable, UsageError
from runtimes.types import Artifact, TensorSpec
from tests import models
from tests.contract.subjects import FORMATS, PREFERRED, RUNTIMES, images, open_session, source

every_runtime = pytest.mark.parametrize("name", RUNTIMES)


def runtime(name: str) -> Any:
    found = load_runtime(name)
    if reason := found.missing():
        pytest.skip(reason)
    return found


def tolerance(session: Any) -> float:
    """Relative to the outputs' range. OpenVINO's default on CPUs with bf16 units is bf16: each
    layer rounds to 2^-9, and the deepest test model has about fifteen of them in a row.
    """
    return 2.0**-6 if "bf16" in str(session.settings).lower() else 1e-5


def artifact_for(name: str, tmp_path: Path, model: str = "convnet") -> Artifact:
    fmt = next(f for f in PREFERRED if f in runtime(name).FORMATS)
    return source(tmp_path, fmt, model)


@every_runtime
def test_attributes(name: str) -> None:
    found = load_runtime(name)
    assert isinstance(found.FORMATS, frozenset)
    assert found.FORMATS <= FORMATS
    reason = found.missing()
    assert reason is None or "pip install" in reason or "needs an NVIDIA GPU" in reason


@every_runtime
def test_versions(name: str) -> None:
    versions = runtime(name).versions()
    assert versions
    assert all(isinstance(v, str) and v for v in versions.values())


@pytest.mark.parametrize("name", [n for n in RUNTIMES if "onnx" in load_runtime(n).FORMATS])
@pytest.mark.parametrize("model", sorted(models.ALL))
def test_same_numbers_as_onnx_runtime(name: str, model: str, tmp_path: Path) -> None:
    artifact = artifact_for(name, tmp_path, model)
    proto = onnx.load(artifact.path)
    with open_session(runtime(name), artifact) as session:
        for batch in (1, 4):
            feeds = models.feeds(proto, batch, seed=batch)
            expected, got = models.run(proto, feeds), session.run(feeds)
            for output, value in expected.items():
                limit = tolerance(session) * max(1.0, float(np.abs(value).max()))
                np.testing.assert_allclose(got[output], value, rtol=0, atol=limit)


@every_runtime
def test_specs_are_the_artifacts(name: str, tmp_path: Path) -> None:
    artifact = artifact_for(name, tmp_path)
    with open_session(runtime(name), artifact) as session:
        assert tuple(session.inputs) == artifact.inputs
        assert tuple(session.outputs) == artifact.outputs


@every_runtime
@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"other": np.zeros((1, 1, 28, 28), np.float32)},
        {"image": np.zeros((1, 1, 28, 28), np.float64)},
        {"image": np.zeros((1, 28, 28), np.float32)},
        {"image": np.zeros((1, 3, 28, 28), np.float32)},
    ],
    ids=["none", "name", "dtype", "rank", "channels"],
)
def test_wrong_feeds_are_refused(name: str, wrong: dict[str, Any], tmp_path: Path) -> None:
    with (
        open_session(runtime(name), artifact_for(name, tmp_path)) as session,
        pytest.raises(UsageError),
    ):
        session.bind(wrong)


@every_runtime
def test_a_call_repeats_and_fetches_copies(name: str, tmp_path: Path) -> None:
    feeds = images(2)
    kept = feeds["image"].copy()
    with open_session(runtime(name), artifact_for(name, tmp_path)) as session:
        call = session.bind(feeds)
        call()
        first = call.fetch()
        before = {key: value.copy() for key, value in first.items()}
        for value in first.values():
            value[...] = 0
        call()
        for key, value in call.fetch().items():
            np.testing.assert_array_equal(value, before[key])
    np.testing.assert_array_equal(feeds["image"], kept)


@every_runtime
def test_two_sessions_do_not_share(name: str, tmp_path: Path) -> None:
    artifact = artifact_for(name, tmp_path)
    found = runtime(name)
    with open_session(found, artifact) as one, open_session(found, artifact) as other:
        a, b = images(1), {"image": images(2)["image"][1:]}
        alone = one.run(a)
        other.run(b)
        np.testing.assert_array_equal(next(iter(one.run(a).values())), next(iter(alone.values())))


@every_runtime
def test_a_truncated_file_is_a_bad_artifact(name: str, tmp_path: Path) -> None:
    artifact = artifact_for(name, tmp_path)
    whole = artifact.path.read_bytes()
    artifact.path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadArtifact):
        open_session(runtime(name), artifact)


@every_runtime
def test_an_unknown_device_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises((UsageError, RuntimeUnavailable)):
        open_session(runtime(name), artifact_for(name, tmp_path), device="NO_SUCH_DEVICE")


def test_one_free_dimension_has_one_size() -> None:
    specs = [TensorSpec(n, "float32", ("batch", 2)) for n in "ab"]
    feeds = {"a": np.zeros((1, 2), np.float32), "b": np.zeros((3, 2), np.float32)}
    with pytest.raises(UsageError, match="input b"):
        check_feeds(specs, feeds)
