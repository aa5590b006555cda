"""The first example's own files: splits, download, weights, recipe, ONNX export."""

from __future__ import annotations

import gzip
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "01_image_classifier"


@pytest.fixture
def load(monkeypatch):
    """Import one of the example's modules by name, as a recipe in its folder would."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(EXAMPLE)):
            del sys.modules[name]


@pytest.fixture
def data(load):
    module = load("fashion_data")
    try:
        module.find()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    return module


def _rows(arrays):
    return {image.tobytes() for image in arrays["image"]}


def test_splits_share_no_image(data):
    training, selection, evaluation = map(
        _rows, (data.training(), data.selection(), data.evaluation())
    )
    assert (len(training), len(selection), len(evaluation)) == (55_000, 5_000, 10_000)
    assert not training & selection
    assert not (training | selection) & evaluation
    assert _rows(data.calibration()) < training


def test_images_are_in_0_to_1_with_all_ten_classes(data):
    found = data.selection()
    assert found["image"].dtype == np.float32
    assert found["image"].shape == (5_000, 1, 28, 28)
    assert (found["image"].min(), found["image"].max()) == (0, 1)
    assert set(found["labels"]) == set(range(10))


def test_missing_data_says_how_to_get_it(load, monkeypatch, tmp_path):
    monkeypatch.setenv("FASHION_MNIST_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="apt-get install dataset-fashion-mnist"):
        load("fashion_data").training()


def test_download_keeps_nothing_with_other_content(load, monkeypatch, tmp_path):
    module = load("fashion_data")
    for name in module.SHA256:
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(b"something else"))
    monkeypatch.setattr(module, "URL", tmp_path.as_uri() + "/")
    with pytest.raises(ValueError, match="SHA-256 differs"):
        module.download(tmp_path / "got")
    assert not list((tmp_path / "got").iterdir())


def test_the_recipe_is_valid_and_its_files_are_there():
    from compressor.recipe import load_recipe

    recipe = load_recipe(EXAMPLE / "recipe.yaml")
    assert set(recipe.targets) == {"openvino", "onnxruntime"}
    assert (EXAMPLE / str(recipe.model.weights)).stat().st_size < 3_000_000


def test_the_readme_tells_packages_and_time_as_they_were_recorded():
    from compressor.record import load_record

    record = load_record(ROOT / "benchmarks" / "example_01" / "demo.json")
    text = (EXAMPLE / "README.md").read_text()
    minutes, seconds = divmod(round(record.seconds), 60)
    assert f"**Time.** {minutes} min {seconds} s " in text
    told = text[text.index("**Packages.**") : text.index("**From Python**")]
    for target in record.targets:
        shipped = target.candidate(target.shipped)
        smaller = 1 - shipped.package_bytes / record.reference.size_bytes
        assert f"{smaller:.1%}".replace("%", " %") in told
        assert f"{shipped.package_bytes / 1000:.0f}" in told


@pytest.mark.torch
def test_weights_score_as_recorded(load, data):
    torch = pytest.importorskip("torch", reason="the example's model needs the torch extra")
    from safetensors.torch import load_file

    model = load("fashion_resnet").build()
    model.load_state_dict(load_file(EXAMPLE / "resnet.safetensors"))
    some = {name: array[:2_000] for name, array in data.evaluation().items()}
    with torch.inference_mode():
        logits = model.eval()(torch.from_numpy(some["image"])).numpy()
    recorded = json.loads((EXAMPLE / "train.json").read_text())["test_top1"]
    assert recorded >= 0.925
    assert (logits.argmax(1) == some["labels"]).mean() == pytest.approx(recorded, abs=0.015)


@pytest.mark.torch
def test_the_onnx_path_has_free_batch_names_and_torch_s_answers(load, data, tmp_path):
    torch = pytest.importorskip("torch", reason="exporting needs the torch extra")
    pytest.importorskip("onnxscript", reason="exporting needs the torch extra")
    import onnx
    from safetensors.torch import load_file

    from tests import models

    load("export_onnx").export(tmp_path / "model.onnx")
    proto = onnx.load(tmp_path / "model.onnx")
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert {p.key for p in proto.metadata_props} == {"names"}
    image = data.selection()["image"][:5]
    module = load("fashion_resnet").build()
    module.load_state_dict(load_file(EXAMPLE / "resnet.safetensors"))
    expected = module.eval()(torch.from_numpy(image)).detach().numpy()
    np.testing.assert_allclose(models.run(proto, {"image": image})["logits"], expected, atol=1e-4)


def test_the_readmes_show_what_the_recorded_runs_printed() -> None:
    from compressor.record import load_record
    from compressor.report import terminal

    figures = ROOT / "benchmarks" / "example_01"
    readme = (ROOT / "README.md").read_text()
    for name in ("demo", "tight"):
        for line in filter(None, terminal(load_record(figures / f"{name}.json"))):
            assert f"    {line}\n" in readme
    example = (ROOT / "examples" / "01_image_classifier" / "README.md").read_text()
    for line in filter(None, terminal(load_record(figures / "demo.json"))):
        assert f"    {line}\n" in example
