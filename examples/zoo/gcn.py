"""Graph convolutions (Kipf and Welling) on neighbourhoods of similar pictures; Fashion-MNIST.

A sample is a node with its 15 nearest neighbours among other pictures: features of the 16 nodes
and their normalised adjacency. The node's class is asked for; neighbours bring no labels.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from examples.zoo import data, fitting
from examples.zoo.about import About, Arrays, Roles, splits

ABOUT = About(
    kind="gcn",
    architecture="3 graph convolutions of 320 on 16 nodes, adjacency as an input",
    source=data.FASHION,
    licence=data.FASHION_LICENCE,
    metric="top1",
    inputs={"nodes": ["batch", 16, 196], "adjacency": ["batch", 16, 16]},
    outputs=["logits"],
)
NODES, FEATURES = 16, 196


class Gcn(nn.Module):
    """Three graph convolutions; the first node is classified."""

    def __init__(self, width: int = 320) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(FEATURES, width), nn.Linear(width, width)
        self.third, self.head, self.act = nn.Linear(width, width), nn.Linear(width, 10), nn.ReLU()

    def forward(self, nodes: Tensor, adjacency: Tensor) -> Tensor:
        x = self.act(adjacency @ self.first(nodes))
        x = self.act(adjacency @ self.second(x)) + x
        x = self.act(adjacency @ self.third(x)) + x
        return self.head(x[:, 0])


def build() -> nn.Module:
    return Gcn()


def _neighbourhoods(part: str, n: int) -> Arrays:
    images, labels = data.fashion(part)
    chosen = np.random.default_rng(len(images)).permutation(len(images))[:n]
    small = images.reshape(-1, 14, 2, 14, 2).mean((2, 4)).reshape(len(images), -1)
    pool = small[chosen]
    power = (pool**2).sum(1)
    nodes = np.zeros((n, NODES, FEATURES), np.float32)
    adjacency = np.zeros((n, NODES, NODES), np.float32)
    for start in range(0, n, 500):
        rows = slice(start, min(start + 500, n))
        gaps = power[rows, None] + power[None] - 2 * pool[rows] @ pool.T
        near = np.argpartition(gaps, NODES, 1)[:, :NODES]
        order = np.take_along_axis(gaps, near, 1).argsort(1)
        nodes[rows] = pool[np.take_along_axis(near, order, 1)]
    for i in range(n):
        x = nodes[i]
        gaps = ((x[:, None] - x[None]) ** 2).sum(-1)
        links = np.exp(-gaps / (gaps.mean() + 1e-6))
        root = 1 / np.sqrt(links.sum(1))
        adjacency[i] = links * root[:, None] * root[None]
    return {"nodes": nodes, "adjacency": adjacency, "labels": labels[chosen]}


def arrays() -> Roles:
    return data.split(_neighbourhoods("train", 20000), _neighbourhoods("t10k", 6000))


training, calibration, selection, evaluation = splits(arrays)


def train(module: nn.Module) -> None:
    loss = fitting.cross_entropy()
    fitting.train(module, training(), loss, epochs=6, lr=2e-3)
