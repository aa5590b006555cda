"""A network of cells that a search found: DARTS, its published second-order cells; Fashion-MNIST.

Liu, Simonyan and Yang, "DARTS: Differentiable Architecture Search" (2019). Many small branches,
separable and dilated convolutions, pooling, and Concat: the shape that searches like.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from examples.zoo import data, fitting
from examples.zoo.about import About, splits

ABOUT = About(
    kind="searched cells",
    architecture="6 DARTS cells, 24-48-96 channels: separable and dilated convolutions, Concat",
    source=data.FASHION,
    licence=data.FASHION_LICENCE,
    metric="top1",
    inputs={"image": ["batch", 1, 28, 28]},
    outputs=["logits"],
)
# Of each cell's four nodes the two operations that feed it, and the states they read.
NORMAL = (
    (("separable", 0), ("separable", 1)), (("separable", 0), ("separable", 1)),
    (("separable", 1), ("skip", 0)), (("skip", 0), ("dilated", 2)),
)  # fmt: skip
REDUCTION = (
    (("pool", 0), ("pool", 1)), (("skip", 2), ("pool", 1)),
    (("pool", 0), ("skip", 2)), (("skip", 2), ("pool", 1)),
)  # fmt: skip
CELLS = ((NORMAL, 24), (REDUCTION, 48), (NORMAL, 48), (REDUCTION, 96), (NORMAL, 96), (NORMAL, 96))


def _project(before: int, out: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(before, out, 1, stride, bias=False)
    return nn.Sequential(nn.ReLU(), conv, nn.BatchNorm2d(out))


def _depthwise(width: int, stride: int, dilation: int) -> nn.Sequential:
    around = dilation
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(width, width, 3, stride, around, dilation, groups=width, bias=False),
        nn.Conv2d(width, width, 1, bias=False),
        nn.BatchNorm2d(width),
    )


def _operation(name: str, width: int, stride: int) -> nn.Module:
    if name == "pool":
        return nn.MaxPool2d(3, stride, 1)
    if name == "skip":
        return nn.Identity() if stride == 1 else _project(width, width, stride)
    if name == "dilated":
        return _depthwise(width, stride, 2)
    return nn.Sequential(_depthwise(width, stride, 1), _depthwise(width, 1, 1))


class Cell(nn.Module):
    """Reads the two states before it; what its four nodes hold is joined."""

    def __init__(
        self, nodes: tuple[tuple[tuple[str, int], ...], ...], widths: tuple[int, int, int],
        reduced: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        older, newer, width = widths
        self.reads = [[state for _, state in node] for node in nodes]
        self.first = _project(older, width, 2 if reduced else 1)
        self.second = _project(newer, width)
        stride = 2 if nodes is REDUCTION else 1
        self.operations = nn.ModuleList(
            nn.ModuleList(_operation(name, width, stride if at < 2 else 1) for name, at in node)
            for node in nodes
        )

    def forward(self, older: Tensor, newer: Tensor) -> Tensor:
        states = [self.first(older), self.second(newer)]
        for reads, (left, right) in zip(self.reads, self.operations, strict=True):
            states.append(left(states[reads[0]]) + right(states[reads[1]]))
        return torch.cat(states[2:], 1)


class Darts(nn.Module):
    """A stem to 14x14, the cells, mean, linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 48, 3, 2, 1, bias=False), nn.BatchNorm2d(48))
        cells, older, newer, reduced = [], 48, 48, False
        for nodes, width in CELLS:
            cells.append(Cell(nodes, (older, newer, width), reduced))
            older, newer, reduced = newer, 4 * width, nodes is REDUCTION
        self.cells = nn.ModuleList(cells)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(newer, 10)

    def forward(self, image: Tensor) -> Tensor:
        older = newer = self.stem(image)
        for cell in self.cells:
            older, newer = newer, cell(older, newer)
        return self.head(self.pool(newer).flatten(1))


def build() -> nn.Module:
    return Darts()


training, calibration, selection, evaluation = splits(data.fashion_images)


def train(module: nn.Module) -> None:
    loss = fitting.cross_entropy()
    fitting.train(module, training(), loss, epochs=2.5, lr=4e-3, flip=True, half=True)
