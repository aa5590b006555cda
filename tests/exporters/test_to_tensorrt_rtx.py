"""The bundle with a plan of TensorRT-RTX in it; what compiles needs the wheel (`make test-rtx`)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from compressor.steps import load_target
from exporters import _rtx_compile, to_tensorrt, to_tensorrt_rtx
from exporters._rtx_compile import missing, plan_version
from exporters.base import Context
from runtimes.base import load_runtime
from runtimes.errors import BuildFailed, MissingTool
from runtimes.trt.engine_file import Here, ahead_why_not
from runtimes.types import MANIFEST, Artifact
from tests.exporters import rtx_models
from tests.exporters.helpers import artifact_of, step
from tests.models import feeds

rtx = pytest.mark.rtx
wheel = pytest.mark.skipif(bool(missing()), reason=missing() or "it is here")
HERE = Here("tensorrt_rtx", "1.7.1.116", "a card", 89)
MADE = {"file": "model.rtx.plan", "version": "1.7.1.116", "compute_capabilities": [86, 89]}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("bundle")
    return step(to_tensorrt, artifact_of(rtx_models.int8("convnet"), folder), folder, proxy=())


def with_model(bundle: Artifact, model: onnx.ModelProto, folder: Path) -> Artifact:
    """The same bundle around another model: none that `to_tensorrt` would write."""
    root = folder / "other"
    shutil.copytree(bundle.root, root, ignore=shutil.ignore_patterns(MANIFEST))
    onnx.save(model, root / "model.onnx")
    return Artifact.write(root, "tensorrt", bundle.entry, bundle.inputs, bundle.outputs)


def test_every_candidate_and_twin_ends_in_a_plan():
    target = load_target("tensorrt_rtx")
    steps = [target.twin, target.half_twin, *(rung.steps for rung in target.ladder)]
    assert {(found[-2].name, found[-1].name) for found in steps} == {
        ("to_tensorrt", "to_tensorrt_rtx")
    }


def test_capabilities_of_other_gpus_are_refused_by_name(bundle):
    asked = to_tensorrt_rtx.Options(compute_capabilities=(86, 87, 110))
    found = to_tensorrt_rtx.refusals(bundle, asked, Context())
    assert [r.where for r in found] == ["compute capability 87", "compute capability 110"]
    assert "75, 80, 86, 89, 120, 121" in found[0].fix
    asked = to_tensorrt.Options(proxy=(87,))
    assert [r.where for r in to_tensorrt.refusals(bundle, asked, Context())] == [found[0].where]


def test_the_extra_is_named_where_the_wheel_is_missing(monkeypatch):
    monkeypatch.setattr(to_tensorrt_rtx, "PACKAGES", ("tensorrt-rtx-of-nobody",))
    with pytest.raises(MissingTool, match=r"edge-compressor\[tensorrt-rtx\]"):
        to_tensorrt_rtx.tools()


@pytest.mark.parametrize(
    ("here", "why"),
    [
        (HERE, None),
        (HERE._replace(sm=90), "SM 90"),
        (HERE._replace(version="1.8.0.1"), "1.8.0.1"),
    ],
)
def test_a_plan_for_another_card_or_version_is_refused(here, why, tmp_path):
    plan = tmp_path / "model.rtx.plan"
    plan.touch()
    error = ahead_why_not(plan, MADE, here)
    assert (error is None) if why is None else (why in error.got and error.exit_code == 4)


def test_a_bundle_says_why_nothing_was_compiled(monkeypatch, tmp_path):
    monkeypatch.setattr(_rtx_compile.util, "find_spec", lambda name: None)
    made = step(to_tensorrt, artifact_of(rtx_models.int8("mlp"), tmp_path), tmp_path)
    (told,) = [note for note in made.facts["notes"] if "TensorRT-RTX" in note]
    assert told.startswith("not compiled with TensorRT-RTX; Orin/Thor engine not built (")
    assert "edge-compressor[tensorrt-rtx]" in told


@rtx
@wheel
def test_a_bundle_tells_what_the_proxy_compiled(tmp_path):
    made = step(to_tensorrt, artifact_of(rtx_models.int8("mlp"), tmp_path), tmp_path)
    told = json.loads((made.root / "trt.json").read_text())
    text = "compiled for SM86, SM89 with TensorRT-RTX 1.7.1; Orin/Thor engine not built"
    assert (told["rtx"]["text"], told["rtx"]["problems"]) == (text, [])
    assert any(note.startswith(text) for note in made.facts["notes"])


@rtx
@wheel
def test_the_plan_lies_beside_the_model_it_was_compiled_from(bundle, tmp_path):
    made = step(to_tensorrt_rtx, bundle, tmp_path, compute_capabilities=(86, 89))
    assert plan_version(made.root / "model.rtx.plan") == made.facts["plan"]["version"]
    told = json.loads((made.root / "trt.json").read_text())["rtx"]
    assert told["layers"] == {"by_type": {"int8": 5}, "fell_back": [], "int8_mac_share": 1.0}
    assert made.size_bytes == bundle.size_bytes  # the model is judged, the plan only told
    assert "no TensorRT engine" in made.facts["notes"][-1]
    given = feeds(onnx.load(bundle.path), 3, seed=2)
    answers = []
    for artifact in (bundle, made):
        with load_runtime("onnxruntime").open_session(artifact) as session:
            answers.append(session.run(given)["logits"])
    np.testing.assert_array_equal(*answers)


@rtx
@wheel
def test_layers_that_came_out_float_fail_it_by_name(bundle, tmp_path):
    other = with_model(bundle, rtx_models.with_scales_of_shape_1(), tmp_path)
    with pytest.raises(BuildFailed, match="stem: the model asks for int8, the engine") as error:
        step(to_tensorrt_rtx, other, tmp_path)
    assert "conv3: " in str(error.value)


@rtx
@wheel
def test_what_the_parser_refuses_fails_it_by_name(bundle, tmp_path):
    other = with_model(bundle, rtx_models.with_integer_bias(), tmp_path)
    with pytest.raises(BuildFailed, match=r"bias\.dq: "):
        step(to_tensorrt_rtx, other, tmp_path)
