"""Detection: decoding, suppression, and average precision against pycocotools' own."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compressor.metrics import detection, load_metric
from compressor.metrics.detection import Decoding, _dataset, suppress
from runtimes.errors import UsageError

coco = pytest.importorskip("pycocotools.coco", reason="average precision needs pycocotools")
cocoeval = pytest.importorskip("pycocotools.cocoeval", reason="average precision needs pycocotools")


def some_boxes(rng: np.random.Generator, n: int) -> np.ndarray:
    corner = rng.uniform(0, 80, (n, 2))
    return np.hstack([corner, corner + rng.uniform(5, 40, (n, 2))])


def pictures(n: int = 25, seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(labels, detections): most boxes found with some error, some missed, some made up."""
    rng = np.random.default_rng(seed)
    labels, found = [], []
    for _ in range(n):
        count = int(rng.integers(0, 8))
        boxes, kinds = some_boxes(rng, count), rng.integers(0, 3, count)
        crowd = rng.random(count) < 0.1
        labels.append(np.column_stack([kinds, boxes, crowd]))
        seen = rng.random(count) < 0.8
        moved = boxes[seen] + rng.normal(0, 2.0, (int(seen.sum()), 4))
        extra = some_boxes(rng, 3)
        rows = np.vstack([moved, extra])
        what = np.concatenate([kinds[seen], rng.integers(0, 4, 3)])
        found.append(np.column_stack([rows, np.round(rng.random(len(rows)), 2), what]))
    return labels, found


def measured(name: str, labels: Any, found: Any, counts: Any = None) -> float:
    metric = load_metric({"name": name, "decode": "end2end", "conf": 0.0}, Path())
    assert metric.observe is not None
    assert metric.reducer is not None
    longest = max(len(rows) for rows in found)
    padded = np.full((len(found), longest, 6), -1.0)
    for i, rows in enumerate(found):
        padded[i, : len(rows)] = rows
    rows = metric.observe({"boxes": padded}, labels)
    weights = np.ones(len(rows)) if counts is None else np.asarray(counts, float)
    return metric.reducer(rows)(weights)


def reference(labels: Any, found: Any) -> tuple[float, float]:
    """(mAP 0.5, mAP 0.5:0.95) as pycocotools says."""
    metric = load_metric({"name": "map50", "decode": "end2end", "conf": 0.0}, Path())
    assert metric.observe is not None
    rows = [metric.observe({"b": f[None]}, [t])[0] for f, t in zip(found, labels, strict=True)]
    with contextlib.redirect_stdout(io.StringIO()):
        truth, told = coco.COCO(), coco.COCO()
        truth.dataset = _dataset(rows, labels=True)
        told.dataset = {**truth.dataset, "annotations": _dataset(rows, labels=False)["annotations"]}
        truth.createIndex()
        told.createIndex()
        evaluator = cocoeval.COCOeval(truth, told, "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats[1], evaluator.stats[0]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_average_precision_equals_pycocotools(seed: int) -> None:
    labels, found = pictures(seed=seed)
    half, whole = reference(labels, found)
    assert 0.1 < whole < half < 0.95
    assert measured("map50", labels, found) == pytest.approx(half, abs=1e-12)
    assert measured("map50_95", labels, found) == pytest.approx(whole, abs=1e-12)


def test_a_picture_that_counts_twice_is_there_twice() -> None:
    labels, found = pictures(12)
    twice = measured("map50_95", [*labels, labels[3]], [*found, found[3]])
    counts = np.ones(12)
    counts[3] = 2
    assert measured("map50_95", labels, found, counts) == pytest.approx(twice, abs=1e-12)


def test_perfect_and_empty() -> None:
    labels = [np.array([[1, 10, 10, 30, 30, 0]]), np.array([[0, 5, 5, 9, 9, 0]])]
    perfect = [np.array([[10, 10, 30, 30, 0.9, 1]]), np.array([[5, 5, 9, 9, 0.8, 0]])]
    assert measured("map50_95", labels, perfect) == pytest.approx(1.0)
    assert measured("map50", labels, [p - [0, 0, 0, 0, 0, 2] for p in perfect]) == 0.0
    assert np.isnan(measured("map50", [np.zeros((0, 6))] * 2, perfect))


def heads(rows: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The same boxes as YOLOv5 and as YOLOv8 heads put them."""
    x1, y1, x2, y2, score, kind = rows.T
    centre = np.column_stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])
    each = np.eye(classes)[kind.astype(int)]
    five = np.hstack([centre, np.sqrt(score)[:, None], each * np.sqrt(score)[:, None]])
    eight = np.hstack([centre, each * score[:, None]]).T
    return five[None], eight[None]


def test_heads_decode_to_the_same_boxes() -> None:
    rng = np.random.default_rng(3)
    rows = np.column_stack([some_boxes(rng, 40), rng.permutation(40) / 50 + 0.1, np.arange(40) % 4])
    five, eight = heads(rows, 4)
    wanted = suppress(rows[np.argsort(-rows[:, 4])], 0.6, agnostic=False, most=300)
    for decode, head in (("yolov5", five), ("yolov8", eight)):
        found = Decoding(decode, iou=0.6).boxes({"head": head})[0]
        np.testing.assert_allclose(found, wanted, atol=1e-9)
    assert 5 < len(wanted) <= 40


def test_suppression_is_per_class_unless_agnostic() -> None:
    first, near, apart = [0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60]
    rows = np.array([[*first, 0.9, 0], [*near, 0.8, 0], [*first, 0.7, 1], [*apart, 0.1, 0]])
    assert suppress(rows, 0.5, agnostic=False, most=300)[:, 4].tolist() == [0.9, 0.7, 0.1]
    assert suppress(rows, 0.5, agnostic=True, most=300)[:, 4].tolist() == [0.9, 0.1]
    assert suppress(rows[:0], 0.5, agnostic=False, most=300).shape == (0, 6)


@pytest.mark.parametrize("agnostic", [False, True])
def test_suppression_of_many_boxes_is_that_of_few_at_a_time(
    agnostic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(8)
    rows = np.column_stack(
        [some_boxes(rng, 200), np.sort(rng.random(200))[::-1], np.arange(200) % 3]
    )
    whole = suppress(rows, 0.3, agnostic, most=300)
    np.testing.assert_array_equal(suppress(rows, 0.3, agnostic, most=20), whole[:20])
    monkeypatch.setattr(detection, "_PAIRED", 10)
    np.testing.assert_array_equal(suppress(rows, 0.3, agnostic, most=300), whole)
    assert 20 < len(whole) < 200


def test_scores_and_counts_are_limited() -> None:
    rng = np.random.default_rng(4)
    rows = np.column_stack([some_boxes(rng, 40), np.arange(40) / 40, np.zeros(40)])
    _, eight = heads(rows, 2)
    found = Decoding("yolov8", conf=0.5, iou=1.0, max_detections=7).boxes({"head": eight})[0]
    assert found[:, 4].tolist() == pytest.approx((np.arange(39, 32, -1) / 40).tolist())


def test_wrong_heads_are_named() -> None:
    with pytest.raises(UsageError, match="not that of yolov8"):
        Decoding("yolov8").boxes({"head": np.zeros((1, 8400, 84))})
    with pytest.raises(UsageError, match="not that of yolov5"):
        Decoding("yolov5").boxes({"head": np.zeros((1, 85, 25200))})
    with pytest.raises(UsageError, match=r"n, boxes, 6"):
        Decoding("end2end").boxes({"head": np.zeros((1, 300, 7))})


def test_labels_that_are_no_boxes() -> None:
    metric = load_metric({"name": "map50", "decode": "end2end"}, Path())
    assert metric.observe is not None
    with pytest.raises(UsageError, match="rows of class, x1, y1, x2, y2"):
        metric.observe({"b": np.zeros((1, 2, 6))}, [[[1, 2, 3]]])


def test_own_decoding(tmp_path: Path) -> None:
    (tmp_path / "my_decode_a.py").write_text("def boxes(outputs):\n    return outputs['b']\n")
    metric = load_metric({"name": "map50", "decode": "my_decode_a:boxes"}, tmp_path)
    assert metric.observe is not None
    assert metric.reducer is not None
    rows = metric.observe({"b": np.array([[[0, 0, 9, 9, 0.5, 2]]])}, [[[2, 0, 0, 9, 9]]])
    assert metric.reducer(rows)(np.ones(1)) == pytest.approx(1.0)
    assert metric.identity()["code"]
