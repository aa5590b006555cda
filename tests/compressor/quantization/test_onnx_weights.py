from __future__ import annotations

import numpy as np
import onnx
import pytest

from compressor.quantization.onnx_weights import (
    dequantize,
    int4_tensor,
    noise_share,
    pack_int4,
    quantize_int4,
    quantize_int8,
)

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_int4_tensor_reads_back(size):
    integers = RNG.integers(-8, 8, size).astype(np.int8)
    read = onnx.numpy_helper.to_array(int4_tensor(integers, "w"))
    np.testing.assert_array_equal(read.astype(np.int8), integers)
    assert len(pack_int4(integers)) == (size + 1) // 2


@pytest.mark.parametrize("axis", [0, 1, None])
def test_int8_is_off_by_half_a_step_at_most(axis):
    weight = RNG.normal(size=(6, 5, 3)).astype(np.float32)
    integers, scale = quantize_int8(weight, axis)
    error = np.abs(weight - dequantize(integers, scale, axis))
    assert error.max() <= scale.max() / 2 + 1e-6
    assert scale.shape == (() if axis is None else (weight.shape[axis],))


def test_seven_bits_for_machines_without_vnni():
    integers, _ = quantize_int8(RNG.normal(size=(4, 9)).astype(np.float32), 0, limit=63)
    assert np.abs(integers).max() == 63


def test_int4_beats_the_scale_of_the_largest_magnitude():
    weight = RNG.normal(size=(16, 288)).astype(np.float32)
    peak = np.abs(weight).max(axis=1) / 7
    plain = np.clip(np.rint(weight / peak[:, None]), -8, 7).astype(np.int8)
    ours = noise_share(weight, *quantize_int4(weight, 0), 0)
    assert ours < 0.8 * noise_share(weight, plain, peak.astype(np.float32), 0)


def test_int4_searches_each_channel_by_itself():
    weight = RNG.normal(size=(3, 64)).astype(np.float32) * np.float32([[1], [100], [0.01]])
    integers, scale = quantize_int4(weight, 0)
    rows = [
        noise_share(weight[i : i + 1], integers[i : i + 1], scale[i : i + 1], 0) for i in range(3)
    ]
    assert max(rows) < 0.02


def test_zero_channels_stay_zero():
    for rounding in (quantize_int4, quantize_int8):
        integers, scale = rounding(np.zeros((2, 3), np.float32), 0)
        assert not integers.any()
        assert np.isfinite(scale).all()
        assert (scale > 0).all()
