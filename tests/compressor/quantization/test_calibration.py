from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from compressor.quantization import calibration
from compressor.quantization.calibration import batches, calibrate
from runtimes.errors import UsageError
from runtimes.types import TensorSpec
from tests import models
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


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_other_methods_clip_outliers_too(method):
    x = np.tile(X, (2000, 1, 1))
    x[0, 0, 0] = 30.0
    low, high = calibrate(square(), ["x"], {}, stream(x, 5000), method=method).ranges["x"]
    assert 1.5 < high < 15
    assert -15 < low < -1.5


def test_zeros_do_not_decide_the_range_by_entropy():
    x = np.abs(np.tile(X, (2000, 1, 1)))
    _, alone = calibrate(square(), ["x"], {}, stream(x, 5000), method="entropy").ranges["x"]
    half = np.where(np.random.default_rng(0).random(x.shape) < 0.5, 0, x).astype(np.float32)
    _, high = calibrate(square(), ["x"], {}, stream(half, 5000), method="entropy").ranges["x"]
    assert high == pytest.approx(alone, rel=0.1)


def test_methods_share_their_passes_and_say_what_they_hold():
    said: list[str] = []
    methods = ["minmax", "percentile", "mse", "entropy"]
    found = calibrate(square(), ["x", "y"], {}, stream(), methods=methods, said=said.append)
    assert list(found.by_method) == methods
    assert found.ranges == found.by_method["minmax"]
    alone = calibrate(square(), ["x", "y"], {}, stream(), method="mse")
    assert alone.ranges == found.by_method["mse"]
    assert "calibration holds" in said[0]
    assert found.held_bytes < 1e6


def test_histograms_are_the_same_a_slice_at_a_time(monkeypatch):
    whole = calibrate(square(), ["x", "y"], {}, stream(), method="mse")
    monkeypatch.setattr(calibration, "BUDGET", 3 * 4 * 4)  # one sample of one tensor
    parts = calibrate(square(), ["x", "y"], {}, stream(), method="mse")
    assert parts.ranges == whole.ranges
    assert parts.held_bytes < whole.held_bytes


class Ragged(ArraySamples):
    ragged = True

    def feeds(self, indices):
        (index,) = indices
        return {"x": self.arrays["x"][index : index + 1, :, : 2 + index % 3]}


def test_samples_of_one_shape_share_a_batch():
    free = [TensorSpec("x", "float32", ("n", 3, "time"))]
    found = list(batches(Ragged({"x": X}), free, 40))
    assert [f["x"].shape[2] for f in found].count(2) == 1
    assert sum(len(f["x"]) for f in found) == 40
    assert sorted(len(f["x"]) for f in found) == [13, 13, 14]


def test_samples_that_wait_take_bounded_memory(monkeypatch):
    monkeypatch.setattr(calibration, "_WAITING", 100)
    free = [TensorSpec("x", "float32", ("n", 3, "time"))]
    found = list(batches(Ragged({"x": X}), free, 40))
    assert sum(len(f["x"]) for f in found) == 40
    assert max(f["x"].nbytes for f in found) < 200


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


def test_a_series_tells_whether_more_samples_would_widen_the_ranges():
    model = models.mlp()
    rng = np.random.default_rng(0)
    images = rng.random((64, 1, 28, 28)).astype(np.float32)
    fed = lambda x: lambda: ({"image": x[i : i + 8]} for i in range(0, len(x), 8))  # noqa: E731
    seen = lambda x: calibrate(model, ["image", "relu1.out"], {}, fed(x)).series  # noqa: E731
    still = seen(images)
    assert [point.samples for point in still] == [8, 16, 32]
    assert min(point.median for point in still) > 0.9
    brighter = images * np.linspace(0.1, 3, 64, dtype=np.float32)[:, None, None, None]
    widths = [point.median for point in seen(brighter)]
    assert widths == sorted(widths)
    assert widths[-1] < 0.6
    assert seen(images[:8]) == ()


def test_fewer_samples_at_once_where_their_activations_are_large():
    free = [TensorSpec("x", "float32", ("n", 3, 4))]
    sizes = [len(f["x"]) for f in batches(ArraySamples({"x": X}), free, 10, most=4)]
    assert sizes == [4, 4, 2]


def test_outputs_of_a_call_are_bounded(monkeypatch):
    """A vocabulary at every place of a text: what does not fit one call is asked for in several."""
    model = models.mlp()
    feeds = [models.feeds(model, batch=8)]
    seen, original = [], calibration.tapped_session

    def watched(*args):
        session = original(*args)
        run = session.run
        monkeypatch.setattr(
            session,
            "run",
            lambda names, f: (seen.append(len(next(iter(f.values())))), run(names, f))[1],
        )
        return session

    monkeypatch.setattr(calibration, "tapped_session", watched)
    tensors = [model.graph.node[0].output[0]]
    whole = calibration.calibrate(model, tensors, {}, lambda: iter(feeds))
    width = model.graph.output[0].type.tensor_type.shape.dim[-1].dim_value
    monkeypatch.setattr(calibration, "OUTPUTS", 4 * width * 3)
    parts = calibration.calibrate(model, tensors, {}, lambda: iter(feeds))
    assert seen == [8, 3, 3, 2]
    assert parts.ranges == whole.ranges
