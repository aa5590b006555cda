"""Mean average precision of detectors: decoding, non-maximum suppression, COCO matching.

pycocotools matches detections to boxes once; precision and recall are accumulated here from its
matches, so that a bootstrap resample of the pictures costs milliseconds. Boxes are x1, y1, x2, y2
in pixels of the model's input.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.data.bind import Array
from compressor.data.boxes import as_boxes
from compressor.metrics import Counts, Metric, Reducer, Rows
from compressor.metrics.basic import pick_output
from runtimes.base import Outputs
from runtimes.errors import MissingTool, UsageError

Floats = NDArray[np.float64]
DECODERS = ("yolov5", "yolov8", "end2end")
MAX_MATCHED = 100  # detections a picture, as COCO counts them
RESAMPLES = 500  # each costs tens of milliseconds
_BEFORE_NMS = 30_000
_PAIRED = 1_000  # boxes whose overlaps are computed all at once


@dataclass(frozen=True)
class Decoding:
    """How raw outputs become boxes; defaults are those of Ultralytics' validation.

    Attributes:
        decode: `yolov5`: (n, boxes, 5 + classes) with objectness; `yolov8`: (n, 4 + classes,
            boxes); `end2end`: (n, boxes, 6) of x1, y1, x2, y2, score, class, nothing left to
            suppress; or a function of (outputs) → per picture rows of x1, y1, x2, y2, score, class.
        conf: lowest score that counts.
        iou: overlap above which the lower score of a class is dropped.
        max_detections: kept per picture.
        multi_label: a box may carry several classes.
        agnostic: boxes of different classes suppress each other too.
        output: name of the output.
    """

    decode: str | Callable[[Outputs], Sequence[Array]] = "yolov8"
    conf: float = 0.001
    iou: float = 0.7
    max_detections: int = 300
    multi_label: bool = True
    agnostic: bool = False
    output: str | None = None

    def boxes(self, outputs: Outputs) -> list[Floats]:
        """Per picture rows of (x1, y1, x2, y2, score, class), highest score first."""
        if callable(self.decode):
            found = [np.asarray(rows, np.float64).reshape(-1, 6) for rows in self.decode(outputs)]
            return [_best(rows, self.max_detections) for rows in found]
        raw = pick_output(outputs, self.output, (3,), "map")
        return [self._one(picture.astype(np.float64)) for picture in raw]

    def _one(self, raw: Floats) -> Floats:
        if self.decode == "end2end":
            if raw.shape[1] != 6:
                raise _wrong_head("end2end", "(n, boxes, 6)", raw)
            return _best(raw[raw[:, 4] >= self.conf], self.max_detections)
        corners, scores = _yolo(raw, str(self.decode))
        rows = _candidates(corners, scores, self.conf, self.multi_label)
        return suppress(rows, self.iou, self.agnostic, self.max_detections)


def _wrong_head(decode: str, wanted: str, raw: Floats) -> UsageError:
    return UsageError(
        f"the output is not that of {decode}",
        where="metric map",
        expected=wanted,
        got=f"(n, {raw.shape[0]}, {raw.shape[1]})",
        fix="name another decode: " + ", ".join(DECODERS) + ", module:function",
    )


def _yolo(raw: Floats, decode: str) -> tuple[Floats, Floats]:
    """(corners (boxes, 4), scores (boxes, classes)) of one picture's raw head."""
    if decode == "yolov8":
        if raw.shape[0] < 5 or raw.shape[0] > raw.shape[1]:
            raise _wrong_head(decode, "(n, 4 + classes, boxes)", raw)
        rows = raw.T
        centre, scores = rows[:, :4], rows[:, 4:]
    else:
        if raw.shape[1] < 6 or raw.shape[1] > raw.shape[0]:
            raise _wrong_head(decode, "(n, boxes, 5 + classes)", raw)
        centre, scores = raw[:, :4], raw[:, 5:] * raw[:, 4:5]
    half = centre[:, 2:] / 2
    return np.hstack([centre[:, :2] - half, centre[:, :2] + half]), scores


def _candidates(corners: Floats, scores: Floats, conf: float, multi_label: bool) -> Floats:
    if multi_label:
        box, kind = np.nonzero(scores > conf)
    else:
        kind = scores.argmax(axis=1)
        box = np.flatnonzero(scores[np.arange(len(scores)), kind] > conf)
        kind = kind[box]
    rows = np.column_stack([corners[box], scores[box, kind], kind])
    return _best(rows, _BEFORE_NMS)


def _best(rows: Floats, count: int) -> Floats:
    return rows[np.argsort(-rows[:, 4], kind="stable")][:count]


def suppress(rows: Floats, iou: float, agnostic: bool, most: int) -> Floats:
    """Greedy non-maximum suppression of rows sorted by falling score; the `most` best are kept.

    Boxes suppress those of their own class, and of any class where `agnostic`.
    """
    kinds = np.zeros(len(rows)) if agnostic else rows[:, 5]
    alike = [np.flatnonzero(kinds == kind) for kind in np.unique(kinds)]
    kept = [which[_greedy(rows[which, :4], iou, most)] for which in alike]
    return rows[np.sort(np.concatenate(kept))[:most]] if kept else rows


def _greedy(corners: Floats, iou: float, most: int) -> list[int]:
    area = np.prod(np.maximum(corners[:, 2:] - corners[:, :2], 0), axis=1)
    at_once = len(corners) <= _PAIRED
    apart = _apart(corners, area, np.arange(len(corners)), iou) if at_once else None
    left, kept = np.ones(len(corners), bool), []
    for i in range(len(corners)):
        if not left[i]:
            continue
        kept.append(i)
        if len(kept) == most:
            break
        left &= apart[i] if apart is not None else _apart(corners, area, np.array([i]), iou)[0]
    return kept


def _apart(corners: Floats, area: Floats, which: NDArray[np.int64], iou: float) -> NDArray[np.bool]:
    """[which, boxes]: whether two boxes overlap by no more than `iou`."""
    low = np.maximum(corners[which, None, :2], corners[None, :, :2])
    sides = np.maximum(np.minimum(corners[which, None, 2:], corners[None, :, 2:]) - low, 0)
    both = sides[..., 0] * sides[..., 1]
    apart: NDArray[np.bool] = both <= iou * (area[which, None] + area[None] - both)
    return apart


def map50(
    decode: str | Callable[[Outputs], Sequence[Array]] = "yolov8",
    conf: float = 0.001,
    iou: float = 0.7,
    max_detections: int = 300,
    multi_label: bool = True,
    agnostic: bool = False,
    output: str | None = None,
) -> Metric:
    """COCO average precision at overlap 0.5, mean over classes; options as in `Decoding`."""
    how = Decoding(decode, conf, iou, max_detections, multi_label, agnostic, output)
    return _map("map50", how, np.array([0.5]))


def map50_95(
    decode: str | Callable[[Outputs], Sequence[Array]] = "yolov8",
    conf: float = 0.001,
    iou: float = 0.7,
    max_detections: int = 300,
    multi_label: bool = True,
    agnostic: bool = False,
    output: str | None = None,
) -> Metric:
    """COCO average precision, mean over overlaps 0.50, 0.55, … 0.95 and classes."""
    how = Decoding(decode, conf, iou, max_detections, multi_label, agnostic, output)
    return _map("map50_95", how, np.linspace(0.5, 0.95, 10))


def _map(name: str, how: Decoding, overlaps: Floats) -> Metric:
    if isinstance(how.decode, str) and how.decode not in DECODERS:
        raise UsageError(
            f"unknown decode {how.decode!r}",
            where=f"metric {name}",
            expected="one of " + ", ".join(DECODERS) + ", or module:function",
        )
    for key, value in (("conf", how.conf), ("iou", how.iou)):
        if not 0.0 <= value <= 1.0:
            raise UsageError(f"{key} lies in 0–1", where=f"metric {name}", got=str(value))
    _coco()

    def observe(outputs: Outputs, labels: Sequence[Any]) -> Rows:
        found = how.boxes(outputs)
        if len(found) != len(labels):
            raise UsageError(
                "not one list of boxes a sample",
                where=f"metric {name}",
                expected=str(len(labels)),
                got=str(len(found)),
            )
        return [
            _record(boxes, as_boxes(label, f"metric {name}"))
            for boxes, label in zip(found, labels, strict=True)
        ]

    return Metric(
        name,
        "rows",
        fraction=True,
        observe=observe,
        reducer=lambda rows: _map_reducer(rows, overlaps),
        resamples=RESAMPLES,
    )


def _record(found: Floats, wanted: Floats) -> Floats:
    """One picture's rows: (is label, class, score or crowd, x1, y1, x2, y2)."""
    told = np.column_stack([np.zeros(len(found)), found[:, 5], found[:, 4], found[:, :4]])
    true = np.column_stack([np.ones(len(wanted)), wanted[:, 0], wanted[:, 5], wanted[:, 1:5]])
    return np.vstack([told, true])


# ── average precision ────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Matches:
    """One class: per detection, by falling score: its picture, hit and counted per overlap."""

    picture: NDArray[np.int64]
    hit: Floats  # (overlaps, detections), 1 or 0
    counted: Floats
    boxes: Floats  # labelled boxes per picture, crowds apart


def _map_reducer(rows: Rows, overlaps: Floats) -> Reducer:
    classes = _matches(list(rows), overlaps)

    def value(counts: Counts) -> float:
        found = [p for p in (_average_precision(one, counts) for one in classes) if p is not None]
        return float(np.mean(found)) if found else float("nan")

    return value


def _average_precision(one: _Matches, counts: Counts) -> float | None:
    """Mean over overlaps of the precision at 101 recalls, as COCOeval accumulates it."""
    total = float(one.boxes @ counts)
    if total == 0:
        return None
    weight = counts[one.picture]
    if not len(weight):
        return 0.0
    hits = np.cumsum(one.hit * weight, axis=1)
    all_told = np.maximum(np.cumsum(one.counted * weight, axis=1), np.spacing(1.0))
    precision = np.maximum.accumulate((hits / all_told)[:, ::-1], axis=1)[:, ::-1]
    values = [_at_recalls(r, p) for r, p in zip(hits / total, precision, strict=True)]
    return float(np.mean(values))


def _at_recalls(recall: Floats, precision: Floats) -> float:
    """Mean precision at 101 recalls; 0 where a recall is never reached."""
    at = np.searchsorted(recall, np.linspace(0.0, 1.0, 101), side="left")
    reached = at < len(recall)
    return float(np.where(reached, precision[np.minimum(at, len(recall) - 1)], 0.0).mean())


def _matches(pictures: Sequence[Floats], overlaps: Floats) -> list[_Matches]:
    evaluated = _coco_matches(pictures, overlaps)
    made = []
    for images in evaluated.values():
        boxes = np.zeros(len(pictures))
        parts: list[tuple[Floats, NDArray[np.int64], Floats, Floats]] = []
        for picture, image in images:
            boxes[picture] = int(np.sum(np.asarray(image["gtIgnore"]) == 0))
            scores = np.asarray(image["dtScores"], dtype=np.float64)
            where = np.full(len(scores), picture, dtype=np.int64)
            counted = ~np.asarray(image["dtIgnore"]).reshape(len(overlaps), -1).astype(bool)
            hit = counted & (np.asarray(image["dtMatches"]).reshape(len(overlaps), -1) > 0)
            parts.append((scores, where, hit.astype(np.float64), counted.astype(np.float64)))
        order = np.argsort(-np.concatenate([p[0] for p in parts]), kind="mergesort")
        made.append(
            _Matches(
                np.concatenate([p[1] for p in parts])[order],
                np.concatenate([p[2] for p in parts], axis=1)[:, order],
                np.concatenate([p[3] for p in parts], axis=1)[:, order],
                boxes,
            )
        )
    return made


def _coco_matches(
    pictures: Sequence[Floats], overlaps: Floats
) -> dict[int, list[tuple[int, Mapping[str, Any]]]]:
    """Class → (picture, pycocotools' record of it); classes without a labelled box are left out."""
    truth = _dataset(pictures, labels=True)
    known = {note["category_id"] for note in truth["annotations"] if not note["iscrowd"]}
    if not known:
        return {}
    evaluator = _evaluate(truth, _dataset(pictures, labels=False)["annotations"], overlaps)
    found: dict[int, list[tuple[int, Mapping[str, Any]]]] = {}
    for image in evaluator.evalImgs:
        if image is not None and image["category_id"] in known:
            found.setdefault(image["category_id"], []).append((image["image_id"] - 1, image))
    return dict(sorted(found.items()))


def _dataset(pictures: Sequence[Floats], *, labels: bool) -> dict[str, Any]:
    notes: list[dict[str, Any]] = []
    for number, rows in enumerate(pictures):
        for _, kind, extra, x1, y1, x2, y2 in rows[rows[:, 0] == float(labels)]:
            width, height = max(0.0, x2 - x1), max(0.0, y2 - y1)
            note = {
                "id": len(notes) + 1,  # 0 would read as "no match"
                "image_id": number + 1,
                "category_id": int(kind),
                "bbox": [x1, y1, width, height],
                "area": width * height,
                "iscrowd": int(extra) if labels else 0,
            }
            notes.append(note if labels else {**note, "score": extra})
    classes = sorted({note["category_id"] for note in notes})
    return {
        "info": {},
        "images": [{"id": i + 1} for i in range(len(pictures))],
        "categories": [{"id": c} for c in classes],
        "annotations": notes,
    }


def _evaluate(truth: dict[str, Any], found: list[dict[str, Any]], overlaps: Floats) -> Any:
    coco, cocoeval = _coco()
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        known, told = coco.COCO(), coco.COCO()
        known.dataset = truth
        told.dataset = {**truth, "annotations": found}
        known.createIndex()
        told.createIndex()
        evaluator = cocoeval.COCOeval(known, told, "bbox")
        evaluator.params.iouThrs = overlaps
        evaluator.params.maxDets = [MAX_MATCHED]
        evaluator.params.areaRng = [[0.0, 1e10]]
        evaluator.params.areaRngLbl = ["all"]
        evaluator.evaluate()
    return evaluator


def _coco() -> tuple[Any, Any]:
    try:
        from pycocotools import coco, cocoeval
    except ImportError as error:
        raise MissingTool(
            "map50 and map50_95 need pycocotools", fix='pip install "edge-compressor[metrics]"'
        ) from error
    return coco, cocoeval
