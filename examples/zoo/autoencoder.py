"""Convolutional autoencoder with a code of 64 numbers; Fashion-MNIST."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from examples.zoo import data, fitting
from examples.zoo.about import About, Arrays, Roles, splits

ABOUT = About(
    kind="autoencoder",
    architecture="strided convolutions to a code of 64 numbers, transposed convolutions back",
    source=data.FASHION,
    licence=data.FASHION_LICENCE,
    metric="rmse",
    inputs={"image": ["batch", 1, 28, 28]},
    outputs=["picture"],
)


class Autoencoder(nn.Module):
    """Encoder of strided convolutions, decoder of transposed ones."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(64 * 49, 64),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Linear(64, 64 * 49), nn.ReLU(), nn.Unflatten(1, (64, 7, 7)),
            nn.ConvTranspose2d(64, 48, 4, 2, 1), nn.ReLU(),
            nn.ConvTranspose2d(48, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 1, 3, 1, 1),
        )  # fmt: skip

    def forward(self, image: Tensor) -> Tensor:
        return self.decoder(self.encoder(image)).sigmoid()


def build() -> nn.Module:
    return Autoencoder()


def arrays() -> Roles:
    def pictures(part: str) -> Arrays:
        images = data.fashion(part)[0][:, None]
        return {"image": images, "labels": images}

    return data.split(pictures("train"), pictures("t10k"))


def _loss(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return torch.nn.functional.mse_loss(module(batch["image"]), batch["labels"])


training, calibration, selection, evaluation = splits(arrays)


def train(module: nn.Module) -> None:
    fitting.train(module, training(), _loss, epochs=4, lr=3e-3, half=True)
