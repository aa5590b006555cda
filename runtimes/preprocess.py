"""From an image file or array to a model's input: one object for calibration, evaluation, package.

Order of work: decode → colour → resize or letterbox → crop → `scale` → `mean`, `std` → layout →
dtype. Needs numpy; pillow only inside the functions that touch pixels. Parses on Python 3.8.
"""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np

from runtimes.errors import MissingTool, UsageError

Array = Any  # np.ndarray; numpy.typing is not there on older boards
Size = Tuple[int, int]  # height, width
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "lanczos")


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the model's input.

    Attributes:
        resize: [height, width], the picture's proportions are not kept; or one number, the length
            of the shorter side, proportions kept.
        letterbox: [height, width]; the picture is fitted in, proportions kept, the rest is `pad`.
        pad: pixel value (0–255) around a letterboxed picture.
        crop: [height, width] cut from the centre after the resize.
        color: RGB, BGR or GRAY (one channel).
        interpolation: nearest, bilinear, bicubic, box or lanczos; pillow's, with antialiasing.
        scale: what pixels (0–255) are multiplied by; "1/255" is understood.
        mean: subtracted after the scale, one number a channel.
        std: divided by after the mean, one number a channel.
        layout: NCHW or NHWC.
        dtype: float32, float16 or uint8 (no scale, mean or std then).
    """

    resize: Union[int, Size, None] = None
    letterbox: Optional[Size] = None
    pad: int = 114
    crop: Optional[Size] = None
    color: str = "RGB"
    interpolation: str = "bilinear"
    scale: float = 1.0
    mean: Tuple[float, ...] = ()
    std: Tuple[float, ...] = ()
    layout: str = "NCHW"
    dtype: str = "float32"

    @staticmethod
    def from_json(data: Mapping[str, Any], where: str = "preprocess") -> Preprocessing:
        """Read a recipe's `preprocess:` block; `UsageError` names the key that is wrong."""
        known = [f.name for f in fields(Preprocessing)]
        for key in data:
            if key not in known:
                close = difflib.get_close_matches(str(key), known, 1)
                raise UsageError(
                    f"unknown key {key!r}",
                    where=where,
                    expected="one of " + ", ".join(known),
                    fix=f"did you mean {close[0]!r}?" if close else "",
                )
        made = Preprocessing(**{k: _coerced(k, v, where) for k, v in data.items()})
        made._check(where)
        return made

    def to_json(self) -> Dict[str, Any]:
        """Plain JSON that `from_json` reads back as an equal object."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def _check(self, where: str) -> None:
        _choice(where + ".color", self.color, ("RGB", "BGR", "GRAY"))
        _choice(where + ".interpolation", self.interpolation, INTERPOLATIONS)
        _choice(where + ".layout", self.layout, ("NCHW", "NHWC"))
        _choice(where + ".dtype", self.dtype, ("float32", "float16", "uint8"))
        if self.resize is not None and self.letterbox is not None:
            raise UsageError("resize and letterbox exclude each other", where=where)
        if not 0 <= self.pad <= 255:
            raise UsageError("pad is a pixel", where=where, expected="0–255", got=str(self.pad))
        if self.dtype == "uint8" and (self.scale != 1.0 or self.mean or self.std):
            raise UsageError(
                "uint8 pixels cannot be scaled", where=where, fix="use dtype: float32, or no scale"
            )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values and len(values) not in (1, self.channels):
                raise UsageError(
                    f"{name} needs one number a channel",
                    where=where,
                    expected=f"{self.channels} numbers",
                    got=str(len(values)),
                )
        if any(v == 0 for v in self.std):
            raise UsageError("std holds a zero", where=where)

    @property
    def channels(self) -> int:
        """1 for GRAY, else 3."""
        return 1 if self.color == "GRAY" else 3

    def apply(self, image: Union[str, Path, Array]) -> Array:
        """One image as the model's input, without the batch axis.

        Args:
            image: a path, or a uint8 array (height, width), (height, width, 1), or
                (height, width, 3) in RGB order.

        Returns:
            (channels, height, width) or (height, width, channels), of `dtype`.

        Raises:
            UsageError: unreadable file, or an array of another kind.
            MissingTool: pillow is not installed.
        """
        picture = self._sized(_open(image, "L" if self.color == "GRAY" else "RGB"))
        pixels = np.asarray(picture)
        pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
        if self.color == "BGR":
            pixels = pixels[:, :, ::-1]
        if self.dtype != "uint8":
            pixels = self._normalized(pixels)
        if self.layout == "NCHW":
            pixels = pixels.transpose(2, 0, 1)
        return np.ascontiguousarray(pixels, dtype=self.dtype)

    def _normalized(self, pixels: Array) -> Array:
        values = pixels.astype(np.float32) * np.float32(self.scale)
        if self.mean:
            values = values - np.asarray(self.mean, np.float32)
        if self.std:
            values = values / np.asarray(self.std, np.float32)
        return values

    def _sized(self, picture: Any) -> Any:
        from PIL import Image

        how = getattr(Image.Resampling, self.interpolation.upper())
        fit, offset, canvas = self._placement((picture.height, picture.width))
        if (picture.height, picture.width) != fit:
            picture = picture.resize((fit[1], fit[0]), how)
        if canvas == fit and offset == (0, 0):
            return picture
        ground = Image.new(picture.mode, (canvas[1], canvas[0]), self._pad_color())
        ground.paste(picture, (offset[1], offset[0]))
        return ground

    def _pad_color(self) -> Union[int, Tuple[int, int, int]]:
        return self.pad if self.color == "GRAY" else (self.pad, self.pad, self.pad)

    def _placement(self, source: Size) -> Tuple[Size, Size, Size]:
        """(size after resize, where its corner lies on the canvas, the canvas) for a source."""
        height, width = source
        if self.letterbox is not None:
            ratio = min(self.letterbox[0] / height, self.letterbox[1] / width)
            fit = (max(1, round(height * ratio)), max(1, round(width * ratio)))
            canvas = self.letterbox
        else:
            fit = canvas = self._resized(height, width)
        if self.crop is not None:
            top, left = _centred(canvas, fit)
            cut_top, cut_left = _centred(self.crop, canvas)
            return fit, (top + cut_top, left + cut_left), self.crop
        return fit, _centred(canvas, fit), canvas

    def _resized(self, height: int, width: int) -> Size:
        if self.resize is None:
            return height, width
        if isinstance(self.resize, int):
            ratio = self.resize / min(height, width)
            return max(1, round(height * ratio)), max(1, round(width * ratio))
        return self.resize

    def map_boxes(self, boxes: Array, source: Size) -> Array:
        """Boxes (n, 4) as x1, y1, x2, y2 in pixels of a `source` picture, in the input's pixels.

        Boxes are clipped to what the input shows.
        """
        fit, offset, canvas = self._placement(source)
        ratio_y, ratio_x = fit[0] / source[0], fit[1] / source[1]
        scale = np.array([ratio_x, ratio_y, ratio_x, ratio_y], np.float64)
        shift = np.array([offset[1], offset[0], offset[1], offset[0]], np.float64)
        moved = np.asarray(boxes, np.float64).reshape(-1, 4) * scale + shift
        limit = np.array([canvas[1], canvas[0], canvas[1], canvas[0]], np.float64)
        return np.clip(moved, 0.0, limit)


def _centred(outer: Size, inner: Size) -> Size:
    """Top and left of `inner` centred on `outer`; negative where `inner` is the larger."""
    # half a pixel goes to the bottom right, as Ultralytics' letterbox and torchvision's crop do
    return (outer[0] - inner[0]) // 2, (outer[1] - inner[1]) // 2


def _open(image: Union[str, Path, Array], mode: str) -> Any:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingTool(
            "reading images needs pillow", fix='pip install "edge-compressor[metrics]" (or pillow)'
        ) from error
    if isinstance(image, (str, Path)):
        try:
            with Image.open(image) as opened:
                return opened.convert(mode)
        except FileNotFoundError as error:
            raise UsageError("no such image", where=str(image)) from error
        except (UnidentifiedImageError, OSError, ValueError) as error:
            raise UsageError(f"not a readable image: {error}", where=str(image)) from error
    return Image.fromarray(_pixels(image)).convert(mode)


def _pixels(image: Array) -> Array:
    array = np.asarray(image)
    array = array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if (
        array.dtype != np.uint8
        or array.ndim not in (2, 3)
        or (array.ndim == 3 and array.shape[2] != 3)
    ):
        raise UsageError(
            "not an image",
            expected="uint8 (height, width) or (height, width, 3)",
            got=f"{array.dtype} {list(array.shape)}",
        )
    return np.ascontiguousarray(array)


def _coerced(key: str, value: Any, where: str) -> Any:
    place = f"{where}.{key}"
    if key in ("resize", "letterbox", "crop"):
        return _size(value, place, alone=key == "resize")
    if key in ("mean", "std"):
        return tuple(_number(v, place) for v in (value if _is_list(value) else [value]))
    if key == "scale":
        return _number(value, place)
    if key == "pad":
        if isinstance(value, bool) or not isinstance(value, int):
            raise UsageError("not a whole number", where=place, got=repr(value))
        return value
    if not isinstance(value, str):
        raise UsageError("not a word", where=place, got=repr(value))
    return value.upper() if key in ("color", "layout") else value


def _size(value: Any, place: str, alone: bool) -> Union[int, Size, None]:
    numbers: List[Any] = list(value) if _is_list(value) else [value]
    good = all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in numbers)
    if value is None:
        return None
    if good and _is_list(value) and len(numbers) == 2:
        return numbers[0], numbers[1]
    if good and not _is_list(value):
        return int(value) if alone else (int(value), int(value))
    wanted = "[height, width]" + (", or the shorter side" if alone else ", or one number for both")
    raise UsageError("not a size", where=place, expected=wanted, got=repr(value))


def _number(value: Any, place: str) -> float:
    try:
        if isinstance(value, str) and value.count("/") == 1:
            over, under = value.split("/")
            return float(over) / float(under)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and np.isfinite(value):
            return float(value)
    except (ValueError, ZeroDivisionError):
        pass
    raise UsageError("not a number", where=place, expected="0.5 or 1/255", got=repr(value))


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _choice(where: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UsageError(
            "unknown value", where=where, expected="one of " + ", ".join(known), got=repr(value)
        )
