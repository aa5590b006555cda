"""Pictures as samples: folders by class, CSV, COCO JSON, YOLO text files, Ultralytics' data.yaml.

Pictures are decoded when they are read. Boxes become rows (class, x1, y1, x2, y2) in pixels of the
model's input, where intersection over union is the same as in the original picture.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.data.bind import Array, Binder, Feed, Labels, as_array
from compressor.data.boxes import corners, placed, yolo_boxes
from compressor.data.readers import check_labels
from runtimes.errors import UsageError
from runtimes.preprocess import Preprocessing
from runtimes.types import canonical

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
ULTRALYTICS_ROLES = {"evaluation": "val"}  # every other role reads `train`


class ImageReader:
    """Pictures, prepared on demand; each makes one row of the model's only image input.

    Args:
        pictures: files, or uint8 arrays (height, width, 3) or (height, width).
        labels: one a picture, or None.
        preprocess: how a picture becomes the input.
        binder: the model's input.
        where: what the pictures are called in messages.
    """

    ragged = False

    def __init__(
        self,
        pictures: Sequence[Path] | Array,
        labels: Labels,
        preprocess: Preprocessing,
        binder: Binder,
        where: str,
    ) -> None:
        if len(binder.inputs) != 1:
            names = ", ".join(spec.name for spec in binder.inputs)
            raise UsageError(
                "pictures feed one input, and the model has several",
                where=where,
                got=names,
                fix="hand in arrays (.npz) or a module:function",
            )
        self.pictures, self.labels, self.where = pictures, labels, where
        self.preprocess, self.binder = preprocess, binder
        self.notes: list[str] = []

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, indices: Sequence[int]) -> Feed:
        """The pictures as one batch."""
        spec = self.binder.inputs[0]
        rows = []
        for index in indices:
            array = self.preprocess.apply(self.pictures[index])[None]
            where = f"{self.name(index)} after preprocessing"
            feed = {spec.name: self.binder.convert(array, spec, where)}
            self.binder.check_shapes(feed, where, rows=True)
            rows.append(feed[spec.name])
        return {spec.name: np.concatenate(rows)}

    def name(self, index: int) -> str:
        """The picture's file, or its number."""
        picture = self.pictures[index]
        return picture.name if isinstance(picture, Path) else f"picture {index}"

    def file_digests(self) -> list[str]:
        """Digest of each picture's bytes and of the preprocessing."""
        how = hashlib.sha256(canonical(self.preprocess.to_json())).digest()
        made = []
        for picture in self.pictures:
            content = picture.read_bytes() if isinstance(picture, Path) else picture.tobytes()
            made.append(hashlib.blake2b(content, digest_size=16, key=how).hexdigest())
        return made


def open_pictures(
    raw: Mapping[str, Any], preprocess: Mapping[str, Any], binder: Binder, where: str
) -> ImageReader:
    """Pictures that came as one uint8 array (n, height, width[, 3]), to be preprocessed here."""
    arrays, labels = binder.split_label(raw)
    how = _preprocessing(preprocess, binder, where)
    name = binder.inputs[0].name
    pictures = as_array(binder.select(arrays, where)[name], f"{where}: array {name!r}")
    if pictures.dtype != np.uint8 or pictures.ndim not in (3, 4):
        raise UsageError(
            f"a preprocess block, but array {name!r} holds no pictures",
            where=where,
            expected="uint8 (n, height, width) or (n, height, width, 3)",
            got=f"{pictures.dtype}{list(pictures.shape)}",
            fix="leave preprocess out where the arrays are what the model takes",
        )
    found = None if labels is None else check_labels(labels, len(pictures), where)
    return ImageReader(pictures, found, how, binder, where)


def open_images(
    folder: Path,
    preprocess: Mapping[str, Any] | None,
    labels: str | None,
    classes: Sequence[str] | None,
    binder: Binder,
) -> ImageReader:
    """A folder of pictures.

    Args:
        folder: holds the pictures, or one folder for each class.
        preprocess: the recipe's block; needed, because a wrong guess would be silent.
        labels: `folder` (the default where there are class folders), `yolo`, or a `.csv` or
            `.json` (COCO) file, relative to `folder`.
        classes: class names in the order of the model's outputs; default: sorted.
        binder: the model's input.
    """
    paths = _pictures(folder)
    if not paths:
        raise UsageError(
            "no pictures and no .npz files", where=str(folder), expected=", ".join(sorted(SUFFIXES))
        )
    how = _preprocessing(preprocess, binder, str(folder))
    notes: list[str] = []
    if labels == "yolo":
        found: Labels = [yolo_boxes(path, how, notes) for path in paths]
    elif labels in (None, "folder"):
        found = _by_folder(folder, paths, classes, required=labels == "folder")
    elif labels.lower().endswith(".csv"):
        paths, found = _by_csv(folder, folder / labels, classes)
    elif labels.lower().endswith(".json"):
        paths, found = _by_coco(folder, folder / labels, how)
    else:
        raise UsageError(
            "unknown kind of labels",
            where=str(folder),
            expected="folder, yolo, a .csv or a .json file",
            got=labels,
        )
    reader = ImageReader(paths, found, how, binder, folder.name)
    reader.notes += _counted(notes)
    return reader


def _pictures(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())


def _preprocessing(block: Any, binder: Binder, where: str) -> Preprocessing:
    if isinstance(block, Mapping):
        return Preprocessing.from_json(block)
    shape = [d if isinstance(d, int) else 224 for d in binder.inputs[0].shape[-2:]]
    raise UsageError(
        "pictures need a preprocess block" if block is None else "preprocess is not a mapping",
        where=where,
        expected="how the model was trained: a wrong guess would cost accuracy in silence",
        fix=f"for example preprocess: {{resize: {shape}, color: RGB, scale: 1/255, layout: NCHW}}",
    )


def _by_folder(
    folder: Path, paths: Sequence[Path], classes: Sequence[str] | None, *, required: bool
) -> Labels:
    names = [path.relative_to(folder).parts[0] for path in paths]
    loose = [p for p in paths if p.parent == folder]
    if loose and not required:
        return None
    if loose:
        raise UsageError(
            "labels by folder, but a picture lies in none",
            where=str(loose[0]),
            expected=f"{folder.name}/<class>/picture",
        )
    return _class_numbers(names, classes, str(folder))


def _class_numbers(
    names: Sequence[str], classes: Sequence[str] | None, where: str
) -> NDArray[np.int64]:
    if classes is None and all(name.isascii() and name.isdigit() for name in names):
        return np.array([int(name) for name in names], dtype=np.int64)
    known = {name: i for i, name in enumerate(sorted(set(names)) if classes is None else classes)}
    for name in names:
        if name not in known:
            raise UsageError(
                f"class {name!r} is not among the named ones",
                where=where,
                expected=", ".join(known),
            )
    return np.array([known[name] for name in names], dtype=np.int64)


def _by_csv(
    folder: Path, table: Path, classes: Sequence[str] | None
) -> tuple[list[Path], NDArray[np.int64]]:
    if not table.is_file():
        raise UsageError("no such file of labels", where=str(table))
    with table.open(newline="", encoding="utf-8-sig") as stream:
        rows = [row for row in csv.reader(stream) if row]
    if rows and not (folder / rows[0][0]).is_file():
        rows = rows[1:]  # the first line is a header
    for number, row in enumerate(rows):
        if len(row) < 2 or not (folder / row[0]).is_file():
            what = "no label" if len(row) < 2 else f"no picture {row[0]!r}"
            raise UsageError(f"{what} in row {number}", where=str(table), expected="file,label")
    paths = [folder / row[0] for row in rows]
    return paths, _class_numbers([row[1].strip() for row in rows], classes, str(table))


def _by_coco(folder: Path, table: Path, how: Preprocessing) -> tuple[list[Path], Labels]:
    images, notes, categories = _read_coco(table)
    number = {key: i for i, key in enumerate(sorted(c["id"] for c in categories))}
    paths = [folder / image["file_name"] for image in images]
    for path in paths:
        if not path.is_file():
            raise UsageError(f"no picture {path.name!r}", where=str(table), got=str(path))
    by_image: dict[Any, list[dict[str, Any]]] = {image["id"]: [] for image in images}
    for note in notes:
        by_image.setdefault(note["image_id"], []).append(note)
    if notes and not any("bbox" in note for note in notes):
        return paths, _one_class(images, by_image, number, table)
    labels = []
    for path, image in zip(paths, images, strict=True):
        rows = [
            [number[n["category_id"]], *corners(n["bbox"]), float(n.get("iscrowd", 0))]
            for n in by_image[image["id"]]
        ]
        size = image.get("height"), image.get("width")
        labels.append(placed(np.array(rows).reshape(-1, 6), how, path, size))
    return paths, labels


def _read_coco(table: Path) -> tuple[list[Any], list[Any], list[Any]]:
    try:
        data = json.loads(table.read_text(encoding="utf-8"))
        return data["images"], data["annotations"], data["categories"]
    except FileNotFoundError as error:
        raise UsageError("no such file of labels", where=str(table)) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"not a COCO file: {error}",
            where=str(table),
            expected="images, annotations and categories",
        ) from error


def _one_class(
    images: Sequence[Any],
    by_image: Mapping[Any, Sequence[Any]],
    number: Mapping[Any, int],
    table: Path,
) -> NDArray[np.int64]:
    for image in images:
        if len(by_image[image["id"]]) != 1:
            raise UsageError(
                f"picture {image['file_name']!r} has {len(by_image[image['id']])} classes",
                where=str(table),
                expected="one annotation a picture where none has a bbox",
            )
    found = [number[by_image[image["id"]][0]["category_id"]] for image in images]
    return np.array(found, dtype=np.int64)


# ── YOLO ─────────────────────────────────────────────────────────────────────────────────────────


def open_yolo(
    table: Path, role: str, preprocess: Mapping[str, Any] | None, binder: Binder
) -> ImageReader:
    """Ultralytics' `data.yaml`: `val` for evaluation, `train` for every other role.

    Without a preprocess block pictures are prepared as Ultralytics does: letterbox with 114, RGB,
    1/255, NCHW. Nothing is downloaded.
    """
    split = ULTRALYTICS_ROLES.get(role, "train")
    folders, root = _yolo_split(table, split)
    paths = [path for folder in folders for path in _yolo_pictures(table, root, folder)]
    if not paths:
        raise UsageError(f"no pictures in {split!r}", where=str(table), got=", ".join(folders))
    how = _yolo_preprocessing(preprocess, binder, str(table))
    notes: list[str] = []
    labels = [yolo_boxes(path, how, notes) for path in paths]
    reader = ImageReader(paths, labels, how, binder, f"{table.name} ({split})")
    reader.notes += _counted(notes)
    if preprocess is None:
        reader.notes.append("no preprocess block: letterbox, RGB, 1/255, NCHW as Ultralytics does")
    return reader


def _yolo_split(table: Path, split: str) -> tuple[list[str], Path]:
    import yaml

    try:
        data = yaml.safe_load(table.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"not a readable YAML file: {error}", where=str(table)) from error
    if not isinstance(data, dict) or not data.get(split):
        raise UsageError(f"no {split!r} in it", where=str(table), expected="train, val and names")
    named = data[split]
    folders = [str(f) for f in named] if isinstance(named, list) else [str(named)]
    return folders, table.parent / str(data.get("path") or "")


def _yolo_pictures(table: Path, root: Path, name: str) -> list[Path]:
    place = root / name
    if place.is_dir():
        return _pictures(place)
    if place.is_file() and place.suffix == ".txt":
        lines = place.read_text(encoding="utf-8").split("\n")
        return [place.parent / line.strip() for line in lines if line.strip()]
    raise UsageError(
        f"no folder or list {name!r}",
        where=str(table),
        got=str(place),
        fix="correct `path` (relative to this file), or fetch the data: nothing is downloaded here",
    )


def _yolo_preprocessing(block: Any, binder: Binder, where: str) -> Preprocessing:
    if block is not None:
        return _preprocessing(block, binder, where)
    shape = binder.inputs[0].shape
    if len(shape) != 4 or not all(isinstance(d, int) for d in shape[2:]):
        raise UsageError(
            "the model's input has no fixed height and width",
            where=where,
            got=str(binder.inputs[0]),
            fix="add preprocess: {letterbox: [640, 640], scale: 1/255}",
        )
    return Preprocessing.from_json({"letterbox": list(shape[2:]), "scale": "1/255"})


def _counted(notes: Sequence[str]) -> list[str]:
    if not notes:
        return []
    return [f"{len(notes)} pictures have no label file and count as empty (first: {notes[0]})"]
