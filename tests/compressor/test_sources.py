"""What may be handed in, and what everything else is told to be."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compressor.sources import SourceSpec, identify, open_source, source_factory, source_kind
from runtimes.errors import Unsupported, UsageError
from tests import models


def opened(path: Path, tmp_path: Path, **asked):
    return open_source(SourceSpec(model=path, **asked), tmp_path / "artifact")


def refused(path: Path, tmp_path: Path, kind: type = UsageError):
    with pytest.raises(kind) as caught:
        opened(path, tmp_path)
    return caught.value


@pytest.fixture
def convnet(tmp_path) -> Path:
    return models.save(models.convnet(), tmp_path / "model.onnx")


def test_an_onnx_file_becomes_an_artifact_and_is_not_touched(convnet, tmp_path):
    before = hashlib.sha256(convnet.read_bytes()).hexdigest()
    made = opened(convnet, tmp_path)
    assert (made.format, made.entry) == ("onnx", "model.onnx")
    assert made.facts["metadata"] == models.METADATA
    assert not made.facts["quantized"]
    assert hashlib.sha256(convnet.read_bytes()).hexdigest() == before
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["model.onnx"]


@pytest.mark.parametrize("name", models.ALL)
def test_the_artifact_computes_what_the_file_does(name, tmp_path):
    model = models.ALL[name]()
    made = opened(models.save(model, tmp_path / "given.onnx"), tmp_path)
    feeds = models.feeds(model, batch=3)
    want, got = models.run(model, feeds), models.run(onnx.load(made.path), feeds)
    for key in want:
        np.testing.assert_allclose(got[key], want[key], rtol=1e-4, atol=1e-5)


def test_external_data_is_followed(tmp_path):
    models.external_data(tmp_path / "big.onnx")
    made = opened(tmp_path / "big.onnx", tmp_path)
    assert list(made.files) == ["model.onnx"]
    assert made.facts["parameters"] == 55050


def test_old_opsets_are_raised_and_said(tmp_path):
    path = models.save(models.convnet(opset=13), tmp_path / "old.onnx")
    made = opened(path, tmp_path)
    assert made.facts["opset"] == 21
    assert "operator set raised from 13 to 21" in made.facts["notes"]


def test_a_quantized_model_is_said_to_be_one(tmp_path):
    made = opened(models.save(models.already_quantized(), tmp_path / "q.onnx"), tmp_path)
    assert made.facts["quantized"]
    assert any("already quantized" in note for note in made.facts["notes"])


def test_subgraphs_are_said(tmp_path):
    made = opened(models.save(models.if_subgraph(), tmp_path / "if.onnx"), tmp_path)
    assert any("subgraphs (choice)" in note for note in made.facts["notes"])


def test_a_shape_may_be_narrowed(convnet, tmp_path):
    made = opened(convnet, tmp_path, shapes={"image": {"batch": (4, 4, 4)}})
    assert (made.inputs[0].shape, made.outputs[0].shape) == ((4, 1, 28, 28), (4, 10))


def test_inputs_may_pin_and_name_dimensions(tmp_path):
    model = models.convnet()
    model.graph.input[0].type.tensor_type.shape.dim[0].ClearField("dim_param")
    path = models.save(model, tmp_path / "m.onnx")
    made = opened(path, tmp_path, inputs={"image": {"shape": ["N", 1, 28, 28]}})
    assert made.inputs[0].shape == ("N", 1, 28, 28)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [({"imag": ["batch", 1, 28, 28]}, "did you mean image"), ({"image": [4, 3, 28, 28]}, "shape"),
     ({"image": [1, 28, 28]}, "shape")],
)  # fmt: skip
def test_inputs_that_do_not_fit_are_refused(convnet, tmp_path, inputs, said):
    with pytest.raises(UsageError, match=said):
        opened(convnet, tmp_path, inputs=inputs)


def test_outputs_of_a_file_keep_their_names(convnet, tmp_path):
    with pytest.raises(UsageError, match="keep their names"):
        opened(convnet, tmp_path, outputs=["scores"])


# ── bad files ────────────────────────────────────────────────────────────────────────────────────


def test_a_missing_file_names_the_closest(convnet, tmp_path):
    error = refused(tmp_path / "modle.onnx", tmp_path)
    assert "no such file" in error.what
    assert "model.onnx" in error.fix


def test_a_truncated_file(convnet, tmp_path):
    convnet.write_bytes(convnet.read_bytes()[:20000])
    assert "truncated" in refused(convnet, tmp_path).what


@pytest.mark.parametrize("content", [b"", b"hello world, this is text\n", b"\x00" * 64])
def test_something_else(content, tmp_path):
    path = tmp_path / "thing.bin"
    path.write_bytes(content)
    assert "not a" in refused(path, tmp_path).what


def test_external_data_that_is_missing(tmp_path):
    models.external_data(tmp_path / "big.onnx")
    (tmp_path / "big.onnx.data").rename(tmp_path / "elsewhere")
    assert "big.onnx.data, which is missing" in refused(tmp_path / "big.onnx", tmp_path).what
    with pytest.raises(UsageError, match="missing"):
        identify(SourceSpec(model=tmp_path / "big.onnx"))


def test_external_data_that_is_cut_off(tmp_path):
    models.external_data(tmp_path / "big.onnx")
    data = tmp_path / "big.onnx.data"
    data.write_bytes(data.read_bytes()[:1000])
    assert "external data" in refused(tmp_path / "big.onnx", tmp_path).what


def test_external_data_outside_the_folder(tmp_path):
    (tmp_path / "in").mkdir()
    model = models.external_data(tmp_path / "in" / "big.onnx")
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../secret"
    (tmp_path / "in" / "big.onnx").write_bytes(model.SerializeToString())
    assert "outside" in refused(tmp_path / "in" / "big.onnx", tmp_path).what


@pytest.mark.parametrize("opset", [27, 99])
def test_an_opset_too_new(opset, tmp_path):
    model = models.mlp()
    model.opset_import[0].version = opset
    (tmp_path / "new.onnx").write_bytes(model.SerializeToString())
    error = refused(tmp_path / "new.onnx", tmp_path, Unsupported)
    assert error.exit_code == 4
    assert f"opset {opset}" in str(error)
    assert "export with opset" in error.fix


def test_an_invalid_graph(tmp_path):
    model = models.mlp()
    model.graph.node[0].op_type = "Flaten"
    (tmp_path / "bad.onnx").write_bytes(model.SerializeToString())
    error = refused(tmp_path / "bad.onnx", tmp_path)
    assert "not valid" in error.what
    assert "Flaten" in error.what


def test_outputs_that_are_no_tensors(tmp_path):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    y = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, [2])
    node = helper.make_node("SequenceConstruct", ["x"], ["y"])
    model = helper.make_model(helper.make_graph([node], "g", [x], [y]))
    model.opset_import[0].version = 21
    (tmp_path / "s.onnx").write_bytes(model.SerializeToString())
    error = refused(tmp_path / "s.onnx", tmp_path, Unsupported)
    assert "sequence" in str(error)
    assert "zipmap" in error.fix


def zipped(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"\x80\x02}.")
    return path


def test_what_other_frameworks_write_is_named_with_its_conversion(tmp_path):
    saved_model = tmp_path / "saved"
    saved_model.mkdir()
    (saved_model / "saved_model.pb").write_bytes(b"\x08\x01")
    (tmp_path / "m.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    (tmp_path / "m.tflite").write_bytes(b"\x1c\x00\x00\x00TFL3" + bytes(100))
    (tmp_path / "m.engine").write_bytes(b"ptrt" + bytes(100))
    (tmp_path / "m.xml").write_bytes(b'<?xml version="1.0"?><net name="x"/>')
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(100))
    zipped(tmp_path / "m.keras", "config.json", "metadata.json", "model.weights.h5")
    expected = {
        "saved": ("SavedModel", "tf2onnx"),
        "m.h5": ("Keras", "tf2onnx"),
        "m.keras": ("Keras", "tf2onnx"),
        "m.tflite": ("TensorFlow Lite", "tf2onnx"),
        "m.engine": ("TensorRT engine", "ONNX file"),
        "m.xml": ("OpenVINO", "ONNX file"),
        "m.gguf": ("GGUF", "ONNX"),
    }
    for name, (kind, fix) in expected.items():
        error = refused(tmp_path / name, tmp_path)
        assert kind in error.what, name
        assert fix in error.fix, name
        assert error.exit_code == 2


def test_objects_that_are_no_model(tmp_path):
    with pytest.raises(UsageError, match="not a model we take"):
        open_source(SourceSpec(model=np.zeros(3)), tmp_path)
    with pytest.raises(UsageError, match=r"onnx\.save"):
        open_source(SourceSpec(model=models.mlp()), tmp_path)


def test_weights_beside_a_file_are_refused(convnet, tmp_path):
    with pytest.raises(UsageError, match="weights belong to a factory"):
        opened(convnet, tmp_path, weights="w.safetensors")


# ── identity ─────────────────────────────────────────────────────────────────────────────────────


def test_identity_follows_content_not_place(convnet, tmp_path):
    other = tmp_path / "copy.onnx"
    other.write_bytes(convnet.read_bytes())
    assert identify(SourceSpec(model=convnet)) == identify(SourceSpec(model=other))
    models.save(models.convnet(seed=1), other)
    assert identify(SourceSpec(model=convnet)) != identify(SourceSpec(model=other))


def test_identity_covers_external_data_and_what_was_asked(tmp_path):
    models.external_data(tmp_path / "big.onnx")
    before = identify(SourceSpec(model=tmp_path / "big.onnx"))
    data = bytearray((tmp_path / "big.onnx.data").read_bytes())
    data[0] ^= 1
    (tmp_path / "big.onnx.data").write_bytes(data)
    assert identify(SourceSpec(model=tmp_path / "big.onnx")) != before
    fixed = SourceSpec(model=tmp_path / "big.onnx", shapes={"image": {"batch": (1, 1, 1)}})
    assert identify(fixed) != identify(SourceSpec(model=tmp_path / "big.onnx"))


def write_code(folder: Path) -> None:
    (folder / "net.py").write_text("from parts import layer\n\ndef build():\n    return layer()\n")
    (folder / "parts.py").write_text("import numpy\n\ndef layer():\n    return 1\n")
    (folder / "unrelated.py").write_text("x = 1\n")


def test_identity_of_a_factory_covers_what_it_imports_from_its_folder(tmp_path):
    write_code(tmp_path)
    spec = SourceSpec(model="net:build", base_dir=tmp_path)
    before = identify(spec)
    assert sorted(before["code"]) == ["net.py", "parts.py"]
    (tmp_path / "unrelated.py").write_text("x = 2\n")
    assert identify(spec) == before
    (tmp_path / "parts.py").write_text("def layer():\n    return 2\n")
    assert identify(spec) != before


def test_identity_follows_packages_and_relative_imports(tmp_path):
    package = tmp_path / "nets"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("from . import b\nfrom .c import d\n")
    (package / "b.py").write_text("")
    (package / "c.py").write_text("d = 1\n")
    found = identify(SourceSpec(model="nets.a:build", base_dir=tmp_path))["code"]
    assert sorted(found) == ["nets/__init__.py", "nets/a.py", "nets/b.py", "nets/c.py"]


def test_missing_weights_are_named_before_anything_is_built(tmp_path):
    write_code(tmp_path)
    spec = SourceSpec(model="net:build", weights="w.safetensors", base_dir=tmp_path)
    with pytest.raises(UsageError, match="no such file"):
        identify(spec)


def test_kinds_and_factories(convnet, tmp_path):
    assert source_kind(SourceSpec(model=str(convnet))) == "onnx"
    assert source_kind(SourceSpec(model="net:build", base_dir=tmp_path)) == "factory"
    assert source_factory(SourceSpec(model=convnet)) is None


def test_weights_as_inputs_are_no_inputs(tmp_path):
    model = models.mlp()
    weight = numpy_helper.to_array(model.graph.initializer[0])
    info = helper.make_tensor_value_info(model.graph.initializer[0].name, 1, weight.shape)
    model.graph.input.append(info)
    made = opened(models.save(model, tmp_path / "old.onnx"), tmp_path)
    assert [spec.name for spec in made.inputs] == ["image"]
