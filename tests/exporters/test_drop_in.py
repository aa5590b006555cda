from __future__ import annotations

from dataclasses import replace

import onnx
import pytest

from exporters._drop_in import drop_in_differences, require_drop_in
from runtimes.errors import BuildFailed
from runtimes.types import Artifact, TensorSpec
from tests import models
from tests.exporters.helpers import named


@pytest.fixture
def source(tmp_path) -> Artifact:
    return named("convnet", tmp_path)


def test_an_artifact_is_its_own_drop_in(source):
    assert drop_in_differences(source, source) == []


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (TensorSpec("picture", "float32", ("batch", 1, 28, 28)), "input names"),
        (TensorSpec("image", "float16", ("batch", 1, 28, 28)), "float16"),
        (TensorSpec("image", "float32", ("N", 1, 28, 28)), "shape"),
        (TensorSpec("image", "float32", (4, 1, 28, 28)), "shape"),
        (TensorSpec("image", "float32", ("batch", 28, 28)), "shape"),
    ],
)
def test_what_differs_is_said(source, spec, said):
    (text,) = drop_in_differences(source, replace(source, inputs=(spec,)))
    assert said in text


def test_a_dimension_may_be_fixed_where_the_user_asked(source):
    inputs = (TensorSpec("image", "float32", (4, 1, 28, 28)),)
    fixed = replace(source, inputs=inputs, outputs=(TensorSpec("logits", "float32", (4, 10)),))
    found = drop_in_differences(source, fixed, {"batch": 4})
    assert all("in the file" in text for text in found)  # the record fits; the file was not changed


def test_metadata_that_is_lost_is_said(source, tmp_path):
    model = onnx.load(source.path)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    bare = replace(source, root=tmp_path, entry="bare.onnx", facts={})
    with pytest.raises(BuildFailed, match="stride"):
        require_drop_in(source, bare)


def test_the_file_counts_not_only_its_record(source, tmp_path):
    models.save(models.mlp(), tmp_path / "other.onnx")
    model = onnx.load(tmp_path / "other.onnx")
    model.graph.output[0].name = model.graph.node[-1].output[0] = "scores"
    onnx.save(model, tmp_path / "other.onnx")
    found = drop_in_differences(source, replace(source, root=tmp_path, entry="other.onnx"))
    assert any("scores" in text for text in found)
