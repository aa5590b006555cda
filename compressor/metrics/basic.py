"""Metrics over classes, numbers and pixels, in numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.data.bind import Array
from compressor.metrics import Counts, Metric, Reducer, Rows, mean_of_rows
from runtimes.base import Outputs
from runtimes.errors import UsageError

AVERAGES = ("macro", "micro", "weighted", "binary")


def pick_output(outputs: Outputs, output: str | None, ranks: Sequence[int], metric: str) -> Array:
    """The output a metric works on: the named one, or the only one of a fitting rank."""
    if output is not None:
        if output not in outputs:
            raise UsageError(
                f"no output {output!r}", where=f"metric {metric}", expected=", ".join(outputs)
            )
        fitting = [output]
    else:
        fitting = [name for name, array in outputs.items() if array.ndim in ranks]
    if len(fitting) == 1 and outputs[fitting[0]].ndim in ranks:
        return outputs[fitting[0]]
    shown = ", ".join(f"{n}{list(a.shape)}" for n, a in outputs.items())
    wanted = " or ".join(str(r) for r in ranks)
    raise UsageError(
        f"{'no' if len(fitting) < 2 else 'more than one'} output fits",
        where=f"metric {metric}",
        expected=f"one output with {wanted} dimensions",
        got=shown,
        fix="" if len(fitting) < 2 else f"say metric: {{name: {metric}, output: {fitting[0]}}}",
    )


def class_labels(labels: Sequence[Any], classes: int, metric: str) -> NDArray[np.int64]:
    """Labels of a batch as class numbers; `UsageError` where they are none of 0…classes-1."""
    try:
        array = np.asarray(labels)
    except ValueError:
        array = np.empty((len(labels), 0))
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    whole = array.dtype.kind in "iub" or (array.dtype.kind == "f" and np.all(array % 1 == 0))
    if array.ndim != 1 or not whole:
        raise UsageError(
            "labels are no class numbers",
            where=f"metric {metric}",
            expected=f"one integer a sample, 0–{classes - 1}",
            got=f"{array.dtype}{list(array.shape[1:]) or ''}",
            fix="labels.argmax(1) if they are one-hot" if array.ndim == 2 else "",
        )
    numbers = array.astype(np.int64)
    wrong = numbers[(numbers < 0) | (numbers >= classes)]
    if wrong.size:
        raise UsageError(
            f"label {wrong[0]} is no class of the model",
            where=f"metric {metric}",
            expected=f"0–{classes - 1} ({classes} outputs)",
            got=f"{wrong.size} such labels in one batch",
            fix="number the classes as the model's outputs, from 0",
        )
    return numbers


def answers(scores: Array) -> NDArray[np.int64]:
    """Index of the highest score along axis 1; -1 where a score is NaN."""
    best = np.where(np.isnan(scores).any(axis=1), -1, np.argmax(scores, axis=1))
    return best.astype(np.int64)


def guess_answers(outputs: Outputs) -> Array | None:
    """The answers of what looks like a classifier: one float output (n, classes), or None."""
    found = [a for a in outputs.values() if a.dtype.kind == "f" and a.ndim == 2 and a.shape[1] > 1]
    return answers(found[0]) if len(found) == 1 and len(outputs) == 1 else None


# ── classes ──────────────────────────────────────────────────────────────────────────────────────


def top1(output: str | None = None) -> Metric:
    """Share of samples whose highest score is the label's."""
    return _top(1, "top1", output)


def top5(output: str | None = None) -> Metric:
    """Share of samples whose label is among the five highest scores."""
    return _top(5, "top5", output)


def _top(k: int, name: str, output: str | None) -> Metric:
    def observe(outputs: Outputs, labels: Sequence[Any]) -> Rows:
        scores = pick_output(outputs, output, (2,), name)
        wanted = class_labels(labels, scores.shape[1], name)
        if scores.shape[1] <= k:
            raise UsageError(
                f"{name} is always right for {scores.shape[1]} classes", where=f"metric {name}"
            )
        own = np.take_along_axis(scores, wanted[:, None], 1)
        # on ties the lower index goes first, as argmax has it
        before = np.arange(scores.shape[1])[None] < wanted[:, None]
        ahead = (scores > own) | ((scores == own) & before)
        right = (ahead.sum(axis=1) < k) & np.isfinite(scores).all(axis=1)
        return np.asarray(right, dtype=np.float64)[:, None]

    def decide(outputs: Outputs) -> Array:
        return answers(pick_output(outputs, output, (2,), name))

    return Metric(
        name, "binary", fraction=True, observe=observe, reducer=mean_of_rows, decide=decide
    )


def f1(output: str | None = None, average: str = "macro", threshold: float = 0.5) -> Metric:
    """F1 score; `threshold` applies where the model has one output (0.5: a probability)."""
    if average not in AVERAGES:
        raise UsageError(
            "unknown average", where="metric f1", expected=", ".join(AVERAGES), got=repr(average)
        )

    def decide(outputs: Outputs) -> Array:
        scores = pick_output(outputs, output, (1, 2), "f1")
        flat = scores.reshape(len(scores), -1)
        if flat.shape[1] > 1:
            return answers(flat)
        return np.asarray(flat[:, 0] > threshold, dtype=np.int64)

    def observe(outputs: Outputs, labels: Sequence[Any]) -> Rows:
        scores = pick_output(outputs, output, (1, 2), "f1")
        classes = max(2, scores.reshape(len(scores), -1).shape[1])
        wanted = class_labels(labels, classes, "f1")
        size = np.full(len(wanted), classes)
        return np.stack([wanted, decide(outputs), size], axis=1).astype(np.float64)

    return Metric(
        "f1",
        "rows",
        fraction=True,
        observe=observe,
        reducer=lambda rows: _f1_reducer(rows, average),
        decide=decide,
    )


def _f1_reducer(rows: Rows, average: str) -> Reducer:
    table = np.asarray(rows).astype(np.int64)
    classes = int(table[:, 2].max())
    # one more column: an answer of NaN scores is none of the classes
    cell = table[:, 0] * (classes + 1) + np.where(table[:, 1] < 0, classes, table[:, 1])

    def value(counts: Counts) -> float:
        seen = np.bincount(cell, counts, classes * (classes + 1)).reshape(classes, classes + 1)
        hit, told, true = np.diag(seen), seen[:, :classes].sum(axis=0), seen.sum(axis=1)
        if average == "micro":
            return float(2 * hit.sum() / (told.sum() + true.sum()))
        score = 2 * hit / np.maximum(told + true, 1e-300)
        if average == "binary":
            return float(score[1])
        if average == "weighted":
            return float(score @ true / true.sum())
        return float(score[told + true > 0].mean())

    return value


def auc(output: str | None = None) -> Metric:
    """Area under the ROC curve; with more than two classes the mean over one against the rest."""

    def observe(outputs: Outputs, labels: Sequence[Any]) -> Rows:
        scores = pick_output(outputs, output, (1, 2), "auc").astype(np.float64)
        scores = scores.reshape(len(scores), -1)
        wanted = class_labels(labels, max(2, scores.shape[1]), "auc")
        if scores.shape[1] > 1:
            scores = _probabilities(scores)
        scores = scores[:, 1:] if scores.shape[1] == 2 else scores
        return np.hstack([wanted[:, None].astype(np.float64), scores])

    def decide(outputs: Outputs) -> Array | None:
        scores = pick_output(outputs, output, (1, 2), "auc")
        return answers(scores) if scores.ndim == 2 and scores.shape[1] > 1 else None

    return Metric(
        "auc", "rows", fraction=True, observe=observe, reducer=_auc_reducer, decide=decide
    )


def _probabilities(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    if np.all(scores >= 0) and np.allclose(scores.sum(axis=1), 1.0, atol=1e-3):
        return scores
    power = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(power / power.sum(axis=1, keepdims=True))


def _auc_reducer(rows: Rows) -> Reducer:
    table = np.asarray(rows)
    wanted, scores = table[:, 0], table[:, 1:]
    positives = [1] if scores.shape[1] == 1 else list(range(scores.shape[1]))
    parts = [_one_auc(scores[:, i], wanted == positive) for i, positive in enumerate(positives)]

    def value(counts: Counts) -> float:
        if not np.isfinite(scores).all():
            return float("nan")
        areas = np.array([part(counts) for part in parts])
        there = areas[np.isfinite(areas)]
        return float(there.mean()) if there.size else float("nan")

    return value


def _one_auc(score: NDArray[np.float64], positive: NDArray[np.bool_]) -> Reducer:
    """Chance that a positive scores above a negative; ties count one half."""
    order = np.argsort(score, kind="stable")
    ordered = score[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    share = positive[order].astype(np.float64)

    def value(counts: Counts) -> float:
        weight = counts[order]
        up = weight * share
        down = weight - up
        if len(starts) < len(order):
            up, down = np.add.reduceat(up, starts), np.add.reduceat(down, starts)
        total = up.sum() * down.sum()
        if total == 0:
            return float("nan")
        return float(up @ (np.cumsum(down) - down / 2) / total)

    return value


# ── numbers ──────────────────────────────────────────────────────────────────────────────────────


def mae(output: str | None = None) -> Metric:
    """Mean absolute error, over the elements of a sample and then over samples."""
    observe = _error_observer("mae", output, np.abs)
    return Metric("mae", "mean", higher_is_better=False, observe=observe, reducer=mean_of_rows)


def rmse(output: str | None = None) -> Metric:
    """Root of the mean squared error."""
    observe = _error_observer("rmse", output, np.square)

    def reducer(rows: Rows) -> Reducer:
        mean = mean_of_rows(rows)
        return lambda counts: float(np.sqrt(mean(counts)))

    return Metric("rmse", "rows", higher_is_better=False, observe=observe, reducer=reducer)


def _error_observer(
    metric: str, output: str | None, power: Callable[[Array], Array]
) -> Callable[[Outputs, Sequence[Any]], Rows]:
    def observe(outputs: Outputs, labels: Sequence[Any]) -> Rows:
        if output is None and len(outputs) > 1:
            pick_output(outputs, None, range(1, 9), metric)  # raises: which one?
        values = pick_output(outputs, output, range(1, 9), metric).astype(np.float64)
        wanted = np.asarray(labels)
        if wanted.dtype.kind not in "iufb" or wanted.size != values.size:
            raise UsageError(
                "labels do not fit the output",
                where=f"metric {metric}",
                expected=f"numbers of shape {list(values.shape)}",
                got=f"{wanted.dtype}{list(wanted.shape)}",
            )
        gap = power(values - wanted.reshape(values.shape))
        return np.asarray(gap.reshape(len(values), -1).mean(axis=1, keepdims=True))

    return observe


# ── pixels ───────────────────────────────────────────────────────────────────────────────────────


def miou(output: str | None = None, classes: int | None = None, ignore: int = 255) -> Metric:
    """Mean intersection over union, over classes that occur; pixels labelled `ignore` do not count.

    The output is (n, classes, height, width) scores, or (n, height, width) classes with `classes`.
    """

    def decide(outputs: Outputs) -> Array:
        found = pick_output(outputs, output, (3, 4), "miou")
        return answers(found) if found.ndim == 4 else found.astype(np.int64)

    def observe(outputs: Outputs, labels: Sequence[Any]) -> Rows:
        found = pick_output(outputs, output, (3, 4), "miou")
        count = found.shape[1] if found.ndim == 4 else classes
        if count is None:
            raise UsageError(
                "the output holds classes, not scores: how many are there?",
                where="metric miou",
                fix="say metric: {name: miou, classes: 21}",
            )
        told = decide(outputs)
        wanted = _pixel_labels(labels, told.shape, count, ignore)
        return np.stack([_overlap(t, w, count, ignore) for t, w in zip(told, wanted, strict=True)])

    def reducer(rows: Rows) -> Reducer:
        table = np.asarray(rows)
        half = table.shape[1] // 2

        def value(counts: Counts) -> float:
            sums = counts @ table
            there = sums[half:] > 0
            return float((sums[:half][there] / sums[half:][there]).mean())

        return value

    return Metric("miou", "rows", fraction=True, observe=observe, reducer=reducer, decide=decide)


def _pixel_labels(
    labels: Sequence[Any], shape: tuple[int, ...], classes: int, ignore: int
) -> NDArray[np.int64]:
    wanted = np.asarray(labels)
    if wanted.shape != shape or wanted.dtype.kind not in "iub":
        raise UsageError(
            "labels do not fit the output",
            where="metric miou",
            expected=f"integers of shape {list(shape)}",
            got=f"{wanted.dtype}{list(wanted.shape)}",
        )
    wrong = wanted[(wanted != ignore) & ((wanted < 0) | (wanted >= classes))]
    if wrong.size:
        raise UsageError(
            f"label {wrong[0]} is no class of the model",
            where="metric miou",
            expected=f"0–{classes - 1}, or {ignore} to ignore",
        )
    return wanted.astype(np.int64)


def _overlap(told: Array, wanted: Array, classes: int, ignore: int) -> NDArray[np.float64]:
    keep = wanted != ignore
    told, wanted = told[keep], wanted[keep]
    there = np.bincount(wanted, minlength=classes)
    said = np.bincount(told[(told >= 0) & (told < classes)], minlength=classes)
    both = np.bincount(wanted[told == wanted], minlength=classes)
    return np.concatenate([both, there + said - both]).astype(np.float64)


# ── without labels ───────────────────────────────────────────────────────────────────────────────


def agreement(output: str | None = None) -> Metric:
    """Share of samples on which the highest score stands where the original model has it."""

    def decide(outputs: Outputs) -> Array | None:
        if output is None:
            return guess_answers(outputs)
        return answers(pick_output(outputs, output, (2, 4), "agreement"))

    return Metric("agreement", "free", fraction=True, needs_labels=False, decide=decide)


def sqnr() -> Metric:
    """Signal to quantization noise of the outputs against the original's, in dB."""
    return Metric("sqnr", "free", needs_labels=False, decide=guess_answers)
