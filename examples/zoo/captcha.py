"""A trained CRNN (convolutions, LSTM unrolled into products) that reads rendered captchas.

The package captcha-whisperer carries it. Pictures are rendered with Debian's DejaVu fonts; the
text is the label, the metric the share of signs read right with the package's greedy decoding.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from examples.zoo.about import About, Arrays, Roles, splits
from examples.zoo.packages import unpacked

ABOUT = About(
    kind="crnn",
    architecture="VGG-like convolutions, bidirectional LSTM unrolled into products, CTC",
    source="PyPI captcha-whisperer==0.1.0; pictures rendered with DejaVu",
    licence="MIT",
    metric="examples.zoo.metrics:captcha_signs",
    inputs={"image": ["batch", 3, 60, 160]},
    outputs=["logits"],
)
SIGNS = "123456789ABCDEFGHIJKLMNPQRSTUVWXYZ"
HEIGHT, WIDTH = 60, 160


def given(path: Path) -> None:
    """The trained file, with a Transpose behind it so that samples stand in front of time."""
    import onnx

    models = unpacked("captcha-whisperer==0.1.0") / "captcha_whisperer" / "models"
    model = onnx.load(models / "captcha_crnn.onnx")
    (output,) = model.graph.output
    for node in model.graph.node:
        names = ["logits_by_time" if name == output.name else name for name in node.output]
        node.output[:] = names
    turn = onnx.helper.make_node("Transpose", ["logits_by_time"], [output.name], perm=[1, 0, 2])
    model.graph.node.append(turn)
    time, batch, _ = output.type.tensor_type.shape.dim
    time.dim_param, batch.dim_value = "batch", 20
    onnx.save(model, path)


@lru_cache(maxsize=64)
def _font(name: str, size: int) -> object:
    from PIL import ImageFont

    return ImageFont.truetype(f"/usr/share/fonts/truetype/dejavu/{name}.ttf", size)


def _picture(rng: np.random.Generator, text: str) -> np.ndarray:
    """[3, 60, 160], BGR, 0-255: letters of their own size, turn and place, lines and dots."""
    from PIL import Image, ImageDraw

    ground = tuple(int(x) for x in rng.integers(225, 256, 3))
    picture = Image.new("RGB", (WIDTH, HEIGHT), ground)
    for i, sign in enumerate(text):
        name = str(rng.choice(["DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif"]))
        letter = Image.new("L", (56, 56), 0)
        font = _font(name, int(rng.integers(34, 44)))
        ImageDraw.Draw(letter).text((28, 28), sign, 255, font=font, anchor="mm")
        letter = letter.rotate(float(rng.uniform(-20, 20)), Image.Resampling.BILINEAR)
        colour = tuple(int(x) for x in rng.integers(0, 130, 3))
        x = 4 + i * (WIDTH - 12) // len(text) + int(rng.integers(-3, 4)) - 8
        picture.paste(colour, (x, 2 + int(rng.integers(-4, 5))), letter)
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.integers(1, 4)):
        ends = [int(v) for v in rng.integers(0, (WIDTH, HEIGHT, WIDTH, HEIGHT))]
        draw.line(ends, tuple(int(x) for x in rng.integers(60, 200, 3)), 1)
    for _ in range(30):
        spot = [int(v) for v in rng.integers(0, (WIDTH, HEIGHT))]
        draw.point(spot, tuple(int(x) for x in rng.integers(0, 200, 3)))
    return np.asarray(picture, np.float32)[:, :, ::-1].transpose(2, 0, 1)


def _part(seed: int, n: int) -> Arrays:
    rng = np.random.default_rng(seed)
    texts = ["".join(rng.choice(list(SIGNS), 4)) for _ in range(n)]
    images = np.stack([_picture(rng, text) for text in texts]).astype(np.float32)
    return {"image": images, "labels": np.array(texts)}


def arrays() -> Roles:
    return {
        "calibration": _part(1, 200),
        "selection": _part(2, 400),
        "evaluation": _part(3, 1500),
    }


_, calibration, selection, evaluation = splits(arrays)
