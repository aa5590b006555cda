"""Vision transformer on patches of 4x4 pixels; Fashion-MNIST."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from examples.zoo import data, fitting
from examples.zoo.about import About, splits
from examples.zoo.transformer import Layer

ABOUT = About(
    kind="vision transformer",
    architecture="49 patches of 4x4, class token, 4 layers of 112, 4 heads",
    source=data.FASHION,
    licence=data.FASHION_LICENCE,
    metric="top1",
    inputs={"image": ["batch", 1, 28, 28]},
    outputs=["logits"],
)
WIDTH = 112


class Vit(nn.Module):
    """Patches, a class token, four layers."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, 4, 4)
        self.first = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.places = nn.Parameter(torch.randn(1, 50, WIDTH) * 0.02)
        self.layers = nn.ModuleList(Layer(WIDTH, 4, 3 * WIDTH) for _ in range(4))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1) + self.places
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x)[:, 0])


def build() -> nn.Module:
    return Vit()


training, calibration, selection, evaluation = splits(data.fashion_images)


def train(module: nn.Module) -> None:
    loss = fitting.cross_entropy()
    fitting.train(module, training(), loss, epochs=4, lr=2e-3, flip=True)
