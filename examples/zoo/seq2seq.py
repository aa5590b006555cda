"""Encoder-decoder of GRUs with attention: dates as people write them to ISO dates.

The decoder reads the right answer so far (teacher forcing), so one run scores every position.
"""

from __future__ import annotations

import datetime

import numpy as np
import torch
from torch import Tensor, nn

from examples.zoo import data, fitting
from examples.zoo.about import About, Arrays, Roles, splits

ABOUT = About(
    kind="encoder-decoder",
    architecture="bidirectional GRU of 176, attention, GRU decoder fed the right answer so far",
    source="dates in eight spellings, generated",
    licence="none needed",
    metric="examples.zoo.metrics:next_token",
    inputs={
        "written": {"shape": ["batch", 28], "dtype": "int64"},
        "so_far": {"shape": ["batch", 10], "dtype": "int64"},
    },
    outputs=["logits"],
)
SIGNS = "\0 ,./-0123456789abcdefghijklmnopqrstuvwxyz"
LONGEST, WIDTH = 28, 176


class Translator(nn.Module):
    """Bidirectional encoder, attention over it, decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.signs = nn.Embedding(len(SIGNS), 64)
        self.encoder = nn.GRU(64, WIDTH, batch_first=True, bidirectional=True)
        self.decoder = nn.GRU(64, WIDTH, batch_first=True)
        self.keys, self.join = nn.Linear(2 * WIDTH, WIDTH), nn.Linear(3 * WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, len(SIGNS))

    def forward(self, written: Tensor, so_far: Tensor) -> Tensor:
        memory, _ = self.encoder(self.signs(written))
        states, _ = self.decoder(self.signs(so_far))
        weights = (states @ self.keys(memory).transpose(1, 2) / WIDTH**0.5).softmax(-1)
        return self.head(self.join(torch.cat([states, weights @ memory], -1)).tanh())


def build() -> nn.Module:
    return Translator()


def _number(text: str, length: int) -> np.ndarray:
    codes = [SIGNS.index(sign) for sign in text]
    return np.array(codes + [0] * (length - len(codes)), np.int64)


def _dates(seed: int, n: int) -> Arrays:
    rng = np.random.default_rng(seed)
    formats = ("%d %B %Y", "%B %d, %Y", "%a %d %b %Y", "%d.%m.%Y", "%A, %d %B %Y", "%b. %d %Y",
               "%d/%m/%y", "%Y/%j")  # fmt: skip
    first = datetime.date(1950, 1, 1)
    days = rng.choice(44000, n) * 2 + seed % 2  # odd days for one seed, even ones for the other
    written, right = [], []
    for day, form in zip(days, rng.integers(len(formats), size=n), strict=True):
        date = first + datetime.timedelta(int(day) % 44000)
        written.append(_number(date.strftime(formats[form]).lower(), LONGEST))
        right.append(_number(date.isoformat(), 10))
    answers = np.stack(right)
    so_far = np.concatenate([np.zeros((n, 1), np.int64), answers[:, :-1]], 1)
    return {"written": np.stack(written), "so_far": so_far, "labels": answers}


def arrays() -> Roles:
    return data.split(_dates(0, 24000), _dates(1, 6000))


training, calibration, selection, evaluation = splits(arrays)


def train(module: nn.Module) -> None:
    loss = fitting.cross_entropy(0.0)
    fitting.train(module, training(), loss, epochs=8, lr=3e-3)
