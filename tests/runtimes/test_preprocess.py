"""Preprocessing: geometry, colours, numbers, and refusals."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtimes.errors import MissingTool, UsageError
from runtimes.preprocess import Preprocessing

pytest.importorskip("PIL", reason="pictures need pillow")


def made(**block: Any) -> Preprocessing:
    return Preprocessing.from_json(block)


def picture(height: int = 20, width: int = 30) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_nothing_asked_nothing_changed() -> None:
    image = picture()
    np.testing.assert_array_equal(made().apply(image), image.transpose(2, 0, 1).astype(np.float32))
    np.testing.assert_array_equal(made(layout="nhwc", dtype="uint8").apply(image), image)


def test_numbers() -> None:
    found = made(scale="1/255", mean=[0.1, 0.2, 0.3], std=0.5).apply(picture())
    wanted = (picture() / 255 - [0.1, 0.2, 0.3]) / 0.5
    np.testing.assert_allclose(found, wanted.transpose(2, 0, 1), atol=1e-6)
    assert found.dtype == np.float32


def test_colours() -> None:
    image = picture()
    np.testing.assert_array_equal(made(color="BGR").apply(image)[0], image[:, :, 2])
    grey = made(color="gray").apply(image)
    assert grey.shape == (1, 20, 30)
    assert made().apply(image[:, :, 0]).shape == (3, 20, 30)
    assert made(color="GRAY").apply(image[:, :, :1]).shape == (1, 20, 30)


@pytest.mark.parametrize(
    ("block", "shape"),
    [
        ({"resize": [8, 12]}, (8, 12)),
        ({"resize": 10}, (10, 15)),
        ({"resize": 10, "crop": [8, 8]}, (8, 8)),
        ({"letterbox": [32, 32]}, (32, 32)),
        ({"letterbox": 16}, (16, 16)),
        ({"crop": [40, 10]}, (40, 10)),
    ],
)
def test_sizes(block: dict[str, Any], shape: tuple[int, int]) -> None:
    assert Preprocessing.from_json(block).apply(picture()).shape == (3, *shape)


def test_letterbox_pads_evenly() -> None:
    found = made(letterbox=[32, 30], pad=7).apply(np.full((20, 30, 3), 200, np.uint8))
    assert np.unique(found[:, :6]).tolist() == [7]
    assert np.unique(found[:, 6:26]).tolist() == [200]
    assert np.unique(found[:, 26:]).tolist() == [7]


def test_crop_takes_the_centre() -> None:
    image = picture()
    found = made(crop=[10, 10], layout="NHWC").apply(image)
    np.testing.assert_array_equal(found, image[5:15, 10:20])


@pytest.mark.parametrize(
    "block", [{"letterbox": [64, 64]}, {"resize": [40, 90]}, {"resize": 40, "crop": [40, 40]}]
)
def test_boxes_move_with_the_picture(block: dict[str, Any]) -> None:
    image = np.zeros((20, 30, 3), np.uint8)
    image[4:16, 9:21] = 255
    how = Preprocessing.from_json({**block, "pad": 0, "interpolation": "nearest"})
    x1, y1, x2, y2 = how.map_boxes(np.array([[9, 4, 21, 16]]), (20, 30))[0]
    rows, columns = np.nonzero(how.apply(image)[0])
    edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose([x1, y1, x2, y2], edges, atol=1.0)


def test_boxes_are_clipped_to_what_is_seen() -> None:
    boxes = made(crop=[10, 10]).map_boxes(np.array([[0, 0, 30, 20]]), (20, 30))
    assert boxes.tolist() == [[0, 0, 10, 10]]


def test_files_and_arrays_agree(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(picture()).save(tmp_path / "a.png")
    how = made(letterbox=16, scale="1/255")
    np.testing.assert_array_equal(how.apply(tmp_path / "a.png"), how.apply(picture()))
    np.testing.assert_array_equal(how.apply(str(tmp_path / "a.png")), how.apply(picture()))


def test_json_round_trip() -> None:
    how = made(letterbox=[640, 480], color="bgr", mean=[1, 2, 3], std=[1, 1, 2], scale="1/255")
    assert Preprocessing.from_json(json.loads(json.dumps(how.to_json()))) == how


@pytest.mark.parametrize(
    ("block", "fragment"),
    [
        ({"letterbx": 3}, "did you mean 'letterbox'"),
        ({"resize": [3]}, "not a size"),
        ({"resize": [3, 0]}, "not a size"),
        ({"crop": "big"}, "not a size"),
        ({"resize": 3, "letterbox": 3}, "exclude each other"),
        ({"color": "CMYK"}, "one of RGB, BGR, GRAY"),
        ({"color": 3}, "not a word"),
        ({"interpolation": "cubic"}, "bicubic"),
        ({"layout": "CHW"}, "NCHW, NHWC"),
        ({"dtype": "int8"}, "unknown value"),
        ({"scale": "1/0"}, "not a number"),
        ({"scale": "x"}, "not a number"),
        ({"pad": 300}, "0–255"),
        ({"pad": 0.5}, "not a whole number"),
        ({"mean": [1, 2]}, "one number a channel"),
        ({"std": 0}, "std holds a zero"),
        ({"dtype": "uint8", "scale": 0.5}, "cannot be scaled"),
    ],
)
def test_refuses(block: dict[str, Any], fragment: str) -> None:
    with pytest.raises(UsageError, match=fragment):
        Preprocessing.from_json(block)


def test_refuses_what_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture at all")
    with pytest.raises(UsageError, match="not a readable image"):
        made().apply(tmp_path / "a.png")
    with pytest.raises(UsageError, match="no such image"):
        made().apply(tmp_path / "b.png")
    with pytest.raises(UsageError, match=r"got float64 \[2, 2\]"):
        made().apply(np.zeros((2, 2)))


def test_says_which_extra_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_pillow(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("PIL"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_pillow)
    with pytest.raises(MissingTool, match=r"edge-compressor\[metrics\]"):
        made().apply(picture())
