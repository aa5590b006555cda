"""MobileNetV3-like: depthwise convolutions, squeeze-and-excitation, hard-swish; Fashion-MNIST."""

from __future__ import annotations

from torch import Tensor, nn

from examples.zoo import data, fitting
from examples.zoo.about import About, splits

ABOUT = About(
    kind="mobile cnn",
    architecture="MobileNetV3-like: 8 inverted residuals, squeeze-and-excitation, hard-swish",
    source=data.FASHION,
    licence=data.FASHION_LICENCE,
    metric="top1",
    inputs={"image": ["batch", 1, 28, 28]},
    outputs=["logits"],
)
# kernel, expanded, out, squeeze, hard-swish, stride
_BLOCKS = (
    (3, 16, 16, False, False, 1), (3, 64, 24, False, False, 2), (3, 72, 24, False, False, 1),
    (5, 96, 40, True, True, 2), (5, 160, 40, True, True, 1), (5, 160, 64, True, True, 1),
    (5, 256, 96, True, True, 2), (5, 384, 96, True, True, 1),
)  # fmt: skip


class Squeeze(nn.Module):
    """Channel attention."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 4
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.down, self.up = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)
        self.relu, self.gate = nn.ReLU(), nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.up(self.relu(self.down(self.pool(x)))))


class Block(nn.Module):
    """Inverted residual."""

    def __init__(
        self, inside: int, kernel: int, wide: int, out: int, squeeze: bool, hard: bool, stride: int
    ) -> None:
        super().__init__()
        act = nn.Hardswish if hard else nn.ReLU
        self.keep = stride == 1 and inside == out
        self.body = nn.Sequential(
            nn.Conv2d(inside, wide, 1, bias=False), nn.BatchNorm2d(wide), act(),
            nn.Conv2d(wide, wide, kernel, stride, kernel // 2, groups=wide, bias=False),
            nn.BatchNorm2d(wide), act(),
            Squeeze(wide) if squeeze else nn.Identity(),
            nn.Conv2d(wide, out, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.keep else self.body(x)


def build() -> nn.Module:
    layers: list[nn.Module] = [
        nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish()
    ]  # fmt: skip
    inside = 16
    for block in _BLOCKS:
        layers.append(Block(inside, *block))
        inside = block[2]
    head = [
        nn.Conv2d(inside, 384, 1, bias=False), nn.BatchNorm2d(384), nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(384, 512), nn.Hardswish(),
        nn.Linear(512, 10),
    ]  # fmt: skip
    return Named(nn.Sequential(*layers, *head))


class Named(nn.Module):
    """A sequence whose input has a name."""

    def __init__(self, body: nn.Sequential) -> None:
        super().__init__()
        self.body = body

    def forward(self, image: Tensor) -> Tensor:
        return self.body(image)


training, calibration, selection, evaluation = splits(data.fashion_images)


def train(module: nn.Module) -> None:
    loss = fitting.cross_entropy()
    fitting.train(module, training(), loss, epochs=4, lr=4e-3, flip=True)
