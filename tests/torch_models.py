"""Tiny torch modules for tests; each function builds one, untrained, from torch's current seed.

A recipe names them as `tests.torch_models:tiny_resnet`. `INPUTS` holds each one's inputs as in
a recipe: name → shape, a string being a free dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

INPUTS: dict[str, dict[str, list[int | str]]] = {
    "tiny_mlp": {"features": ["batch", 16]},
    "tiny_resnet": {"image": ["batch", 1, 28, 28]},
    "tiny_lstm": {"sequence": ["batch", "time", 8]},
    "tiny_gru": {"sequence": ["batch", "time", 8]},
    "tiny_vit_block": {"tokens": ["batch", "time", 32]},
    "tiny_unet": {"image": ["batch", 1, 28, 28]},
}


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + x)


class Recurrent(nn.Module):
    """The last time step of `rnn`, classified."""

    def __init__(self, rnn: nn.LSTM | nn.GRU) -> None:
        super().__init__()
        self.rnn = rnn
        self.head = nn.Linear(rnn.hidden_size, 10)

    def forward(self, sequence: Tensor) -> Tensor:
        return self.head(self.rnn(sequence)[0][:, -1])


class Attention(nn.Module):
    """Pre-norm attention and MLP, mean over tokens, head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, time, width = tokens.shape
        qkv = self.qkv(self.norm1(tokens)).reshape(batch, time, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = nn.functional.scaled_dot_product_attention(q, k, v)
        x = tokens + self.project(attended.transpose(1, 2).reshape(batch, time, width))
        x = x + self.mlp(self.norm2(x))
        return self.head(x.mean(1))


class UNet(nn.Module):
    """One level down and up with a skip; a mask in 0-1 comes out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down = self._conv(1, width)
        self.bottom = self._conv(width, 2 * width)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.join = self._conv(2 * width, width)
        self.mask = nn.Conv2d(width, 1, 1)

    @staticmethod
    def _conv(before: int, after: int) -> nn.Sequential:
        conv = nn.Conv2d(before, after, 3, padding=1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(after), nn.ReLU())

    def forward(self, image: Tensor) -> Tensor:
        skip = self.down(image)
        x = self.up(self.bottom(nn.functional.max_pool2d(skip, 2)))
        return torch.sigmoid(self.mask(self.join(torch.cat([x, skip], 1))))


def tiny_mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
    )


def tiny_resnet() -> nn.Module:
    stem = [nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)]
    return _settled(nn.Sequential(*stem, Residual(16), Residual(16), *tail))


def _settled(module: nn.Module) -> nn.Module:
    """With batch norms' statistics of what passes through, as a trained module has them."""
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the mean of all batches
    images = torch.rand(64, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        module.train()(images)
    for norm in norms:
        norm.momentum = 0.1
        norm.num_batches_tracked.zero_()
    return module


def tiny_lstm() -> nn.Module:
    return Recurrent(nn.LSTM(8, 16, batch_first=True))


def tiny_gru() -> nn.Module:
    return Recurrent(nn.GRU(8, 16, batch_first=True))


def tiny_vit_block() -> nn.Module:
    return Attention(32, 2)


def tiny_unet() -> nn.Module:
    return UNet(8)
