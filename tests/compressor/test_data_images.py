"""Pictures: labels from folders, CSV, COCO and YOLO files, and what is said of wrong ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compressor.data import DataSet, check_disjoint, open_data
from compressor.data.boxes import as_boxes
from runtimes.errors import UsageError
from runtimes.types import TensorSpec

image_module = pytest.importorskip("PIL.Image", reason="pictures need pillow")

INPUT = (TensorSpec("images", "float32", ("batch", 3, 16, 16)),)
HOW = {"resize": [16, 16], "scale": "1/255"}


def picture(path: Path, seed: int, size: tuple[int, int] = (20, 40)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    image_module.fromarray(pixels).save(path)


def opened(folder: Path, role: str = "evaluation", **spec: Any) -> DataSet:
    return open_data({"path": str(folder), "preprocess": HOW, **spec}, role, INPUT, folder)


@pytest.fixture
def by_class(tmp_path: Path) -> Path:
    for i, name in enumerate(["cat", "ant", "cat", "dog"]):
        picture(tmp_path / "set" / name / f"{i}.png", seed=i)
    return tmp_path / "set"


def test_labels_by_folder(by_class: Path) -> None:
    data = opened(by_class)
    assert [data.name(i) for i in range(4)] == ["1.png", "0.png", "2.png", "3.png"]
    assert data.labels.tolist() == [0, 1, 1, 2]
    assert data.feeds([0, 1])["images"].shape == (2, 3, 16, 16)
    assert data.preprocess is not None
    assert data.preprocess["resize"] == [16, 16]
    assert opened(by_class, classes=["dog", "cat", "ant"]).labels.tolist() == [2, 1, 1, 0]


def test_class_folders_that_are_numbers(tmp_path: Path) -> None:
    for name in ("10", "2"):
        picture(tmp_path / "set" / name / "a.png", seed=int(name))
    assert opened(tmp_path / "set").labels.tolist() == [10, 2]


def test_loose_pictures_have_no_labels(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg", 1)
    assert opened(tmp_path).labels is None
    with pytest.raises(UsageError, match="a picture lies in none"):
        opened(tmp_path, labels="folder")


def test_fingerprint_sees_pictures_and_preprocessing(by_class: Path) -> None:
    first = opened(by_class)
    other = opened(by_class, preprocess={**HOW, "color": "BGR"})
    assert first.fingerprint == opened(by_class).fingerprint != other.fingerprint
    picture(by_class / "cat" / "0.png", seed=77)
    assert opened(by_class).fingerprint != first.fingerprint


def test_overlap_of_pictures(by_class: Path, tmp_path: Path) -> None:
    picture(tmp_path / "other" / "x" / "same.png", seed=2)
    with pytest.raises(UsageError, match=r"calibration\[0\] equals evaluation\[2\]"):
        check_disjoint(opened(tmp_path / "other", "calibration"), opened(by_class))


def test_overlap_of_pictures_and_arrays(by_class: Path) -> None:
    data = opened(by_class)
    arrays = open_data({"images": data.feeds([3])["images"]}, "calibration", INPUT, by_class)
    with pytest.raises(UsageError, match=r"calibration\[0\] equals evaluation\[3\]"):
        check_disjoint(arrays, data)


def test_labels_by_csv(tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / f"{i}.png", i)
    (tmp_path / "labels.csv").write_text("file,label\n2.png,7\n0.png,3\n")
    data = opened(tmp_path, labels="labels.csv")
    assert [data.name(i) for i in range(len(data))] == ["2.png", "0.png"]
    assert data.labels.tolist() == [7, 3]
    (tmp_path / "labels.csv").write_text("2.png,b\n0.png,a\n1.png,b\n")
    assert opened(tmp_path, labels="labels.csv").labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("0.png,1\n9.png,1\n", "no picture '9.png' in row 1"),
        ("0.png,1\n1.png\n", "no label in row 1"),
    ],
)
def test_bad_csv(tmp_path: Path, text: str, fragment: str) -> None:
    for i in range(2):
        picture(tmp_path / f"{i}.png", i)
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(UsageError, match=fragment):
        opened(tmp_path, labels="labels.csv")


def coco(boxes: bool = True) -> dict[str, Any]:
    notes: list[dict[str, Any]] = [
        {"image_id": 5, "category_id": 9, "bbox": [4, 2, 20, 10], "iscrowd": 1},
        {"image_id": 3, "category_id": 2, "bbox": [0, 0, 40, 20]},
    ]
    if not boxes:
        notes = [{k: v for k, v in note.items() if k != "bbox"} for note in notes]
    images = [{"id": 3, "file_name": "a.png"}, {"id": 5, "file_name": "b.png"}]
    return {"images": images, "annotations": notes, "categories": [{"id": 9}, {"id": 2}]}


def test_labels_by_coco(tmp_path: Path) -> None:
    for i, name in enumerate("ab"):
        picture(tmp_path / f"{name}.png", i)
    (tmp_path / "coco.json").write_text(json.dumps(coco()))
    data = opened(tmp_path, labels="coco.json")
    # 40×20 pictures become 16×16: x is scaled by 0.4, y by 0.8
    np.testing.assert_allclose(data.labels[0], [[0, 0, 0, 16, 16, 0]])
    np.testing.assert_allclose(data.labels[1], [[1, 1.6, 1.6, 9.6, 9.6, 1]])
    (tmp_path / "coco.json").write_text(json.dumps(coco(boxes=False)))
    assert opened(tmp_path, labels="coco.json").labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        ("{", "not a COCO file"),
        ('{"images": []}', "images, annotations and categories"),
        (json.dumps(coco()).replace("b.png", "z.png"), "no picture 'z.png'"),
    ],
)
def test_bad_coco(tmp_path: Path, content: str, fragment: str) -> None:
    picture(tmp_path / "a.png", 0)
    (tmp_path / "coco.json").write_text(content)
    with pytest.raises(UsageError, match=fragment):
        opened(tmp_path, labels="coco.json")


def test_pictures_in_one_array(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 20, 40, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=pixels, labels=np.arange(5))
    data = open_data({"path": "a.npz", "preprocess": HOW}, "evaluation", INPUT, tmp_path)
    (tmp_path / "set").mkdir()
    image_module.fromarray(pixels[3]).save(tmp_path / "set" / "3.png")
    wanted = opened(tmp_path / "set").feeds([0])["images"]
    np.testing.assert_array_equal(data.feeds([3])["images"], wanted)
    assert data.labels.tolist() == [0, 1, 2, 3, 4]
    assert data.preprocess is not None


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    for split, seeds in (("train", (0, 1)), ("val", (2, 3))):
        for seed in seeds:
            picture(tmp_path / "images" / split / f"{seed}.png", seed)
    labels = tmp_path / "labels"
    (labels / "train").mkdir(parents=True)
    (labels / "val").mkdir()
    (labels / "val" / "2.txt").write_text("1 0.5 0.5 0.5 0.5\n")
    (labels / "val" / "3.txt").write_text("0 0.1 0.2 0.3 0.2 0.3 0.6\n\n")
    table = tmp_path / "data.yaml"
    table.write_text("path: .\ntrain: images/train\nval: images/val\nnames: [a, b]\n")
    return table


def test_yolo_data_yaml(yolo: Path) -> None:
    data = open_data(str(yolo), "evaluation", INPUT, yolo.parent)
    # letterboxed: 40×20 → 16×8, four rows of padding above
    np.testing.assert_allclose(data.labels[0], [[1, 4, 6, 12, 10, 0]])
    np.testing.assert_allclose(data.labels[1], [[0, 1.6, 5.6, 4.8, 8.8, 0]])
    assert "letterbox, RGB, 1/255, NCHW as Ultralytics does" in data.warnings[-1]
    calibration = open_data(str(yolo), "calibration", INPUT, yolo.parent)
    assert [calibration.name(i) for i in range(2)] == ["0.png", "1.png"]
    assert any("2 pictures have no label file" in text for text in calibration.warnings)
    check_disjoint(calibration, data)


def test_yolo_lists_and_bad_files(yolo: Path) -> None:
    (yolo.parent / "list.txt").write_text("images/val/3.png\n")
    yolo.write_text("val: list.txt\n")
    assert len(open_data(str(yolo), "evaluation", INPUT, yolo.parent)) == 1
    for text, fragment in (
        ("names: [a]", "no 'val' in it"),
        ("val: images/nowhere", "nothing is downloaded"),
        ("val: [", "not a readable YAML file"),
    ):
        yolo.write_text(text)
        with pytest.raises(UsageError, match=fragment):
            open_data(str(yolo), "evaluation", INPUT, yolo.parent)


@pytest.mark.parametrize(("line", "fragment"), [("0 1 2", "not a box"), ("a 1 2 3 4", "not a num")])
def test_bad_yolo_labels(yolo: Path, line: str, fragment: str) -> None:
    (yolo.parent / "labels" / "val" / "3.txt").write_text(line)
    with pytest.raises(UsageError, match=fragment):
        open_data(str(yolo), "evaluation", INPUT, yolo.parent)


def test_pictures_need_to_know_their_preprocessing(by_class: Path) -> None:
    with pytest.raises(UsageError, match=r"for example preprocess: \{resize: \[16, 16\]"):
        opened(by_class, preprocess=None)
    with pytest.raises(UsageError, match="unknown key 'size'"):
        opened(by_class, preprocess={"size": 3})


def test_pictures_that_do_not_fit_the_model(by_class: Path) -> None:
    with pytest.raises(UsageError, match=r"wrong shape.*\n.*\[1, 3, 8, 8\]"):
        opened(by_class, preprocess={"resize": [8, 8]})
    with pytest.raises(UsageError, match="not among the named ones"):
        opened(by_class, classes=["cat", "dog"])
    with pytest.raises(UsageError, match="unknown kind of labels"):
        opened(by_class, labels="names")
    two = (*INPUT, TensorSpec("other", "float32", ("batch", 1)))
    with pytest.raises(UsageError, match="pictures feed one input"):
        open_data({"path": str(by_class), "preprocess": HOW}, "evaluation", two, by_class)


def test_as_boxes() -> None:
    padded = [[1, 0, 0, 2, 2], [-1, 0, 0, 0, 0]]
    assert as_boxes(padded, "m").tolist() == [[1, 0, 0, 2, 2, 0]]
    assert as_boxes([], "m").shape == (0, 6)
    with pytest.raises(UsageError, match="not boxes"):
        as_boxes([[1, 2]], "m")
