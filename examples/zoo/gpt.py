"""GPT-2-like decoder: the next word of Debian package descriptions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from examples.zoo import data, fitting
from examples.zoo.about import About, Roles, splits
from examples.zoo.transformer import Layer, Tokens

ABOUT = About(
    kind="transformer decoder",
    architecture="GPT-2-like: 4 layers of 160, 4 heads, 2,048 words, causal",
    source=data.DEBIAN,
    licence=data.DEBIAN_LICENCE,
    metric="perplexity",
    inputs={"tokens": {"shape": ["batch", "steps"], "dtype": "int64"}},
    outputs=["logits"],
)
VOCABULARY, LENGTH, WIDTH = 2048, 48, 160


class Gpt(nn.Module):
    """Causal self-attention; logits [batch, steps, vocabulary]."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = Tokens(VOCABULARY, LENGTH, WIDTH)
        self.layers = nn.ModuleList(Layer(WIDTH, 4, 4 * WIDTH) for _ in range(4))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1])
        mask = (places[None, :] > places[:, None]).float() * -1e4
        x = self.tokens(tokens)
        for layer in self.layers:
            x = layer(x, mask[None, None])
        return self.head(self.norm(x))


def build() -> nn.Module:
    return Gpt()


def arrays() -> Roles:
    return data.running_text(VOCABULARY, LENGTH)


training, calibration, selection, evaluation = splits(arrays)


def train(module: nn.Module) -> None:
    loss = fitting.cross_entropy(0.0)
    fitting.train(module, training(), loss, epochs=4, lr=1.5e-3, batch=32, half=True)
