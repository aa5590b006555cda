"""Labels that are boxes: rows (class, x1, y1, x2, y2, crowd) in pixels of the model's input."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.data.bind import Array
from runtimes.errors import UsageError
from runtimes.preprocess import Preprocessing

Boxes = NDArray[np.float64]


def as_boxes(label: Any, where: str) -> Array:
    """A detection label as rows (class, x1, y1, x2, y2, crowd); class -1 pads and is dropped."""
    rows = np.asarray(label, dtype=np.float64)
    if rows.size == 0:
        return np.zeros((0, 6))
    if rows.ndim != 2 or rows.shape[1] not in (5, 6):
        raise UsageError(
            "not boxes",
            where=where,
            expected="rows of class, x1, y1, x2, y2 (pixels of the model's input)",
            got=str(list(rows.shape)),
        )
    rows = rows if rows.shape[1] == 6 else np.hstack([rows, np.zeros((len(rows), 1))])
    return rows[rows[:, 0] >= 0]


def corners(box: Sequence[float]) -> list[float]:
    """x, y, width, height → x1, y1, x2, y2."""
    x, y, width, height = box
    return [x, y, x + width, y + height]


def placed(rows: Boxes, how: Preprocessing, path: Path, size: tuple[Any, Any]) -> Boxes:
    """Rows (class, x1, y1, x2, y2, crowd) in the picture's pixels → in the input's pixels."""
    if not len(rows):
        return rows
    source = size if all(isinstance(s, int) for s in size) else picture_size(path)
    moved: Boxes = rows.copy()
    moved[:, 1:5] = how.map_boxes(rows[:, 1:5], source)
    inside = (moved[:, 3] > moved[:, 1]) & (moved[:, 4] > moved[:, 2])
    return moved[inside]


def picture_size(path: Path) -> tuple[int, int]:
    """(height, width) of a picture file."""
    from PIL import Image

    with Image.open(path) as picture:
        return picture.height, picture.width


def yolo_boxes(picture: Path, how: Preprocessing, notes: list[str]) -> Boxes:
    """Boxes of the label file beside a picture; a file that is missing is noted."""
    parts = list(picture.parts)
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        parts[last] = "labels"
    path = Path(*parts).with_suffix(".txt")
    if not path.is_file():
        notes.append(str(path))
        return np.zeros((0, 6))
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    rows = [_yolo_row(line, path) for line in lines]
    if not rows:
        return np.zeros((0, 6))
    boxes = np.array(rows)
    height, width = picture_size(picture)
    boxes[:, [1, 3]] *= width
    boxes[:, [2, 4]] *= height
    return placed(boxes, how, picture, (height, width))


def _yolo_row(line: Sequence[str], path: Path) -> list[float]:
    """(class, x1, y1, x2, y2, crowd), relative to the picture, of a box or a polygon."""
    try:
        values = [float(value) for value in line]
    except ValueError as error:
        raise UsageError(f"not a number: {error}", where=str(path)) from error
    if len(values) == 5:
        _, x, y, width, height = values
        return [values[0], x - width / 2, y - height / 2, x + width / 2, y + height / 2, 0.0]
    if len(values) >= 7 and len(values) % 2 == 1:
        xs, ys = values[1::2], values[2::2]
        return [values[0], min(xs), min(ys), max(xs), max(ys), 0.0]
    raise UsageError(
        "not a box", where=str(path), expected="class x y width height", got=" ".join(line)
    )
