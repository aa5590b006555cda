"""SmoothQuant: the same function before and after, and outliers that no longer cost accuracy."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from compressor.quantization import smooth
from compressor.quantization.calibration import channels
from compressor.quantization.onnx_static import planned, smooth_outliers
from exporters._schemes import ONNXRUNTIME
from exporters.base import Keep
from tests import models
from tests.compressor.quantization.helpers import apply, prepared, sqnr_db

FACTOR = 60.0  # in large BERTs outliers are 20 to 100 times the rest


def with_outliers(seed: int = 0) -> onnx.ModelProto:
    """`transformer_block`, the same function, with two loud channels behind each norm."""
    model = models.transformer_block(seed)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    readers = {"norm1": ("q", "k", "v"), "norm2": ("mlp1",)}
    for norm, layers in readers.items():
        scale = np.ones(32, np.float32)
        scale[[3, 17]] = FACTOR
        for name, by in [(f"{norm}.weight", scale), (f"{norm}.bias", scale)]:
            put(weights[name], numpy_helper.to_array(weights[name]) * by)
        for name in layers:
            tensor = weights[f"{name}.weight"]
            put(tensor, numpy_helper.to_array(tensor) / scale[:, None])
    return model


def put(tensor: onnx.TensorProto, values: np.ndarray) -> None:
    made = numpy_helper.from_array(values.astype(np.float32), tensor.name)
    tensor.CopyFrom(made)


@pytest.fixture
def outliers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.ALL, "outliers", with_outliers)


def smoothed(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[smooth.Smoothed]]:
    copy, graph, plan = planned(deepcopy(model), ONNXRUNTIME, Keep())
    data = lambda: iter([models.feeds(model, 16)])  # noqa: E731
    return copy, smooth_outliers(copy, graph, plan, ONNXRUNTIME, data)


def test_the_function_stays_and_norms_take_the_factors():
    model = with_outliers()
    feeds = models.feeds(model, 8, seed=3)
    made, done = smoothed(model)
    want, got = models.run(model, feeds), models.run(made, feeds)
    np.testing.assert_allclose(got["logits"], want["logits"], rtol=1e-3, atol=1e-4)
    by_layer = {name: group for group in done for name in group.layers}
    assert not by_layer["q"].inserted
    assert by_layer["q"] is by_layer["v"]
    assert by_layer["mlp1"].gain_db > 10
    assert len(made.graph.node) == len(model.graph.node)


def test_what_others_read_too_gets_a_product_of_its_own():
    model = with_outliers()
    value = onnx.helper.make_tensor_value_info("norm1.out", onnx.TensorProto.FLOAT, None)
    model.graph.output.append(value)
    made, done = smoothed(model)
    assert next(group for group in done if "q" in group.layers).inserted
    assert len(made.graph.node) == len(model.graph.node) + 1
    feeds = models.feeds(model, 8, seed=3)
    want, got = models.run(model, feeds), models.run(made, feeds)
    np.testing.assert_allclose(got["norm1.out"], want["norm1.out"], rtol=1e-6)
    np.testing.assert_allclose(got["logits"], want["logits"], rtol=1e-3, atol=1e-4)


def test_nothing_is_done_without_outliers():
    assert all(group.gain_db > 3 for group in smoothed(models.transformer_block())[1])


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_outliers_no_longer_cost_accuracy(target, outliers, tmp_path):
    given = prepared(tmp_path, "outliers", target)
    plain = apply(tmp_path / "a", given, "quantize_static", smooth="off")
    made = apply(tmp_path / "b", given, "quantize_static")
    assert "SmoothQuant" in " ".join(made.facts["notes"])
    assert sqnr_db(given, made) > max(25, sqnr_db(given, plain) + 8)


def test_statistics_per_channel_are_those_of_all_samples():
    model = models.transformer_block()
    feeds = models.feeds(model, 8)
    halves = [{k: v[:3] for k, v in feeds.items()}, {k: v[3:] for k, v in feeds.items()}]
    (found,) = channels(model, {"tokens": 3}, lambda: iter(halves)).values()
    tokens = feeds["tokens"]
    np.testing.assert_allclose(found.low, tokens.min(axis=(0, 1)), rtol=1e-6)
    np.testing.assert_allclose(found.high, tokens.max(axis=(0, 1)), rtol=1e-6)
    np.testing.assert_allclose(found.square, (tokens**2).mean(axis=(0, 1)), rtol=1e-5)
