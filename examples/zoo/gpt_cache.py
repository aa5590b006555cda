"""The decoder of `gpt.py`, with its weights, one word a call: keys and values come in and go out.

This is how a decoder writes text. The cache is empty before the first word and grows by one place
a call; sequences fed word by word have the perplexity of whole ones.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from examples.zoo import data
from examples.zoo.about import About
from examples.zoo.gpt import (
    WIDTH,
    Gpt,
    calibration,
    evaluation,
    selection,
    train,
    training,
)
from examples.zoo.transformer import Attention

__all__ = ["ABOUT", "build", "calibration", "evaluation", "selection", "train", "training"]
LAYERS, HEADS = 4, 4
ABOUT = About(
    kind="transformer decoder with cache",
    architecture="`gpt` word by word: keys and values of 4 layers as a state that grows",
    source=data.DEBIAN,
    licence=data.DEBIAN_LICENCE,
    metric="perplexity",
    inputs={
        "tokens": {"shape": ["batch"], "dtype": "int64"},
        "past": ["batch", 2 * LAYERS, HEADS, "past", WIDTH // HEADS],
    },
    outputs=["logits", "present"],
    state={"past": "present"},
    weights_of="gpt",
)


class Writer(Gpt):
    """Logits of the next word, and the cache with this one in it."""

    def forward(self, tokens: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        place = torch.arange(past.shape[3], past.shape[3] + 1)
        x = self.tokens.words(tokens)[:, None] + self.tokens.places(place)[None]
        kept = []
        for i, layer in enumerate(self.layers):
            y, keys, values = attend(
                layer.attention, layer.norm1(x), past[:, 2 * i], past[:, 2 * i + 1]
            )
            x = x + y
            x = x + layer.down(layer.act(layer.up(layer.norm2(x))))
            kept += [keys, values]
        return self.head(self.norm(x))[:, 0], torch.stack(kept, 1)


def attend(
    attention: Attention, x: Tensor, keys: Tensor, values: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One word [batch, 1, width] on all before it: result, and keys and values with its own."""
    shape = (x.shape[0], 1, attention.heads, attention.size)
    parts = (attention.query, attention.key, attention.value)
    query, key, value = (part(x).view(shape).transpose(1, 2) for part in parts)
    keys, values = torch.cat([keys, key], 2), torch.cat([values, value], 2)
    scores = query @ keys.transpose(-1, -2) / math.sqrt(attention.size)
    mixed = (scores.softmax(-1) @ values).transpose(1, 2).flatten(2)
    return attention.out(mixed), keys, values


def build() -> nn.Module:
    return Writer()
