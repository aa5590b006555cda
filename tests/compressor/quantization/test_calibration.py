from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from compressor.quantization.calibration import batches, calibrate
from runtimes.errors import UsageError
from runtimes.types import TensorSpec
from tests.step_env import ArraySamples

X = np.random.default_rng(0).normal(size=(50, 3, 4)).astype(np.float32)


def square(opset=21):
    node = helper.make_node("Mul", ["x", "x"], ["y"], name="square")
    shape = ["batch", 3, 4]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in "xy"]
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def stream(x=X, size=16):
    return lambda: ({"x": x[i : i + size]} for i in range(0, len(x), size))


@pytest.mark.parametrize("opset", [13, 18, 21])
def test_ranges_and_means_are_those_of_all_samples(opset):
    found = calibrate(square(opset), ["y"], {"y": (0, 2)}, stream())
    assert found.ranges["y"] == (float((X**2).min()), float((X**2).max()))
    np.testing.assert_allclose(found.means["y"], (X**2).mean(axis=(0, 2)), rtol=1e-6)
    assert found.samples == 50


def test_the_model_is_left_alone():
    model = square()
    before = model.SerializeToString()
    calibrate(model, ["x", "y"], {"y": (0, 2)}, stream(), method="mse")
    assert model.SerializeToString() == before


def test_least_squares_clip_outliers():
    x = np.tile(X, (2000, 1, 1))
    x[0, 0, 0] = 30.0
    low, high = calibrate(square(), ["x"], {}, stream(x, 5000), method="mse").ranges["x"]
    assert high < 25
    assert low < -2


def test_nan_is_named():
    x = X.copy()
    x[3, 0, 0] = np.nan
    with pytest.raises(UsageError, match="output y"):
        calibrate(square(), ["y"], {}, stream(x))


def test_infinity_is_named():
    x = X.copy()
    x[3, 0, 0] = 1e30
    with pytest.raises(UsageError, match="activation y"):
        calibrate(square(), ["y"], {}, stream(x))


def test_only_one_batch_is_held_at_a_time():
    alive = []

    def feeds():
        for i in range(0, 48, 16):
            alive.append(i)
            yield {"x": X[i : i + 16]}
            alive.remove(i)
            assert not alive

    calibrate(square(), ["y"], {}, feeds)


def test_a_fixed_batch_is_kept_to():
    samples = ArraySamples({"x": X})
    sizes = [len(f["x"]) for f in batches(samples, [TensorSpec("x", "float32", (8, 3, 4))], 300)]
    assert sizes == [8] * 6
    free = [len(f["x"]) for f in batches(samples, [TensorSpec("x", "float32", ("n", 3, 4))], 20)]
    assert free == [16, 4]


def test_no_samples_is_an_error():
    with pytest.raises(UsageError, match="no calibration samples"):
        list(batches(ArraySamples({"x": X[:0]}), [TensorSpec("x", "float32", ("n", 3, 4))], 9))


def test_taps_make_a_valid_model():
    onnx.checker.check_model(square())


def test_a_bounded_batch_is_kept_to() -> None:
    samples = ArraySamples({"x": X[:21]})
    free = [TensorSpec("x", "float32", ("n", 3, 4))]
    sizes = [len(f["x"]) for f in batches(samples, free, 300, {"n": [2, 4]})]
    assert sizes == [4, 4, 4, 4, 4]
