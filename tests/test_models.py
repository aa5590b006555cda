"""The test models themselves: valid, runnable, seeded, learnable."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests import models

EVERY = pytest.mark.parametrize("name", sorted(models.ALL))


@EVERY
def test_valid_and_runs_at_two_batch_sizes(name, tmp_path):
    model = onnx.load(models.save(models.ALL[name](), tmp_path / "model.onnx"))
    for batch in (1, 5):
        outputs = models.run(model, models.feeds(model, batch))
        assert list(outputs) == [output.name for output in model.graph.output]
        for value in outputs.values():
            assert len(value) == batch
            assert np.isfinite(value).all()
            assert np.ptp(value) > 1e-3


@EVERY
def test_same_bytes_every_time(name):
    build = models.ALL[name]
    assert build().SerializeToString() == build().SerializeToString()


@EVERY
def test_each_sample_has_its_own_answer(name):
    model = models.ALL[name]()
    together = models.feeds(model, 3)
    alone = {key: value[1:2] for key, value in together.items()}
    for key, value in models.run(model, alone).items():
        np.testing.assert_allclose(value, models.run(model, together)[key][1:2], atol=1e-4)


@EVERY
def test_nodes_are_named_once(name):
    names = [node.name for node in models.ALL[name]().graph.node]
    assert all(names)
    assert len(set(names)) == len(names)


def test_if_answers_bright_and_dark_differently():
    model = models.if_subgraph()
    image = models.feeds(model, 1)["image"]
    bright, dark = (models.run(model, {"image": image * k})["logits"] for k in (1.0, 0.1))
    assert np.abs(bright - dark).max() > 0.1


def test_external_data_lies_beside_the_file(tmp_path):
    proto = models.external_data(tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx.data").stat().st_size > 4 * 784 * 64
    assert proto.ByteSize() < 3_000
    whole = onnx.load(tmp_path / "model.onnx")
    inputs = models.feeds(whole)
    expected = models.run(models.mlp(), inputs)["logits"]
    np.testing.assert_array_equal(models.run(whole, inputs)["logits"], expected)


def test_constant_weights_equal_the_mlp():
    model = models.constant_weights()
    assert not model.graph.initializer
    inputs = models.feeds(model)
    expected = models.run(models.mlp(), inputs)["logits"]
    np.testing.assert_array_equal(models.run(model, inputs)["logits"], expected)


@pytest.mark.parametrize("opset", [13, 17, 21])
def test_convnet_at_older_opsets(opset, tmp_path):
    model = onnx.load(models.save(models.convnet(opset=opset), tmp_path / "m.onnx"))
    assert models.run(model, models.feeds(model))["logits"].shape == (4, 10)


@pytest.mark.parametrize("build", [models.mlp, models.convnet, models.depthwise])
def test_a_fitted_head_classifies_images_it_has_not_seen(build):
    model = models.trained(build(), models.fashion_like(1000, seed=1))
    unseen = models.fashion_like(500, seed=2)
    logits = models.run(model, {"image": unseen["image"]})["logits"]
    assert 0.7 < (logits.argmax(1) == unseen["labels"]).mean() <= 1


def test_a_fitted_head_classifies_real_digits():
    data = models.digits()
    model = models.trained(models.convnet(size=8), {k: v[:1200] for k, v in data.items()})
    logits = models.run(model, {"image": data["image"][1200:]})["logits"]
    assert (logits.argmax(1) == data["labels"][1200:]).mean() > 0.75


@pytest.mark.torch
@pytest.mark.parametrize(
    "name", ["tiny_gru", "tiny_lstm", "tiny_mlp", "tiny_resnet", "tiny_unet", "tiny_vit_block"]
)
def test_torch_models_run_and_train(name):
    torch = pytest.importorskip("torch", reason="torch factories need the torch extra")
    from tests import torch_models

    torch.manual_seed(0)
    module = getattr(torch_models, name)()
    inputs = torch_models.INPUTS[name].values()
    out = module(
        *[torch.rand([4 if d == "batch" else 5 if d == "time" else d for d in s]) for s in inputs]
    )
    assert len(out) == 4
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
