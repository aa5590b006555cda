from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from exporters import to_openvino
from exporters._check import onnx_session, run_onnx
from exporters._openvino_ir import _DEFAULTS, layer_names, save_ir, write_xml
from runtimes.errors import BuildFailed
from tests import models
from tests.exporters.helpers import artifact_of, named, step

ov = pytest.importorskip("openvino", reason="needs the openvino extra")


@pytest.mark.parametrize("name", models.ALL)
def test_every_model_computes_the_same(name, tmp_path):
    source = named(name, tmp_path)
    made = step(to_openvino, source, tmp_path)
    feeds = models.feeds(onnx.load(source.path), batch=3)
    compiled = to_openvino.compile_for_check(made.path, threads=1)
    got = {n: compiled(feeds)[p] for p in compiled.outputs for n in p.get_names()}
    for key, want in run_onnx(onnx_session(source.path), feeds).items():
        np.testing.assert_allclose(got[key], want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["convnet", "lstm", "transformer_block", "if_subgraph"])
def test_two_conversions_give_the_same_bytes(name, tmp_path):
    source = named(name, tmp_path)
    first, second = (step(to_openvino, source, tmp_path) for _ in range(2))
    assert first.digest() == second.digest()


def test_another_process_gives_the_same_bytes(tmp_path):
    source = named("transformer_block", tmp_path)
    made = step(to_openvino, source, tmp_path)
    code = (
        "import sys; from pathlib import Path; from exporters import to_openvino;"
        "from runtimes.types import Artifact; from tests.exporters.helpers import step;"
        "print(step(to_openvino, Artifact.load(Path(sys.argv[1])), Path(sys.argv[2])).digest())"
    )
    argv = [sys.executable, "-c", code, str(source.root), str(tmp_path / "other")]
    told = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == made.digest()


def test_layers_keep_the_source_names(tmp_path):
    names = layer_names(step(to_openvino, named("convnet", tmp_path), tmp_path).path)
    assert {"stem", "block.conv1", "block.relu1", "conv3", "image"} <= names
    assert not [name for name in names if "onnx:" in name]


def test_names_and_metadata_reach_the_engine(tmp_path):
    made = step(to_openvino, named("convnet", tmp_path), tmp_path)
    model = ov.Core().read_model(str(made.path))
    assert [p.get_any_name() for p in model.inputs] == ["image"]
    assert [p.get_any_name() for p in model.outputs] == ["logits"]
    assert model.get_rt_info(["framework", "stride"]).astype(str) == models.METADATA["stride"]
    assert made.facts["metadata"] == models.METADATA


def test_half_stores_half_the_bytes(tmp_path):
    source = named("mlp", tmp_path)
    full, half = (step(to_openvino, source, tmp_path, precision=p) for p in ("f32", "f16"))
    sizes = [(a.root / "model.bin").stat().st_size for a in (full, half)]
    assert sizes[1] == pytest.approx(sizes[0] / 2, rel=0.01)


def test_the_xml_is_smaller_than_openvinos_own(tmp_path):
    source = named("convnet", tmp_path)
    made = step(to_openvino, source, tmp_path)
    ov.save_model(ov.Core().read_model(str(made.path)), tmp_path / "own.xml", False)
    assert made.path.stat().st_size < 0.6 * (tmp_path / "own.xml").stat().st_size


def layer_of(kind, x, spelled):
    """A layer of this kind that reads `x`, with what the text leaves out or with something else."""
    ops, default = ov.opset13, spelled == "default"
    pad = {"auto_pad": "explicit" if default else "valid"}
    grouped = kind == "GroupConvolution"
    weight = np.ones([1, 4, 4, 1, 1] if grouped else [4, 4, 1, 1], np.float32)
    zeros, ones, two = [0, 0], [1, 1], [2, 2]
    match kind:
        case "MatMul":
            return ops.matmul(x, x, not default, not default)
        case "FakeQuantize":
            return ops.fake_quantize(x, 0.0, 1.0, 0.0, 1.0, 256)
        case "MaxPool":
            return ops.max_pool(x, ones, ones, zeros, zeros, two, **pad)
        case "AvgPool":
            return ops.avg_pool(x, ones, zeros, zeros, two, exclude_pad=True, **pad)
        case "Convolution" | "GroupConvolution":
            make = ops.group_convolution if grouped else ops.convolution
            return make(x, weight, ones, zeros, zeros, ones, **pad)
        case "ConvolutionBackpropData":
            given = {"pads_begin": zeros, "pads_end": zeros}
            return ops.convolution_backprop_data(x, weight, ones, **given, **pad)
    named = {"auto_broadcast": "numpy" if default else "none"}
    return getattr(ops, kind.lower())(x, x, **named)


def model_of(kinds, spelled):
    """Each kind of layer on an input of its own."""
    given = [ov.opset13.parameter([1, 4, 4, 4], np.float32) for _ in kinds]
    made = [layer_of(kind, x, spelled) for kind, x in zip(kinds, given, strict=True)]
    for kind, layer in zip(kinds, made, strict=True):
        layer.set_friendly_name(kind)
    return ov.Model([ov.opset13.result(layer) for layer in made], given, "kinds")


@pytest.mark.parametrize("spelled", ["default", "other"])
def test_attributes_that_the_xml_leaves_out_are_read_as_they_were(spelled, tmp_path):
    path = tmp_path / "m.xml"
    ov.save_model(model_of(_DEFAULTS, spelled), path, compress_to_fp16=False)
    before = {op.get_friendly_name(): op.get_attributes() for op in read(path)}
    size = path.stat().st_size
    write_xml(ET.parse(path).getroot(), path)
    assert path.stat().st_size < size
    left = {d for data in ET.parse(path).iter("data") for d in data.items()}
    dropped = {d for kind in _DEFAULTS.values() for d in kind.items()}
    assert not left & dropped
    after = {op.get_friendly_name(): op.get_attributes() for op in read(path)}
    assert {k: before[k] for k in _DEFAULTS} == {k: after[k] for k in _DEFAULTS}


def read(path):
    return ov.Core().read_model(path).get_ops()


def test_bounds_become_partial_shapes(tmp_path):
    shapes = {"image": {"batch": (1, 4, 8)}}
    made = step(to_openvino, named("convnet", tmp_path), tmp_path, shapes=shapes)
    batch = ov.Core().read_model(str(made.path)).inputs[0].partial_shape[0]
    assert (batch.min_length, batch.max_length) == (1, 8)
    assert made.inputs[0].shape[0] == "batch"


def test_one_size_is_static(tmp_path):
    shapes = {"image": {"batch": (4, 4, 4)}}
    made = step(to_openvino, named("convnet", tmp_path), tmp_path, shapes=shapes)
    assert list(ov.Core().read_model(str(made.path)).inputs[0].shape) == [4, 1, 28, 28]
    assert made.outputs[0].shape == (4, 10)


def custom() -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 2]) for n in "xy")
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="fine"),
        helper.make_node("Spin", ["a"], ["y"], name="odd", domain="my.ops"),
    ]
    ids = [helper.make_opsetid("", 21), helper.make_opsetid("my.ops", 1)]
    graph = helper.make_graph(nodes, "g", [x], [y])
    return helper.make_model(graph, opset_imports=ids, ir_version=10)


def test_an_unknown_operator_is_refused_by_name(tmp_path):
    source = artifact_of(custom(), tmp_path)
    (found,) = to_openvino.refusals(source, to_openvino.Options(), None)
    assert (found.where, found.why) == ("odd", "OpenVINO cannot convert my.ops.Spin")
    with pytest.raises(BuildFailed, match=r"my\.ops\.Spin"):
        step(to_openvino, source, tmp_path)


def test_no_refusals_for_what_converts(tmp_path):
    source = named("gru", tmp_path)
    assert to_openvino.refusals(source, to_openvino.Options(), None) == []


def dynamic_squeeze() -> onnx.ModelProto:
    """Squeeze without axes on free dimensions: its rank is not known before it runs."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["a", "b", 1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["a", "b"])
    w = onnx.numpy_helper.from_array(np.ones((2, 2), np.float32), "w")
    nodes = [
        helper.make_node("Squeeze", ["x"], ["s"], name="squeeze"),
        helper.make_node("MatMul", ["s", "w"], ["y"], name="mul"),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y], [w])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_what_openvino_cannot_run_is_reported(tmp_path):
    source = artifact_of(dynamic_squeeze(), tmp_path)
    with pytest.raises(BuildFailed, match="OpenVINO"):
        step(to_openvino, source, tmp_path)


def test_a_second_stage_keeps_the_names_it_was_given(tmp_path):
    made = step(to_openvino, named("convnet", tmp_path), tmp_path)
    given = layer_names(made.path)
    save_ir(ov.Core().read_model(str(made.path)), tmp_path / "again.xml", given=given)
    assert layer_names(tmp_path / "again.xml") == given


def test_the_onnx_file_may_be_what_openvino_reads(tmp_path):
    source = named("convnet", tmp_path)
    made = step(to_openvino, source, tmp_path, container="onnx")
    assert made.path.name == "model.onnx"
    assert made.facts["container"] == "onnx"
    feeds = models.feeds(onnx.load(source.path), batch=3)
    compiled = to_openvino.compile_for_check(made.path, threads=1)
    got = {n: compiled(feeds)[p] for p in compiled.outputs for n in p.get_names()}
    for key, want in run_onnx(onnx_session(source.path), feeds).items():
        np.testing.assert_allclose(got[key], want, rtol=1e-3, atol=1e-4)
