"""U-Net: which pixels of a cluttered picture belong to garments; Fashion-MNIST compositions."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from examples.zoo import data, fitting, scenes
from examples.zoo.about import About, Arrays, Roles, splits

ABOUT = About(
    kind="u-net",
    architecture="two levels, 40-80-160 channels, skips by Concat, ConvTranspose and Resize",
    source=data.FASHION,
    licence=data.FASHION_LICENCE,
    metric="miou",
    inputs={"image": ["batch", 1, 48, 48]},
    outputs=["scores"],
)


def _double(inside: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(),
        nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(),
    )  # fmt: skip


class Unet(nn.Module):
    """Two levels down, two up, skips joined by Concat."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.down1, self.down2 = _double(1, width), _double(width, 2 * width)
        self.bottom = _double(2 * width, 4 * width)
        self.rise1 = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2)
        self.up1 = _double(4 * width, 2 * width)
        self.rise2 = nn.Upsample(scale_factor=2, mode="nearest")
        self.up2 = _double(3 * width, width)
        self.head, self.pool = nn.Conv2d(width, 2, 1), nn.MaxPool2d(2)

    def forward(self, image: Tensor) -> Tensor:
        first = self.down1(image)
        second = self.down2(self.pool(first))
        x = self.bottom(self.pool(second))
        x = self.up1(torch.cat([self.rise1(x), second], 1))
        return self.head(self.up2(torch.cat([self.rise2(x), first], 1)))


def build() -> nn.Module:
    return Unet(40)


def arrays() -> Roles:
    def part(name: str, n: int) -> Arrays:
        made = scenes.scenes(name, n, size=48)
        return {"image": made.images[:, None], "labels": made.masks.astype(np.int64)}

    return data.split(part("train", 9000), part("t10k", 2000))


def _loss(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(module(batch["image"]), batch["labels"])


training, calibration, selection, evaluation = splits(arrays)


def train(module: nn.Module) -> None:
    fitting.train(module, training(), _loss, epochs=1.5, lr=3e-3, batch=32, half=True)
