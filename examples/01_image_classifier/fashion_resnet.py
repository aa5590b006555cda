"""The model of this example: an ordinary residual CNN for 28x28 grey images, 0.7 M parameters.

Nothing here knows about compression; a recipe names it as `fashion_resnet:build`.
Shape of the net: He et al., "Deep Residual Learning" (2016), the CIFAR variant, three widths.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut; `stride` shrinks the image, `width` is what leaves."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != width:
            conv = nn.Conv2d(before, width, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class FashionResNet(nn.Module):
    """`image` [batch, 1, 28, 28] float32, grey levels / 255 → `logits` [batch, 10].

    No mean and deviation to subtract: the batch-norm behind the first convolution learns them.
    """

    def __init__(self, widths: tuple[int, int, int] = (32, 64, 128)) -> None:
        super().__init__()
        first, second, third = widths
        self.stem = nn.Sequential(
            nn.Conv2d(1, first, 3, padding=1, bias=False), nn.BatchNorm2d(first), nn.ReLU()
        )
        self.stage1 = nn.Sequential(Block(first, first, 2), Block(first, first, 1))  # 14x14
        self.stage2 = nn.Sequential(Block(first, second, 2), Block(second, second, 1))  # 7x7
        self.stage3 = nn.Sequential(Block(second, third, 1), Block(third, third, 1))  # 7x7
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(third, len(CLASSES))

    def forward(self, image: Tensor) -> Tensor:
        features = self.stage3(self.stage2(self.stage1(self.stem(image))))
        return self.head(torch.flatten(self.pool(features), 1))


def build() -> nn.Module:
    """The untrained network; its trained weights lie beside it in `resnet.safetensors`."""
    return FashionResNet()
