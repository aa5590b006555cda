"""Evaluating and comparing models: values, intervals, agreement, and what is flagged."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from compressor import evaluation
from compressor.data import DataSet, open_data
from compressor.evaluation import Evaluation, evaluate
from compressor.metrics import evaluator_metric, load_metric, user_metric
from compressor.statistics import bonett_price, paired_bootstrap
from compressor.validate import _widened, compare
from runtimes.errors import CompressError, UsageError
from runtimes.types import TensorSpec
from tests import models

HERE = Path()
POINTS = (TensorSpec("x", "float32", ("batch", 6)),)


def points(n: int = 400, seed: int = 0, labels: bool = True) -> DataSet:
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, 6, n)
    x = (np.eye(6)[kinds] + rng.normal(0, 0.4, (n, 6))).astype(np.float32)
    return open_data({"x": x, "labels": kinds} if labels else x, "evaluation", POINTS, HERE)


def model(noise: float = 0.0, seed: int = 1) -> Any:
    """Scores that are the input itself, shaken by a fixed noise per sample."""
    weight = np.eye(6) + np.random.default_rng(seed).normal(0, noise, (6, 6))
    return lambda feeds: {"scores": (feeds["x"] @ weight).astype(np.float32)}


def both(spec: Any, noise: float, data: DataSet | None = None, batch: int = 64) -> Any:
    metric = load_metric(spec, HERE) if isinstance(spec, str | dict) else spec
    data = data or points()
    base = evaluate(model(), data, metric, batch=batch)
    candidate = evaluate(model(noise), data, metric, batch=batch)
    return metric, base, candidate


def test_value_and_outcomes() -> None:
    data = points()
    found = evaluate(model(), data, load_metric("top1", HERE), batch=33)
    right = data.feeds(range(400))["x"].argmax(1) == data.labels
    assert found.value == right.mean()
    np.testing.assert_array_equal(found.per_sample, right)
    assert found.kept["scores"].shape == (400, 6)


def test_batch_size_changes_nothing() -> None:
    first, second = both("f1", 0.1, batch=7), both("f1", 0.1, batch=400)
    assert compare(*first, seed=3) == compare(*second, seed=3)


def test_classification_is_bonett_price() -> None:
    metric, base, candidate = both("top1", 0.15)
    worse = int((base.per_sample > candidate.per_sample).sum())
    better = int((base.per_sample < candidate.per_sample).sum())
    assert worse > better
    found = compare(metric, base, candidate)
    drop, low, high = bonett_price(worse, better, 400)
    assert (found.drop, found.interval, found.method) == (drop, (low, high), "bonett-price")
    assert found.flip_rate == (worse + better) / 400
    assert found.relative_drop == pytest.approx(drop / base.value)
    answers = [e.kept["scores"].argmax(1) for e in (base, candidate)]
    assert found.agreement == (answers[0] == answers[1]).mean()


def test_sqnr_is_the_ratio_of_powers() -> None:
    metric, base, candidate = both("sqnr", 0.1)
    signal, noise = base.kept["scores"], base.kept["scores"] - candidate.kept["scores"]
    wanted = 10 * np.log10((signal.astype(float) ** 2).sum() / (noise.astype(float) ** 2).sum())
    found = compare(metric, base, candidate)
    assert found.sqnr_db == pytest.approx(wanted)
    assert found.drop is None
    assert compare(metric, base, base).sqnr_db == 300.0


def test_agreement_needs_no_labels() -> None:
    metric, base, candidate = both("agreement", 0.15, points(labels=False))
    found = compare(metric, base, candidate)
    assert found.agreement is not None
    assert found.drop == pytest.approx(1 - found.agreement)
    assert found.method == "clopper-pearson"
    assert found.interval is not None
    assert found.interval[0] < found.drop < found.interval[1]


@pytest.mark.parametrize("name", ["f1", "auc"])
def test_metrics_that_are_no_mean_are_bootstrapped(name: str) -> None:
    metric, base, candidate = both(name, 0.3)
    found = compare(metric, base, candidate)
    assert found.method == "paired-bootstrap"
    assert found.interval is not None
    assert found.drop == pytest.approx(base.value - candidate.value)
    assert found.interval[0] < found.drop < found.interval[1]
    assert found == compare(metric, base, candidate)
    assert found.interval != compare(metric, base, candidate, seed=1).interval


def test_errors_that_grow_are_a_drop() -> None:
    data = points()
    x = data.feeds(range(400))["x"]
    data = open_data({"x": x, "labels": x}, "evaluation", POINTS, HERE)
    for name in ("mae", "rmse"):
        metric, base, candidate = both(name, 0.1, data)
        found = compare(metric, base, candidate)
        assert base.value == 0.0
        assert found.drop == pytest.approx(candidate.value)
        assert found.interval is not None
        assert 0 < found.interval[0] < found.drop < found.interval[1]


def accuracy(outputs: Any, labels: Any) -> float:
    return float((outputs["scores"].argmax(1) == labels).mean())


def accuracy_by_sample(outputs: Any, labels: Any) -> tuple[float, np.ndarray]:
    right = outputs["scores"].argmax(1) == labels
    return float(right.mean()), right


def test_functions_with_outcomes_are_as_good_as_built_in() -> None:
    built_in = compare(*both("top1", 0.15))
    assert compare(*both(user_metric(accuracy_by_sample, fraction=True), 0.15)) == built_in


def test_functions_without_outcomes_are_called_on_resamples() -> None:
    metric, base, candidate = both(user_metric(accuracy), 0.15)
    found = compare(metric, base, candidate)
    bounds = compare(*both("top1", 0.15)).interval
    assert found.method == "paired-bootstrap"
    assert found.interval == pytest.approx(bounds, abs=0.004)


@pytest.mark.parametrize(
    "spec", ["f1", user_metric(accuracy), user_metric(accuracy, fraction=True)]
)
def test_no_change_in_few_samples_proves_little(spec: Any) -> None:
    metric, base, candidate = both(spec, 0.0, points(300))
    found = compare(metric, base, candidate)
    assert found.drop == 0.0
    assert found.interval == pytest.approx(bonett_price(0, 0, 300)[1:], abs=1e-4)


@pytest.mark.parametrize(
    ("function", "fragment"),
    [
        (lambda outputs, labels: "good", "not a number"),
        (lambda outputs, labels: None, "not an array of numbers"),
        (lambda outputs, labels: (0.5, np.zeros(3)), "one number a sample, 400 of them"),
        (lambda outputs, labels: (0.5, np.zeros((400, 2))), "wrong outcomes per sample"),
    ],
)
def test_functions_that_return_something_else(function: Any, fragment: str) -> None:
    with pytest.raises(UsageError, match=fragment):
        evaluate(model(), points(), user_metric(function, "mine"))


def looped(per_sample: bool) -> Any:
    def loop(run: Any) -> dict[str, Any]:
        data = points()
        outputs = np.concatenate([run(feeds)["scores"] for _, feeds in data.batches(50)])
        right = outputs.argmax(1) == data.labels
        return {"metric": right.mean(), "per_sample": right if per_sample else None}

    return loop


def with_evaluator(loop: Any, noise: float) -> Any:
    metric, data = evaluator_metric(loop), points()
    base = evaluate(model(), data, metric, evaluator=loop)
    return metric, base, evaluate(model(noise), data, metric, evaluator=loop)


def test_evaluators_with_outcomes() -> None:
    found, wanted = compare(*with_evaluator(looped(True), 0.15)), compare(*both("top1", 0.15))
    assert (found.drop, found.interval, found.sqnr_db) == (
        wanted.drop,
        wanted.interval,
        wanted.sqnr_db,
    )


def test_evaluators_without_outcomes_have_no_interval() -> None:
    found = compare(*with_evaluator(looped(False), 0.15))
    assert found.interval is None
    assert found.drop == pytest.approx(compare(*both("top1", 0.15)).drop)
    assert found.agreement is not None
    assert "no outcome per sample: the drop has no interval" in found.doubts


def test_an_evaluator_may_say_that_lower_is_better() -> None:
    def loop(run: Any) -> dict[str, Any]:
        wrong = 1.0 - looped(True)(run)["per_sample"]
        return {"metric": wrong.mean(), "per_sample": wrong, "higher_is_better": False}

    assert compare(*with_evaluator(loop, 0.15)).drop == compare(*both("top1", 0.15)).drop


@pytest.mark.parametrize(
    ("loop", "fragment"),
    [
        (lambda run: 0.5, "returned something else"),
        (lambda run: {"score": 1}, "returned something else"),
        (lambda run: {"metric": 0.5}, "never called run"),
    ],
)
def test_evaluators_that_do_something_else(loop: Any, fragment: str) -> None:
    with pytest.raises(UsageError, match=fragment):
        evaluate(model(), points(), load_metric("top1", HERE), evaluator=loop)


def test_labels_are_needed() -> None:
    with pytest.raises(UsageError, match="top1 needs labels, and the data has none"):
        evaluate(model(), points(labels=False), load_metric("top1", HERE))


def test_a_lucky_gain_is_flagged() -> None:
    data = points()
    metric = load_metric("top1", HERE)
    good = evaluate(model(), data, metric)
    bad = evaluate(model(0.4), data, metric)
    found = compare(metric, bad, good)  # as if the better one were the candidate
    assert found.drop is not None
    assert found.drop < 0
    assert "of answers changed: damage that happened to help" in found.doubts[-1]
    assert found.doubts[-1].startswith("top1 improved by ")
    assert compare(metric, good, bad).doubts == []


def test_outputs_that_are_not_finite() -> None:
    def broken(feeds: Any) -> Any:
        return {"scores": np.full((len(feeds["x"]), 6), np.nan, np.float32)}

    metric, data = load_metric("top1", HERE), points()
    base, candidate = evaluate(model(), data, metric), evaluate(broken, data, metric)
    found = compare(metric, base, candidate)
    assert (candidate.value, found.agreement, found.sqnr_db) == (0.0, 0.0, None)
    assert "output 'scores' holds NaN or infinity" in found.doubts
    labels = {"x": data.feeds(range(400))["x"], "labels": np.zeros((400, 6))}
    numbers = open_data(labels, "evaluation", POINTS, HERE)
    lost = evaluate(broken, numbers, load_metric("mae", HERE))
    assert lost.value is None
    assert "not a finite number" in lost.doubts[-1]


def test_memory_is_bounded_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "KEPT_BYTES", 100 * 6 * 4)
    found = evaluate(model(), points(), load_metric("top1", HERE), batch=40)
    assert found.kept["scores"].shape == (80, 6)
    assert "outputs were compared on the first 80 of 400 samples" in found.doubts[0]
    assert found.decisions is not None
    assert len(found.decisions) == 400  # answers are small: all of them are kept


def test_fixed_batches_are_filled_up() -> None:
    fixed = (TensorSpec("x", "float32", (64, 6)),)
    free = points()
    data = open_data(
        {"x": free.feeds(range(400))["x"], "labels": free.labels}, "evaluation", fixed, HERE
    )
    sizes = []

    def run(feeds: Any) -> Any:
        sizes.append(len(feeds["x"]))
        return model()(feeds)

    metric = load_metric("top1", HERE)
    assert evaluate(run, data, metric).value == evaluate(model(), free, metric).value
    assert sizes == [64] * 7


def test_outputs_without_a_row_a_sample() -> None:
    metric = load_metric("top1", HERE)
    with pytest.raises(UsageError, match="no output has one row a sample"):
        evaluate(lambda feeds: {"y": feeds["x"].mean(0, keepdims=True)}, points(), metric)

    def recurrent(feeds: Any) -> Any:
        return {**model()(feeds), "state": np.zeros((2, len(feeds["x"]), 3), np.float32)}

    assert evaluate(recurrent, points(), metric).value == evaluate(model(), points(), metric).value


def test_samples_of_other_lengths(tmp_path: Path) -> None:
    for i, time in enumerate((3, 5, 4)):
        ids = np.arange(time, dtype=np.int64)[None]
        np.savez(tmp_path / f"{i}.npz", ids=ids, labels=ids)
    inputs = (TensorSpec("ids", "int64", ("batch", "time")),)
    data = open_data(str(tmp_path), "evaluation", inputs, HERE)

    def run(feeds: Any) -> Any:
        return {"logits": np.eye(8, dtype=np.float32)[feeds["ids"]] * 5}

    metric = load_metric("perplexity", HERE)
    base = evaluate(run, data, metric)
    assert base.value == pytest.approx(1 + 7 * np.exp(-5))
    assert compare(metric, base, base).sqnr_db == 300.0


@pytest.mark.parametrize("spec", ["top1", "f1", user_metric(accuracy), "agreement", "sqnr"])
def test_kept_in_a_file_and_back(spec: Any) -> None:
    metric, base, candidate = both(spec, 0.2)
    stream = io.BytesIO()
    np.savez(stream, **base.to_arrays())
    stream.seek(0)
    with np.load(stream, allow_pickle=False) as stored:
        again = Evaluation.from_arrays({name: stored[name] for name in stored.files})
    assert compare(metric, again, candidate) == compare(metric, base, candidate)
    assert (again.value, again.n, again.kind) == (base.value, base.n, base.kind)


def test_ragged_outcomes_and_text_labels_survive_a_file() -> None:
    rows = [np.ones((2, 3)), np.zeros((0, 3)), np.full((1, 3), 2.0)]
    kept = Evaluation(0.5, 3, "rows", rows, labels=["a", "b", {"c": np.arange(2)}])
    again = Evaluation.from_arrays(kept.to_arrays())
    assert isinstance(again.rows, list)
    for wanted, found in zip(rows, again.rows, strict=True):
        np.testing.assert_array_equal(wanted, found)
    assert again.labels == ["a", "b", {"c": [0, 1]}]


def rounded(net: onnx.ModelProto, levels: int) -> onnx.ModelProto:
    """The same net, convolution weights rounded to so many levels a side."""
    coarse = onnx.ModelProto.FromString(net.SerializeToString())
    for tensor in coarse.graph.initializer:
        weight = onnx.numpy_helper.to_array(tensor)
        if weight.ndim == 4:
            step = np.abs(weight).max() / levels
            value = (np.round(weight / step) * step).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    return coarse


def test_a_real_model_loses_more_the_coarser_it_gets() -> None:
    net = models.trained(models.convnet(), models.fashion_like(600, seed=0))
    inputs = (TensorSpec("image", "float32", ("batch", 1, 28, 28)),)
    data = open_data(models.fashion_like(500, seed=1), "evaluation", inputs, HERE)
    metric = load_metric("top1", HERE)
    base = evaluate(lambda feeds: models.run(net, feeds), data, metric, batch=100)
    fine, coarse = (
        compare(metric, base, evaluate(lambda f, n=n: models.run(n, f), data, metric, batch=100))
        for n in (rounded(net, 127), rounded(net, 10))
    )
    assert base.value is not None
    assert base.value > 0.9
    assert fine.agreement is not None
    assert coarse.agreement is not None
    assert coarse.agreement < fine.agreement
    assert fine.sqnr_db is not None
    assert coarse.sqnr_db is not None
    assert coarse.sqnr_db < fine.sqnr_db
    assert coarse.interval is not None
    assert coarse.interval[0] > 0.01


def test_bootstrap_rarely_passes_at_the_limit() -> None:
    """True drop exactly the limit, 300 samples: plain resampling passes one in nine."""
    rng = np.random.default_rng(0)
    plain = widened = 0
    for seed in range(300):
        worse, better, _ = rng.multinomial(300, [0.015, 0.005, 0.98])
        change = np.zeros(300)
        change[:worse], change[worse : worse + better] = 1.0, -1.0
        drop, low, high = paired_bootstrap(change, np.zeros(300), seed=seed, resamples=200)
        plain += high <= 0.01
        widened += _widened(drop, (low, high), 300)[1] <= 0.01
    assert plain / 300 > 0.08
    assert widened / 300 < 0.065


def test_different_data_is_never_compared() -> None:
    metric = load_metric("top1", HERE)
    first, second = (evaluate(model(), points(n), metric) for n in (300, 301))
    with pytest.raises(CompressError, match="different data"):
        compare(metric, first, second)
