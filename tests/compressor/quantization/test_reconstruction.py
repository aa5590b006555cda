"""Reconstruction never loses to nearest rounding; Gram matrices are those of the real inputs."""

from __future__ import annotations

import time

import numpy as np
import onnx
import pytest

from compressor.quantization import reconstruction
from compressor.quantization.onnx_weights import quantize_int4, quantize_int8
from compressor.quantization.reconstruction import damage, limits, reconstruct
from compressor.quantization.reconstruction_onnx import Reader, collect_grams_onnx
from compressor.quantization.reconstruction_rows import (
    conv_rows,
    state_rows,
    transposed_conv_rows,
    window,
)
from tests import models
from tests.net import Net


def inputs(columns: int, rows: int, seed: int = 0) -> np.ndarray:
    """Correlated, positive, of uneven power: what a layer behind a ReLU sees."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((columns, columns)) * rng.lognormal(0, 0.5, columns)
    return np.maximum(rng.standard_normal((rows, columns)) @ mix / np.sqrt(columns), 0)


def weight(*shape: int, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * rng.uniform(0.5, 2, shape[0]).reshape(-1, *[1] * (
        len(shape) - 1
    ))).astype(np.float32)  # fmt: skip


@pytest.mark.parametrize("bits", [8, 4, 3])
def test_the_output_error_is_half_that_of_nearest(bits):
    x, w = inputs(96, 600), weight(40, 96)
    gram = x.T @ x
    nearest = damage(w, 0, *reconstruct(w, 0, None, bits), gram)
    made = reconstruct(w, 0, gram, bits)
    assert damage(w, 0, *made, gram) < nearest / 2
    low, high = limits(bits)
    assert made[0].min() >= low
    assert made[0].max() <= high


def test_the_gram_matrix_is_given_back_as_it_was():
    x, w = inputs(24, 100), weight(8, 24)
    gram = x.T @ x
    before = gram.copy()
    reconstruct(w, 0, gram, 4)
    assert (gram == before).all()


@pytest.mark.parametrize("panel", [1, 5, 16, 40])
def test_the_factor_in_place_is_cholesky_s(panel, monkeypatch):
    monkeypatch.setattr(reconstruction, "_PANEL", panel)
    x = inputs(24, 200)
    gram = x.T @ x + np.eye(24)
    factor = gram.copy()
    reconstruction._cholesky(factor)
    np.testing.assert_allclose(factor, np.linalg.cholesky(gram), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("bits", [8, 4])
def test_no_channel_is_worse_than_nearest(axis, bits):
    x, w = inputs(32, 400), weight(48, 32)
    w = np.ascontiguousarray(np.moveaxis(w, 0, axis))
    gram = x.T @ x
    rounding = quantize_int4 if bits == 4 else quantize_int8
    for one in range(48):
        row = np.take(w, [one], axis)
        nearest = damage(row, axis, *rounding(row, axis), gram)
        assert damage(row, axis, *reconstruct(row, axis, gram, bits), gram) <= nearest * 1.001


def test_real_outputs_move_as_little_as_the_matrix_says():
    x, w = inputs(64, 500), weight(16, 64)
    integers, scale = reconstruct(w, 0, x.T @ x, 4)
    error = x @ (w - integers * scale[:, None]).T
    want = (error**2).sum() / ((x @ w.T) ** 2).sum()
    assert damage(w, 0, integers, scale, x.T @ x) == pytest.approx(want, rel=1e-4)


def test_without_a_matrix_it_rounds_to_nearest():
    w = weight(8, 32)
    integers, scale = reconstruct(w, 0, None, 4)
    np.testing.assert_array_equal(integers, np.clip(np.rint(w / scale[:, None]), -8, 7))
    assert damage(w, 0, integers, scale, None) <= 1.02 * damage(w, 0, *quantize_int4(w, 0), None)


def test_groups_have_matrices_of_their_own():
    """A depthwise convolution: each channel is what it would be alone."""
    w = weight(12, 1, 3, 3)
    grams = np.stack([(x := inputs(9, 100, seed)).T @ x for seed in range(12)])
    integers, scale = reconstruct(w, 0, grams, 4)
    for one in range(12):
        alone = reconstruct(w[one : one + 1], 0, grams[one], 4)
        np.testing.assert_array_equal(integers[one : one + 1], alone[0])
        assert scale[one] == alone[1][0]


def test_a_given_scale_stays():
    x, w = inputs(32, 200), weight(8, 32)
    _, scale = quantize_int4(w, 0)
    integers, same = reconstruct(w, 0, x.T @ x, 4, scale)
    np.testing.assert_array_equal(same, scale)
    assert damage(w, 0, integers, scale, x.T @ x) < damage(w, 0, *quantize_int4(w, 0), x.T @ x)


def test_blocks_have_scales_of_their_own():
    x, w = inputs(64, 300), weight(8, 64)
    w[:, :16] *= 10  # one scale for all would leave nothing of the others
    gram = x.T @ x
    integers, scale = reconstruct(w, 0, gram, 4, block=16)
    assert scale.shape == (8, 4)
    whole = damage(w, 0, *reconstruct(w, 0, gram, 4), gram)
    assert damage(w, 0, integers, scale, gram, block=16) < whole / 2


def test_dead_inputs_and_zero_rows_are_taken():
    x, w = inputs(16, 50), weight(4, 16)
    x[:, 3] = 0
    w[2] = 0
    integers, scale = reconstruct(w, 0, x.T @ x, 4)
    assert np.isfinite(scale).all()
    assert not integers[2].any()
    reconstruct(w, 0, np.zeros((16, 16)), 4)


def test_the_same_input_gives_the_same_integers():
    x, w = inputs(80, 300), weight(30, 80)
    first, second = (reconstruct(w, 0, x.T @ x, 4) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])


def test_a_large_matrix_takes_seconds():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((4000, 3072)).astype(np.float32), weight(768, 3072)
    gram = x.T @ x
    began = time.process_time()
    integers, _ = reconstruct(w, 0, gram, 4)
    assert time.process_time() - began < 30  # 4 s on a free core
    assert integers.shape == w.shape


@pytest.mark.parametrize(
    ("kernel", "strides", "dilations", "pads", "groups"),
    [((3, 3), (2, 1), (1, 2), (1, 2, 0, 1), 2), ((5,), (2,), (1,), (2, 2), 1)],
)
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_patches_times_weight_are_the_outputs(op, kernel, strides, dilations, pads, groups):
    """All positions taken: rows·weight must hold every value ONNX Runtime computes."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 4, 9, 8)[: 2 + len(kernel)]).astype(np.float32)
    shape = (6, 4 // groups, *kernel) if op == "Conv" else (4, 6 // groups, *kernel)
    w = rng.standard_normal(shape).astype(np.float32)
    net = Net(0)
    geometry = {"strides": strides, "dilations": dilations, "pads": pads, "group": groups}
    y = net.op(op, "x", net.constant("w", w), name="layer", **geometry)
    size = [2, 6, *(f"d{i}" for i in range(len(kernel)))]
    made = net.model({"x": list(x.shape)}, {"y": (y, size)})
    from exporters._check import onnx_session

    (want,) = onnx_session(made.SerializeToString()).run(None, {"x": x})
    seen = window(kernel, x.shape[2:], strides, dilations, pads, groups)
    take = conv_rows if op == "Conv" else transposed_conv_rows
    blocks = take(x, seen, 10**6, rng)
    rows = w.reshape(groups, 6 // groups, -1) if op == "Conv" else np.stack(
        [part.swapaxes(0, 1).reshape(6 // groups, -1) for part in np.split(w, groups)]
    )  # fmt: skip
    got = np.concatenate([b @ r.T for b, r in zip(blocks, rows, strict=True)], axis=1)
    np.testing.assert_allclose(
        np.sort((got**2).sum(axis=0)), np.sort((want**2).sum(axis=(0, *range(2, want.ndim)))),
        rtol=1e-4,
    )  # fmt: skip


def test_the_state_before_each_step():
    states = np.arange(4 * 2 * 1 * 3, dtype=np.float32).reshape(4, 2, 1, 3)
    forward, backward = state_rows(states, None, [False, True], 100, np.random.default_rng(0))
    np.testing.assert_array_equal(forward, states[:-1, 0, 0])
    np.testing.assert_array_equal(backward, states[1:, 1, 0])


def readers(model: onnx.ModelProto) -> list[Reader]:
    sizes = {t.name: tuple(t.dims) for t in model.graph.initializer if len(t.dims) > 1}
    return [
        Reader(name, node, port, sizes[name])
        for node in model.graph.node
        for port, name in enumerate(node.input)
        if name in sizes and not name.endswith(".B")
    ]


def collected(name: str, **options) -> dict[str, np.ndarray]:
    model = models.ALL[name]()
    feeds = models.feeds(model, 6, 0)
    found: dict[str, np.ndarray] = {}
    for part in collect_grams_onnx(model, readers(model), lambda: iter([feeds]), **options):
        found |= part
    return found


@pytest.mark.parametrize("name", ["convnet", "depthwise", "unet", "gru", "lstm", "mlp"])
def test_every_layer_of_a_model_gets_its_matrix(name):
    model = models.ALL[name]()
    found = collected(name)
    for tensor in model.graph.initializer:
        if len(tensor.dims) > 1 and not tensor.name.endswith(".B"):
            gram = found[tensor.name]
            assert np.isfinite(gram).all()
            assert (np.diagonal(gram, axis1=-2, axis2=-1) >= 0).all()
            assert gram.any()


def test_passes_change_nothing_but_memory():
    once, many = collected("convnet"), collected("convnet", limit_bytes=1)
    assert once.keys() == many.keys()
    for name, gram in once.items():
        np.testing.assert_allclose(gram.shape, many[name].shape)
    model = models.ALL["convnet"]()
    feeds = models.feeds(model, 6, 0)
    data = lambda: iter([feeds])  # noqa: E731
    assert len(list(collect_grams_onnx(model, readers(model), data, limit_bytes=1))) > 3


def test_sampling_is_seeded():
    first, second = collected("convnet", rows=50), collected("convnet", rows=50)
    assert all((first[name] == second[name]).all() for name in first)
