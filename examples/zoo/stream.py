"""A streaming recogniser with its memory as input and output: convolutions, then a GRU.

Pictures pass by one after another, seven rows a call, six pictures a sequence. Each call says what
the picture that is passing shows: from its first rows badly, from its last ones well, and without
being told where one ends and the next begins.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from examples.zoo import data, fitting
from examples.zoo.about import About, Arrays, Roles, splits

STRIPS, PICTURES, WIDTH, LAYERS = 4, 6, 192, 2
ABOUT = About(
    kind="streaming cnn + gru",
    architecture="3 convolutions on 7 rows, 2 GRU layers of 192 whose state comes in and goes out",
    source=f"{data.FASHION}, seven rows a call",
    licence=data.FASHION_LICENCE,
    metric="examples.zoo.metrics:next_token",
    inputs={"frame": ["batch", 1, 7, 28], "h_in": [LAYERS, "batch", WIDTH]},
    outputs=["logits", "h_out"],
    state={"h_in": "h_out"},
    export="torchscript",
)


class Stream(nn.Module):
    """One step: what to say of a frame, and the state after it."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d((1, 2)),
            nn.Conv2d(24, 48, 3, (1, 2), 1), nn.BatchNorm2d(48), nn.ReLU(),
            nn.Conv2d(48, 32, 3, (2, 1), 1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Flatten(), nn.Linear(32 * 4 * 7, 128), nn.ReLU(),
        )  # fmt: skip
        self.memory = nn.GRU(128, WIDTH, LAYERS, batch_first=True)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, frame: Tensor, h_in: Tensor) -> tuple[Tensor, Tensor]:
        found, h_out = self.memory(self.look(frame).unsqueeze(1), h_in)
        return self.head(found[:, 0]), h_out

    def over(self, frames: Tensor) -> Tensor:
        """Logits [batch, steps, 10] of whole sequences [batch, steps, 1, 7, 28], from zeros on."""
        seen = self.look(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        return self.head(self.memory(seen)[0])


def build() -> nn.Module:
    return Stream()


def _sequences(part: str) -> Arrays:
    """`frame` [n, 24, 1, 7, 28] and the class at each step, [n, 24]."""
    images, labels = data.fashion(part)
    order = np.random.default_rng(len(images)).permutation(len(images))
    order = order[: len(images) // PICTURES * PICTURES].reshape(-1, PICTURES)
    frames = images[order].reshape(len(order), PICTURES * STRIPS, 1, 28 // STRIPS, 28)
    return {"frame": frames, "labels": labels[order].repeat(STRIPS, 1)}


def arrays() -> Roles:
    return data.split(_sequences("train"), _sequences("t10k"), selection=600)


training, calibration, selection, evaluation = splits(arrays)


def _loss(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    logits = module.over(batch["frame"])
    return nn.functional.cross_entropy(
        logits.flatten(0, 1), batch["labels"].flatten(), label_smoothing=0.05
    )


def train(module: nn.Module) -> None:
    fitting.train(module, training(), _loss, epochs=4, lr=3e-3, batch=64)
