"""ONNX Runtime, OpenVINO and PyTorch: the same model gives the same numbers, and honest errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from runtimes.base import load_runtime
from runtimes.errors import BadArtifact, RuntimeUnavailable, UsageError
from runtimes.types import Artifact, TensorSpec
from tests import models
from tests.runtimes.artifacts import artifact_of

ENGINES = ["onnxruntime", "openvino"]
BFLOAT16 = {"rtol": 0.05, "atol": 0.05}  # OpenVINO's default on CPUs with bf16 units


def engine(name: str):
    module = load_runtime(name)
    if module.missing():
        pytest.skip(module.missing())
    return module


@pytest.fixture
def convnet(tmp_path: Path) -> Artifact:
    return artifact_of(models.convnet(), tmp_path / "convnet")


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("model", sorted(models.ALL))
def test_gives_the_reference_outputs(name: str, model: str, tmp_path: Path) -> None:
    built = models.ALL[model]()
    feeds, artifact = models.feeds(built), artifact_of(built, tmp_path / "model")
    with engine(name).open_session(artifact) as session:
        outputs = session.run(feeds)
    reference = models.run(built, feeds)
    assert list(outputs) == list(reference)
    for key, value in reference.items():
        assert outputs[key].dtype == value.dtype
        np.testing.assert_allclose(outputs[key], value, **BFLOAT16)


@pytest.mark.parametrize("name", ENGINES)
def test_bound_calls_do_not_mix(name: str, convnet: Artifact) -> None:
    first, second = models.feeds(models.convnet(), seed=1), models.feeds(models.convnet(), 2, 2)
    with engine(name).open_session(convnet) as session:
        one, two = session.bind(first), session.bind(second)
        one(), two(), one()
        kept = one.fetch()["logits"]
        np.testing.assert_array_equal(kept, session.run(first)["logits"])
        np.testing.assert_array_equal(two.fetch()["logits"], session.run(second)["logits"])
        one()
        assert kept is not one.fetch()["logits"]


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize(
    ("feeds", "text"),
    [
        ({"picture": np.zeros((1, 1, 28, 28), np.float32)}, "wrong input names"),
        ({"image": np.zeros((1, 1, 28, 28), np.float64)}, "wrong dtype"),
        ({"image": np.zeros((1, 28, 28), np.float32)}, "wrong shape"),
        ({"image": np.zeros((1, 1, 28, 27), np.float32)}, "wrong shape"),
    ],
)
def test_wrong_feeds_are_refused(name: str, feeds: dict, text: str, convnet: Artifact) -> None:
    with engine(name).open_session(convnet) as session, pytest.raises(UsageError, match=text):
        session.bind(feeds)


@pytest.mark.parametrize("name", ENGINES)
def test_a_damaged_file_is_a_bad_artifact(name: str, convnet: Artifact) -> None:
    convnet.path.write_bytes(convnet.path.read_bytes()[:2000])
    with pytest.raises(BadArtifact, match=r"model\.onnx"):
        engine(name).open_session(convnet)


@pytest.mark.parametrize("name", ENGINES)
def test_a_missing_file_is_a_bad_artifact(name: str, convnet: Artifact) -> None:
    convnet.path.unlink()
    with pytest.raises(BadArtifact, match="missing"):
        engine(name).open_session(convnet)


@pytest.mark.parametrize("name", ENGINES)
def test_other_names_than_the_manifests_are_a_bad_artifact(name: str, convnet: Artifact) -> None:
    other = replace(convnet, outputs=(TensorSpec("scores", "float32", ("batch", 10)),))
    with pytest.raises(BadArtifact, match=r"(?s)outputs.*scores.*logits"):
        engine(name).open_session(other)


@pytest.mark.parametrize("name", ENGINES)
def test_unknown_devices_are_refused(name: str, convnet: Artifact) -> None:
    with pytest.raises((UsageError, RuntimeUnavailable), match="NPU9"):
        engine(name).open_session(convnet, device="NPU9")


@pytest.mark.parametrize("name", ENGINES)
def test_settings_name_the_threads(name: str, convnet: Artifact) -> None:
    with engine(name).open_session(convnet, threads=1) as session:
        assert any("THREADS" in key.upper() and v == "1" for key, v in session.settings.items())


def test_openvino_says_its_precision(convnet: Artifact) -> None:
    with engine("openvino").open_session(convnet) as session:
        assert session.settings["INFERENCE_PRECISION_HINT"] in ("f32", "bf16", "f16")


def test_openvino_opens_ir(convnet: Artifact, tmp_path: Path) -> None:
    ov = pytest.importorskip("openvino", reason="extra openvino")
    (tmp_path / "ir").mkdir()
    ov.save_model(ov.Core().read_model(convnet.path), tmp_path / "ir" / "model.xml")
    ir = Artifact.write(tmp_path / "ir", "openvino", "model.xml", convnet.inputs, convnet.outputs)
    feeds = models.feeds(models.convnet())
    with engine("openvino").open_session(ir) as session:
        expected = models.run(models.convnet(), feeds)["logits"]
        np.testing.assert_allclose(session.run(feeds)["logits"], expected, **BFLOAT16)


@pytest.mark.torch
def test_torch_opens_pt2_and_modules(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="extra torch")
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU()).eval()
    x = torch.randn(2, 4)
    torch.export.save(torch.export.export(module, (x,)), tmp_path / "model.pt2")
    specs = [TensorSpec("x", "float32", (2, 4))], [TensorSpec("y", "float32", (2, 3))]
    exported = Artifact.write(tmp_path, "exported", "model.pt2", *specs)
    for artifact, build in (
        (exported, None),
        (replace(exported, format="module"), lambda _: module),
    ):
        with engine("torch").open_session(artifact, build=build) as session:
            made = session.run({"x": x.numpy()})["y"]
        np.testing.assert_allclose(made, module(x).detach().numpy(), rtol=1e-6)


@pytest.mark.torch
def test_torch_asks_for_the_factory_of_a_module(convnet: Artifact) -> None:
    pytest.importorskip("torch", reason="extra torch")
    with pytest.raises(UsageError, match="build="):
        engine("torch").open_session(replace(convnet, format="module"))
