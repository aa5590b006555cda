"""Metrics against their definitions, scikit-learn and each other."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.metrics import Metric, evaluator_metric, load_metric, metric_names, user_metric
from runtimes.errors import MissingTool, UsageError

HERE = Path()
RNG = np.random.default_rng(0)


def value(spec: Any, outputs: Any, labels: Any, counts: Any = None) -> float:
    metric = load_metric(spec, HERE)
    outputs = outputs if isinstance(outputs, dict) else {"out": np.asarray(outputs)}
    assert metric.observe is not None
    assert metric.reducer is not None
    rows = metric.observe(outputs, labels)
    return metric.reducer(rows)(np.ones(len(rows)) if counts is None else np.asarray(counts, float))


def scores(n: int = 200, classes: int = 7) -> tuple[np.ndarray, np.ndarray]:
    labels = RNG.integers(0, classes, n)
    found = RNG.normal(size=(n, classes)).astype(np.float32)
    found[np.arange(n), labels] += 1.0
    return found, labels


def test_top1_and_top5() -> None:
    found, labels = scores()
    assert value("top1", found, labels) == (found.argmax(1) == labels).mean()
    best = np.argsort(-found, axis=1)[:, :5]
    assert value("top5", found, labels) == (best == labels[:, None]).any(1).mean()


def test_ties_go_to_the_lower_index_as_argmax_has_it() -> None:
    assert value("top1", np.ones((3, 4), np.float32), [0, 1, 3]) == pytest.approx(1 / 3)


def test_nan_is_wrong() -> None:
    found, labels = scores(4)
    found[:] = np.eye(7)[labels]
    found[2, labels[2]] = np.nan
    assert value("top1", found, labels) == 0.75
    metric = load_metric("top1", HERE)
    assert metric.decide is not None
    answered = metric.decide({"out": found})
    assert answered is not None
    assert answered[2] == -1


@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
def test_f1_equals_scikit_learn(average: str) -> None:
    learn = pytest.importorskip("sklearn.metrics", reason="the reference is scikit-learn")
    found, labels = scores()
    labels[labels == 3] = 2  # a class that nobody has, yet is predicted
    wanted = learn.f1_score(labels, found.argmax(1), average=average)
    assert value({"name": "f1", "average": average}, found, labels) == pytest.approx(wanted)


def test_f1_of_one_output() -> None:
    learn = pytest.importorskip("sklearn.metrics", reason="the reference is scikit-learn")
    probability, labels = RNG.random((100, 1)), RNG.integers(0, 2, 100)
    wanted = learn.f1_score(labels, probability[:, 0] > 0.3)
    spec = {"name": "f1", "average": "binary", "threshold": 0.3}
    assert value(spec, probability, labels) == pytest.approx(wanted)


def test_auc_equals_scikit_learn() -> None:
    learn = pytest.importorskip("sklearn.metrics", reason="the reference is scikit-learn")
    score, labels = np.round(RNG.normal(size=300), 1), RNG.integers(0, 2, 300)  # with ties
    assert value("auc", score, labels) == pytest.approx(learn.roc_auc_score(labels, score))
    found, labels = scores(300, 4)
    power = np.exp(found.astype(np.float64))
    power /= power.sum(1, keepdims=True)
    wanted = learn.roc_auc_score(labels, power, multi_class="ovr")
    assert value("auc", found, labels) == pytest.approx(wanted)
    assert value("auc", power, labels) == pytest.approx(wanted)
    assert np.isnan(value("auc", score, np.ones(300, int)))  # one class alone has no curve


def test_mae_and_rmse() -> None:
    found, wanted = RNG.normal(size=(50, 1)), RNG.normal(size=50)
    gap = found[:, 0] - wanted
    assert value("mae", found, wanted) == pytest.approx(np.abs(gap).mean())
    assert value("rmse", found, wanted) == pytest.approx(np.sqrt((gap**2).mean()))
    assert not load_metric("rmse", HERE).higher_is_better


def test_miou() -> None:
    wanted = np.array([[[0, 0, 1, 255]], [[1, 1, 0, 0]]])
    told = np.array([[[0, 1, 1, 2]], [[1, 1, 1, 0]]])
    found = np.moveaxis(np.eye(3)[told], -1, 1).astype(np.float32)
    expected = (2 / 4 + 3 / 5) / 2  # class 2 is told only where the label is ignored
    assert value("miou", found, wanted) == pytest.approx(expected)
    assert value({"name": "miou", "classes": 3}, told, wanted) == pytest.approx(expected)


def test_perplexity() -> None:
    logits, labels = RNG.normal(size=(3, 5, 11)), RNG.integers(0, 11, (3, 5))
    labels[1, 3:] = -100
    log = logits - np.log(np.exp(logits).sum(2, keepdims=True))
    own = np.take_along_axis(log, np.maximum(labels, 0)[:, :, None], 2)[:, :, 0]
    assert value("perplexity", logits, labels) == pytest.approx(np.exp(-own[labels >= 0].mean()))
    even = value({"name": "perplexity", "shift": True}, np.zeros((2, 4, 11)), labels[:2, :4])
    assert even == pytest.approx(11)


ALPHABET = "_ abc"


def spoken(*texts: str) -> np.ndarray:
    """Scores whose greedy path says the texts: each letter twice, a blank after it."""
    path = np.zeros((len(texts), 30), int)
    for i, text in enumerate(texts):
        for j, letter in enumerate(text):
            path[i, 3 * j : 3 * j + 2] = ALPHABET.index(letter)
    return np.eye(len(ALPHABET))[path]


def test_word_and_character_errors() -> None:
    pytest.importorskip("jiwer", reason="error rates need jiwer")
    spec = {"name": "wer", "decode": "ctc_greedy", "alphabet": ALPHABET}
    found = spoken("ab bb c", "a b", "c")
    assert value(spec, found, ["ab bb c", "a c", ""]) == pytest.approx(2 / 5)
    assert value({**spec, "name": "cer"}, found, ["ab bb c", "a c", "cc"]) == pytest.approx(2 / 12)
    lengths = {"out": found, "steps": np.array([6, 30, 30])}
    cut = value({**spec, "output": "out", "lengths": "steps"}, lengths, ["ab", "a b", "c"])
    assert cut == 0.0


@pytest.mark.parametrize(
    ("spec", "outputs", "labels", "fragments"),
    [
        ("top1", np.ones((2, 3)), [0, 3], ["label 3 is no class", "0–2"]),
        ("top1", np.ones((2, 3)), [0, -1], ["label -1 is no class"]),
        ("top1", np.ones((2, 3)), np.eye(3)[:2], ["no class numbers", "labels.argmax(1)"]),
        ("top1", np.ones((2, 3)), ["cat", "dog"], ["no class numbers"]),
        ("top1", np.ones((2, 3)), [0.5, 1.0], ["no class numbers"]),
        ("top1", np.ones((2, 3, 4)), [0, 1], ["no output fits", "out[2, 3, 4]"]),
        ("top5", np.ones((2, 5)), [0, 1], ["always right for 5 classes"]),
        ("mae", np.ones((2, 3)), [0, 1], ["do not fit the output", "[2, 3]"]),
        ("rmse", np.ones((2, 3)), ["a", "b"], ["do not fit the output"]),
        ("miou", np.ones((2, 3, 4, 4)), np.zeros((2, 4, 5), int), ["[2, 4, 4]"]),
        ("miou", np.ones((2, 3, 4, 4)), np.full((2, 4, 4), 7), ["label 7 is no class"]),
        ("miou", np.ones((2, 4, 4)), np.zeros((2, 4, 4), int), ["classes: 21"]),
        ("perplexity", np.ones((2, 3, 4)), np.zeros((2, 4), int), ["[2, 3]"]),
        ("perplexity", np.ones((2, 3, 4)), np.full((2, 3), 9), ["outside the vocabulary"]),
        ({"name": "top1", "output": "logit"}, np.ones((2, 3)), [0, 1], ["no output 'logit'"]),
    ],
)
def test_labels_and_outputs_that_do_not_fit(
    spec: Any, outputs: Any, labels: Any, fragments: list[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        value(spec, outputs, labels)
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_two_outputs_that_fit_must_be_named() -> None:
    outputs = {"a": np.eye(3), "b": np.eye(3)[::-1]}
    with pytest.raises(UsageError, match="more than one output fits"):
        value("top1", outputs, [0, 1, 2])
    assert value({"name": "top1", "output": "b"}, outputs, [2, 1, 0]) == 1.0


@pytest.mark.parametrize(
    ("spec", "fragment"),
    [
        ("top_1", "did you mean 'top1'"),
        ("Top1", "did you mean 'top1'"),
        ({"nme": "top1"}, "metric without a name"),
        ({"name": "f1", "avrage": "macro"}, "did you mean 'average'"),
        ({"name": "f1", "average": "mean"}, "unknown average"),
        ({"name": "wer", "decode": "beam"}, "unknown decode"),
        ({"name": "wer"}, "needs an alphabet"),
        ({"name": "map50", "decode": "yolov9"}, "unknown decode"),
        ({"name": "map50", "conf": 25}, "conf lies in 0–1"),
    ],
)
def test_recipes_that_are_refused(spec: Any, fragment: str) -> None:
    with pytest.raises(UsageError, match=fragment):
        load_metric(spec, HERE)


@pytest.mark.parametrize(
    ("spec", "package"), [("map50", "pycocotools"), ({"name": "cer", "alphabet": "_a"}, "jiwer")]
)
def test_says_which_extra_is_missing(
    spec: Any, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == package:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingTool, match=rf"{package}\n.*edge-compressor\[metrics\]"):
        load_metric(spec, HERE)


def test_functions_and_what_they_say_of_themselves(tmp_path: Path) -> None:
    (tmp_path / "my_metric_a.py").write_text(
        "def loss(outputs, labels):\n    return 1.0\nloss.higher_is_better = False\n"
    )
    metric = load_metric("my_metric_a:loss", tmp_path)
    assert (metric.name, metric.higher_is_better, metric.kind) == ("loss", False, "whole")
    turned = load_metric({"name": "my_metric_a:loss", "higher_is_better": True}, tmp_path)
    assert turned.higher_is_better
    with pytest.raises(UsageError, match="yes or no"):
        load_metric({"name": "my_metric_a:loss", "higher_is_better": "no"}, tmp_path)
    with pytest.raises(UsageError, match="unknown option"):
        load_metric({"name": "my_metric_a:loss", "decode": "x"}, tmp_path)


def test_identity_holds_options_and_code(tmp_path: Path) -> None:
    (tmp_path / "my_metric_b.py").write_text("def f(outputs, labels):\n    return 1.0\n")
    first = load_metric("my_metric_b:f", tmp_path).identity()
    assert first["code"]
    assert load_metric({"name": "f1", "threshold": 0.1}, HERE).identity()["options"] == {
        "threshold": 0.1
    }
    assert load_metric("top1", HERE).identity() != load_metric("top5", HERE).identity()


def test_functions_handed_to_the_api() -> None:
    def score(outputs: Any, labels: Any) -> float:
        return 0.0

    score.fraction = True  # type: ignore[attr-defined]
    assert user_metric(score).name == "score"
    assert evaluator_metric(score) == Metric(
        "score", "whole", True, True, needs_labels=False, function=score
    )


def test_names() -> None:
    wanted = "agreement auc cer f1 mae map50 map50_95 miou perplexity rmse sqnr top1 top5 wer"
    assert metric_names() == wanted.split()


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(["top1", "f1", "auc", "mae", "rmse"]), st.integers(0, 1000))
def test_counting_twice_is_having_twice(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    found, labels = rng.normal(size=(12, 3)), np.arange(12) % 3
    if name in ("mae", "rmse"):
        found, labels = found[:, :1], rng.normal(size=12)
    counts = rng.integers(1, 4, 12)
    twice = np.repeat(np.arange(12), counts)
    assert value(name, found, labels, counts) == pytest.approx(
        value(name, found[twice], labels[twice]), rel=1e-9
    )
