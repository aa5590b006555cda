from __future__ import annotations

import hashlib

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from exporters import to_onnxruntime
from exporters._check import onnx_session, run_onnx
from exporters._schemes import ONNXRUNTIME, ONNXRUNTIME_ARM, ONNXRUNTIME_X86
from runtimes.errors import BuildFailed
from runtimes.types import Artifact
from tests import models
from tests.exporters.helpers import artifact_of, named, step


@pytest.mark.parametrize("name", models.ALL)
def test_every_model_goes_through_unchanged_in_meaning(name, tmp_path):
    source = named(name, tmp_path)
    before = hashlib.sha256(source.path.read_bytes()).hexdigest()
    made = step(to_onnxruntime, source, tmp_path)
    feeds = models.feeds(onnx.load(source.path), batch=3)
    want = run_onnx(onnx_session(source.path), feeds)
    for key, array in run_onnx(onnx_session(made.path), feeds).items():
        np.testing.assert_allclose(array, want[key], rtol=1e-4, atol=1e-5)
    assert hashlib.sha256(source.path.read_bytes()).hexdigest() == before


def test_the_same_source_gives_the_same_bytes(tmp_path):
    source = named("convnet", tmp_path)
    first, second = (step(to_onnxruntime, source, tmp_path) for _ in range(2))
    assert first.digest() == second.digest()


def test_norms_are_folded_and_said(tmp_path):
    made = step(to_onnxruntime, named("convnet", tmp_path), tmp_path)
    assert "4 batch norms folded" in made.facts["notes"]
    assert made.size_bytes < named("convnet", tmp_path).size_bytes


def test_shape_makes_a_dimension_static(tmp_path):
    shapes = {"image": {"batch": (4, 4, 4)}}
    made = step(to_onnxruntime, named("convnet", tmp_path), tmp_path, shapes=shapes)
    assert [s.shape for s in (*made.inputs, *made.outputs)] == [(4, 1, 28, 28), (4, 10)]
    assert onnx.load(made.path).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 4


def odd(domain: str, kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(n, kind, ["batch", 2]) for n in "xy")
    node = helper.make_node("Spin" if domain else "Mish", ["x"], ["y"], name="odd", domain=domain)
    ids = [helper.make_opsetid("", 21)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    graph = helper.make_graph([node], "g", [x], [y])
    return helper.make_model(graph, opset_imports=ids, ir_version=10)


def test_an_unknown_operator_is_refused_by_name(tmp_path):
    source = artifact_of(odd("my.ops"), tmp_path)
    (found,) = to_onnxruntime.refusals(source, to_onnxruntime.Options(), None)
    assert found.where == "odd"
    assert "my.ops.Spin" in found.why


def test_a_missing_kernel_is_refused_by_name(tmp_path):
    x, w = (helper.make_tensor_value_info(n, TensorProto.BFLOAT16, [1, 1, 3, 3]) for n in "xw")
    y = helper.make_tensor_value_info("y", TensorProto.BFLOAT16, [1, 1, 1, 1])
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="brain")
    ids = [helper.make_opsetid("", 22)]
    graph = helper.make_graph([node], "g", [x, w], [y])
    source = artifact_of(helper.make_model(graph, opset_imports=ids, ir_version=10), tmp_path)
    (found,) = to_onnxruntime.refusals(source, to_onnxruntime.Options(), None)
    assert found.where == "brain"


def test_no_refusals_for_what_runs(tmp_path):
    source = named("transformer_block", tmp_path)
    assert to_onnxruntime.refusals(source, to_onnxruntime.Options(), None) == []


def test_another_result_fails_the_build_naming_the_output(tmp_path, monkeypatch):
    def sabotage(model: onnx.ModelProto) -> dict[str, int]:
        for tensor in model.graph.initializer:
            if tensor.name == "head.bias":
                tensor.raw_data = (np.frombuffer(tensor.raw_data, np.float32) + 1).tobytes()
        return {}

    monkeypatch.setattr(to_onnxruntime, "clean", sabotage)
    with pytest.raises(BuildFailed, match="output logits"):
        step(to_onnxruntime, named("convnet", tmp_path), tmp_path)


@pytest.mark.parametrize(
    ("flags", "scheme"),
    [
        ({"sse2", "avx2"}, ONNXRUNTIME_X86),
        ({"sse4_1", "avx"}, ONNXRUNTIME_X86),
        ({"sse2", "avx512_vnni"}, ONNXRUNTIME),
        ({"lm", "avx_vnni"}, ONNXRUNTIME),
        ({"asimd", "asimddp"}, ONNXRUNTIME_ARM),
        ({"asimd"}, ONNXRUNTIME_ARM),
        ({"neon", "vfpv4"}, ONNXRUNTIME),
        ((), ONNXRUNTIME),
    ],
)
def test_the_scheme_follows_the_cpus_flags(flags, scheme):
    assert to_onnxruntime.scheme_for(flags) == scheme


def test_seven_bits_are_for_x86_and_signed_activations_for_arm():
    assert (ONNXRUNTIME.weight_limit, ONNXRUNTIME_X86.weight_limit) == (127, 63)
    assert ONNXRUNTIME_ARM.activation_signed
    assert not ONNXRUNTIME_ARM.activation_symmetric


def test_the_result_is_an_artifact_on_disk(tmp_path):
    made = step(to_onnxruntime, named("mlp", tmp_path), tmp_path)
    assert Artifact.load(made.root) == made
    made.verify()


def test_a_wrongly_declared_output_is_said(tmp_path):
    model = models.mlp()
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 12
    made = step(to_onnxruntime, artifact_of(model, tmp_path), tmp_path)
    assert any("declares logits float32[batch, 12]" in note for note in made.facts["notes"])


def test_free_sizes_that_the_model_accepts_are_found(tmp_path):
    model = models.unet()
    for value in (*model.graph.input, *model.graph.output):
        for axis, name in ((2, "height"), (3, "width")):
            value.type.tensor_type.shape.dim[axis].dim_param = name
    made = step(to_onnxruntime, artifact_of(model, tmp_path), tmp_path)
    assert not [note for note in made.facts["notes"] if "not checked" in note]
