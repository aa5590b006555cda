"""BERT-like encoder: the section of a Debian package from its description."""

from __future__ import annotations

from torch import Tensor, nn

from examples.zoo import data, fitting
from examples.zoo.about import About, Roles, splits
from examples.zoo.transformer import Layer, Tokens

ABOUT = About(
    kind="transformer encoder",
    architecture="BERT-like: 4 layers of 160, 4 heads, 4,096 words, padding masked",
    source=data.DEBIAN,
    licence=data.DEBIAN_LICENCE,
    metric="top1",
    inputs={"tokens": {"shape": ["batch", "steps"], "dtype": "int64"}},
    outputs=["logits"],
)
VOCABULARY, LENGTH, WIDTH = 4096, 32, 160


class Bert(nn.Module):
    """Mean of the last layer's real tokens → section."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = Tokens(VOCABULARY, LENGTH, WIDTH)
        self.layers = nn.ModuleList(Layer(WIDTH, 4, 4 * WIDTH) for _ in range(4))
        self.norm = nn.LayerNorm(WIDTH)
        self.pool, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, len(data.SECTIONS))

    def forward(self, tokens: Tensor) -> Tensor:
        real = (tokens != data.PAD).float()
        mask = (real[:, None, None, :] - 1) * 1e4
        x = self.tokens(tokens)
        for layer in self.layers:
            x = layer(x, mask)
        x = self.norm(x) * real[:, :, None]
        mean = x.sum(1) / real.sum(1, keepdim=True)
        return self.head(self.pool(mean).tanh())


def build() -> nn.Module:
    return Bert()


def arrays() -> Roles:
    return data.described_packages(VOCABULARY, LENGTH)


training, calibration, selection, evaluation = splits(arrays)


def train(module: nn.Module) -> None:
    loss = fitting.cross_entropy()
    fitting.train(module, training(), loss, epochs=3, lr=1e-3, batch=64)
