"""Untrained torch modules with one difficulty each for pruning; `CASES` maps a name to its builder.

A case is (module in eval mode, inputs, example feeds).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.modules import write_module
from compressor.pruning import norms
from compressor.sources.torch_io import call, tensors
from runtimes.types import Artifact, TensorSpec
from tests import torch_models as tm


class Dense(nn.Module):
    """Concatenation of everything before, as in DenseNet and Inception."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3, padding=1)
        self.b = nn.Conv2d(16, 24, 3, padding=1)
        self.c = nn.Conv2d(40, 32, 3, padding=1)
        self.norm = nn.BatchNorm2d(72)
        self.head = nn.Linear(72 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.a(x))
        ab = torch.cat([a, torch.relu(self.b(a))], 1)
        abc = self.norm(torch.cat([ab, self.c(ab)], 1))
        return self.head(torch.flatten(functional.adaptive_avg_pool2d(abc, 4), 1))


class Separable(nn.Module):
    """Inverted residual with a depthwise convolution and squeeze-and-excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.expand = nn.Sequential(nn.Conv2d(16, 64, 1), nn.BatchNorm2d(64), nn.ReLU6())
        self.depthwise = nn.Conv2d(64, 64, 3, padding=1, groups=64)
        self.squeeze = nn.Sequential(nn.Conv2d(64, 16, 1), nn.ReLU(), nn.Conv2d(16, 64, 1))
        self.project = nn.Conv2d(64, 16, 1)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.depthwise(self.expand(x))
        y = y * torch.sigmoid(self.squeeze(y.mean((2, 3), keepdim=True)))
        return self.head(x + self.project(y))


class Grouped(nn.Module):
    """Grouped convolution, group norm, transposed convolution; two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Conv2d(3, 32, 3, padding=1)
        self.grouped = nn.Conv2d(32, 64, 3, padding=1, groups=4)
        self.norm = nn.GroupNorm(4, 64)
        self.up = nn.ConvTranspose2d(64, 32, 2, stride=2)
        self.mask = nn.Conv2d(32, 1, 1)
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.norm(self.grouped(torch.relu(self.inp(x))))
        return {"mask": self.mask(torch.relu(self.up(x))), "score": self.head(x.mean((2, 3)))}


class Encoder(nn.Module):
    """torch's own transformer layer (nn.MultiheadAttention) on embedded tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 32)
        self.layer = nn.TransformerEncoderLayer(32, 4, 128, batch_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(tokens)).mean(1))


class FreeHeads(nn.Module):
    """Attention whose inner width is its own, as in Hugging Face's models; tied to nothing."""

    def __init__(self, fused: str = "") -> None:
        super().__init__()
        self.heads, self.size, self.inner, self.fused = 4, 8, 32, fused
        parts = ("qkv",) if fused else ("q", "k", "v")
        for name in parts:
            setattr(self, name, nn.Linear(24, 96 if fused else 32))
        self.out, self.head = nn.Linear(32, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch, steps, _ = x.shape
        if self.fused == "split":
            q, k, v = self.qkv(x).split(self.inner, 2)
        elif self.fused == "heads":
            made = self.qkv(x).view(batch, steps, self.heads, 3 * self.size)
            q, k, v = (part.flatten(2) for part in made.chunk(3, -1))
        else:
            q, k, v = self.q(x), self.k(x), self.v(x)
        q, k, v = (f.view(batch, steps, self.heads, self.size).transpose(1, 2) for f in (q, k, v))
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.head(x + self.out(mixed.reshape(batch, steps, self.inner))).mean(1)


def split_heads() -> nn.Module:
    return FreeHeads("split")


def mixed_heads() -> nn.Module:
    return FreeHeads("heads")


class Sequence(nn.Module):
    """Linear layers around a recurrent one."""

    def __init__(self, rnn: type[nn.RNNBase]) -> None:
        super().__init__()
        self.before = nn.Linear(6, 64)
        self.rnn = rnn(64, 24, batch_first=True)
        self.after = nn.Linear(24, 64)
        self.head = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.after(self.rnn(torch.relu(self.before(x)))[0])))


def lstm() -> nn.Module:
    return Sequence(nn.LSTM)


def gru() -> nn.Module:
    return Sequence(nn.GRU)


class Stacked(nn.Module):
    """Two layers in both directions, read at the last step and as final states."""

    def __init__(self, rnn: type[nn.RNNBase] = nn.RNN, final: bool = False) -> None:
        super().__init__()
        self.rnn = rnn(6, 96, num_layers=2, bidirectional=not final)
        self.head = nn.Linear(96 if final else 192, 3)
        self.final = final

    def forward(self, x: Tensor) -> Tensor:
        out, state = self.rnn(x.transpose(0, 1))
        return self.head(state[-1] if self.final else out[-1])


def final() -> nn.Module:
    return Stacked(nn.GRU, final=True)


IMAGE, RGB = ("n", 1, 28, 28), ("n", 3, 8, 8)
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int | str, ...], str]] = {
    "residual": (tm.tiny_resnet, IMAGE, "float32"),
    "unet": (tm.tiny_unet, IMAGE, "float32"),
    "mlp": (tm.tiny_mlp, ("n", 16), "float32"),
    "attention": (tm.tiny_vit_block, ("n", 7, 32), "float32"),
    "dense": (Dense, RGB, "float32"),
    "separable": (Separable, RGB, "float32"),
    "grouped": (Grouped, RGB, "float32"),
    "encoder": (Encoder, ("n", 7), "int64"),
    "heads": (FreeHeads, ("n", 7, 24), "float32"),
    "split_heads": (split_heads, ("n", 7, 24), "float32"),
    "mixed_heads": (mixed_heads, ("n", 7, 24), "float32"),
    "lstm": (lstm, ("n", 9, 6), "float32"),
    "gru": (gru, ("n", 9, 6), "float32"),
    "stacked": (Stacked, ("n", 9, 6), "float32"),
    "final": (final, ("n", 9, 6), "float32"),
}


def build(name: str, seed: int = 0) -> nn.Module:
    """The case's module, seeded, batch norms with statistics that are not the initial ones."""
    torch.manual_seed(seed)
    module = CASES[name][0]()
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.running_mean, -0.5, 0.5)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return module.eval()


def settled(name: str) -> nn.Module:
    """The case's module with statistics of data like `feeds`, as a trained one has them."""
    module = build(name)
    norms.reestimate(module, [[torch.from_numpy(feeds(name, 256, seed=5))]])
    return module


def feeds(name: str, samples: int = 64, seed: int = 1) -> np.ndarray:
    """Random inputs of the case."""
    _, shape, dtype = CASES[name]
    rng = np.random.default_rng(seed)
    if dtype == "int64":
        return rng.integers(0, 20, (samples, *shape[1:]))
    return rng.standard_normal((samples, *shape[1:])).astype(dtype)


def artifact(module: nn.Module, root: Path, shape: tuple[int | str, ...], dtype: str) -> Artifact:
    """`module` as a `module` artifact with one input `x` and its outputs `y0`, `y1`, …"""
    spec = TensorSpec("x", dtype, shape)
    example = np.zeros([2, *(d for d in shape[1:])], dtype)
    with torch.no_grad():
        outs = call(module, tensors([spec], {"x": example}))
    outputs = [TensorSpec(f"y{i}", "float32", ("n", *o.shape[1:])) for i, o in enumerate(outs)]
    return write_module(root, module, [spec], outputs, factory=None)


def source(name: str, root: Path) -> Artifact:
    """The case as an artifact in `root`."""
    return artifact(build(name), root, *CASES[name][1:])


def outputs(module: nn.Module, x: np.ndarray) -> list[np.ndarray]:
    """What `module` says to `x`."""
    with torch.no_grad():
        return [o.numpy() for o in call(module.eval(), [torch.from_numpy(x)])]
