"""Small networks of different kinds, trained on real data: scikit-learn's handwritten digits.

`make(folder)` writes one ONNX file each and `data()` gives the images. Needs torch and
scikit-learn; trains in about two minutes on one core.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

TRAINED = 1300  # of 1,797 samples; the rest is for evaluation


def data() -> tuple[np.ndarray, np.ndarray]:
    """Images [1797, 1, 24, 24] with noise, and labels, in a fixed order."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).reshape(-1, 1, 8, 8).repeat(3, 2).repeat(3, 3)
    images = images + np.random.default_rng(1).normal(0, 0.25, images.shape)
    order = np.random.default_rng(0).permutation(len(images))
    return images[order].astype(np.float32), labels[order]


class Block(nn.Module):
    def __init__(self, before: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or before != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class Cnn(nn.Module):
    """Residual, 0.38 M parameters."""

    def __init__(self, w: int = 24) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, w, 3, 1, 1, bias=False), nn.BatchNorm2d(w), nn.ReLU()
        )
        widths = [(w, w, 1), (w, 2 * w, 2), (2 * w, 2 * w, 1), (2 * w, 4 * w, 2), (4 * w, 4 * w, 1)]
        self.body = nn.Sequential(*(Block(*args) for args in widths))
        self.head = nn.Linear(4 * w, 10)

    def forward(self, x):
        return self.head(self.body(self.stem(x)).mean((2, 3)))


class Mlp(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Flatten(), nn.Linear(576, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(),
            nn.Linear(256, 10),
        )  # fmt: skip


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduce, self.excite = nn.Conv2d(width, width // 4, 1), nn.Conv2d(width // 4, width, 1)

    def forward(self, x):
        pooled = torch.relu(self.reduce(x.mean((2, 3), keepdim=True)))
        return x * F.hardsigmoid(self.excite(pooled))


class Inverted(nn.Module):
    """As in MobileNetV3: expand, depthwise, gate, project."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        inner, self.adds = 4 * before, stride == 1 and before == width
        self.net = nn.Sequential(
            nn.Conv2d(before, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.Hardswish(),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False), nn.BatchNorm2d(inner),
            nn.Hardswish(), Gate(inner), nn.Conv2d(inner, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x):
        return x + self.net(x) if self.adds else self.net(x)


class HardSwish(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish(),
            Inverted(16, 24, 2), Inverted(24, 24, 1), Inverted(24, 40, 2), Inverted(40, 40, 1),
        )  # fmt: skip
        self.head = nn.Linear(40, 10)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


class Attention(nn.Module):
    """A pre-norm encoder layer with 4 heads."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(d, d) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x):
        b, t, d = x.shape
        y = self.norm1(x)
        q, k, v = (f(y).reshape(b, t, 4, d // 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        weights = torch.softmax(q @ k.transpose(2, 3) / (d // 4) ** 0.5, -1)
        x = x + self.o((weights @ v).transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """The rows of an image are its tokens."""

    def __init__(self, d: int = 96) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(24, d), nn.Parameter(torch.randn(1, 24, d) * 0.02)
        self.layers = nn.Sequential(Attention(d), Attention(d))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, 10)

    def forward(self, x):
        return self.head(self.norm(self.layers(self.embed(x[:, 0]) + self.place)).mean(1))


class Gru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(24, 96, 2, batch_first=True), nn.Linear(96, 10)

    def forward(self, x):
        return self.head(self.gru(x[:, 0])[0][:, -1])


EPOCHS = {"cnn": (Cnn, 8), "mlp": (Mlp, 15), "hardswish": (HardSwish, 14),
          "transformer": (Transformer, 20), "gru": (Gru, 15)}  # fmt: skip


def make(folder: Path) -> list[Path]:
    """Train what is not there yet; the ONNX files, in a fixed order."""
    torch.set_num_threads(1)
    images, labels = data()
    made = []
    for name, (build, epochs) in EPOCHS.items():
        path = folder / f"{name}.onnx"
        if not path.exists():
            export(name, trained(build, epochs, images[:TRAINED], labels[:TRAINED]), path)
        made.append(path)
    return made


def trained(build, epochs: int, images: np.ndarray, labels: np.ndarray) -> nn.Module:
    torch.manual_seed(0)
    model, x, y = build(), torch.tensor(images), torch.tensor(labels)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    steps = epochs * (len(x) // 64 + 1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def export(name: str, model: nn.Module, path: Path) -> None:
    example = (torch.zeros(2, 1, 24, 24),)
    names = {"input_names": ["image"], "output_names": ["logits"]}
    if name == "gru":  # the dynamo exporter unrolls it
        axes = {"image": {0: "batch"}, "logits": {0: "batch"}}
        torch.onnx.export(
            model, example, str(path), dynamo=False, dynamic_axes=axes, opset_version=17, **names
        )
        return
    batch = torch.export.Dim("batch", min=1, max=4096)
    torch.onnx.export(
        model, example, str(path), dynamo=True, dynamic_shapes=({0: batch},), external_data=False,
        verbose=False, opset_version=20, **names,
    )  # fmt: skip
