"""ResNet-50, BERT-base and GPT-2-small in their published shapes, with seeded random weights.

    python models.py NAME FOLDER [SAMPLES]

Written here, nothing is fetched. Convolutions start as in He et al. (2015) with the last norm of
each residual branch at 0.2, transformers at N(0, 0.02) as in GPT-2, so that activations stay sane.
Writes `model.onnx` and `calibration.npz`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

TOKENS = 64  # length of a calibration sequence


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a shortcut."""

    def __init__(self, given: int, width: int, stride: int) -> None:
        super().__init__()
        made = 4 * width
        self.a = nn.Conv2d(given, width, 1, bias=False)
        self.b = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.c = nn.Conv2d(width, made, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in (width, width, made))
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or given != made:
            self.shortcut = nn.Sequential(
                nn.Conv2d(given, made, 1, stride, bias=False), nn.BatchNorm2d(made)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.norms[0](self.a(x)))
        y = functional.relu(self.norms[1](self.b(y)))
        return functional.relu(self.norms[2](self.c(y)) + self.shortcut(x))


class ResNet50(nn.Module):
    """25.6 million parameters, [batch, 3, 224, 224] → 1,000 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
        )  # fmt: skip
        blocks, given = [], 64
        for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
            for i in range(count):
                blocks.append(Bottleneck(given, width, stride if i == 0 else 1))
                given = 4 * width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(given, 1000)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, Bottleneck):
                nn.init.constant_(module.norms[2].weight, 0.2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(image)).mean((2, 3)))


class Attention(nn.Module):
    """Multi-head attention over one sequence; causal where it is a decoder's."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        batch, length, width = x.shape
        parts = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / (width // self.heads) ** 0.5
        if self.causal:
            ahead = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
            scores = scores.masked_fill(ahead, -1e4)
        if mask is not None:
            scores = scores + (1.0 - mask[:, None, None, :].to(x.dtype)) * -1e4
        y = (torch.softmax(scores, -1) @ v).transpose(1, 2).reshape(batch, length, width)
        return self.out(y)


class Layer(nn.Module):
    """Attention and a four times wider feed-forward; norms after (BERT) or before (GPT-2)."""

    def __init__(self, width: int, heads: int, decoder: bool) -> None:
        super().__init__()
        self.decoder = decoder
        self.attention = Attention(width, heads, decoder)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)

    def _wide(self, x: torch.Tensor) -> torch.Tensor:
        gelu = functional.gelu(self.up(x), approximate="tanh" if self.decoder else "none")
        return self.down(gelu)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        if self.decoder:
            x = x + self.attention(self.first(x), mask)
            return x + self._wide(self.second(x))
        x = self.first(x + self.attention(x, mask))
        return self.second(x + self._wide(x))


class Transformer(nn.Module):
    """Embeddings and twelve layers of 768, 12 heads."""

    def __init__(self, words: int, places: int, decoder: bool) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, 768), nn.Embedding(places, 768)
        self.layers = nn.ModuleList(Layer(768, 12, decoder) for _ in range(12))
        self.norm = nn.LayerNorm(768)
        self.decoder = decoder
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)

    def encode(self, tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.words(tokens) + self.places(places)
        x = x if self.decoder else self.norm(x)
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x) if self.decoder else x


class Bert(Transformer):
    """110 million parameters, tokens and mask → 2 classes of the first token."""

    def __init__(self) -> None:
        super().__init__(30522, 512, decoder=False)
        self.pool, self.head = nn.Linear(768, 768), nn.Linear(768, 2)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.pool(self.encode(tokens, mask)[:, 0])))


class Gpt2(Transformer):
    """124 million parameters, tokens → logits of the next token, the embedding's own weights."""

    def __init__(self) -> None:
        super().__init__(50257, 1024, decoder=True)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.encode(tokens, None) @ self.words.weight.T


MODELS: dict[str, type[nn.Module]] = {"resnet50": ResNet50, "bert_base": Bert, "gpt2_small": Gpt2}


def samples(name: str, count: int) -> dict[str, np.ndarray]:
    """Seeded inputs: smooth noise as pictures, tokens with the frequencies of words (Zipf)."""
    rng = np.random.default_rng(0)
    if name == "resnet50":
        coarse = torch.from_numpy(rng.standard_normal((count, 3, 28, 28), dtype=np.float32))
        parts = [functional.interpolate(part, scale_factor=8) for part in coarse.split(64)]
        return {"image": torch.cat(parts).numpy()}
    words = 30522 if name == "bert_base" else 50257
    tokens = np.minimum(rng.zipf(1.2, (count, TOKENS)), words - 1).astype(np.int64)
    if name == "gpt2_small":
        return {"tokens": tokens}
    lengths = rng.integers(TOKENS // 4, TOKENS + 1, (count, 1))
    return {"tokens": tokens, "mask": (np.arange(TOKENS) < lengths).astype(np.int64)}


def write(name: str, folder: Path, count: int) -> None:
    """`model.onnx` with free batch and length, and the calibration samples."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    arrays = {key: torch.from_numpy(array[:2]) for key, array in samples(name, 2).items()}
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=512)
    axes: dict[int, Any] = {0: batch} if name == "resnet50" else {0: batch, 1: length}
    torch.onnx.export(
        model,
        tuple(arrays.values()),
        folder / "model.onnx",
        input_names=list(arrays),
        output_names=["logits"],
        dynamic_shapes=dict.fromkeys(arrays, axes),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    np.savez(folder / "calibration.npz", **samples(name, count))  # type: ignore[arg-type]
    print(sum(p.numel() for p in model.parameters()))


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
