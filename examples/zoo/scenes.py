"""Pictures with garments in known places: one to three Fashion-MNIST items on a noisy canvas."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from examples.zoo.data import fashion

MOST = 3


@dataclass(frozen=True)
class Scenes:
    """Images [n, size, size] in about 0-1; masks of the same shape, 1 on garments;
    boxes [n, 3, 5] of (class, x1, y1, x2, y2) in pixels, class -1 pads."""

    images: np.ndarray
    masks: np.ndarray
    boxes: np.ndarray


def scenes(part: str, n: int, size: int) -> Scenes:
    """`n` seeded scenes from the pictures of `part` (train or t10k)."""
    pictures, labels = fashion(part)
    rng = np.random.default_rng(len(pictures))
    coarse = rng.normal(0.25, 0.12, (n, size // 8, size // 8))
    images = coarse.repeat(8, 1).repeat(8, 2) + rng.normal(0, 0.05, (n, size, size))
    masks = np.zeros((n, size, size), np.uint8)
    boxes = np.full((n, MOST, 5), -1.0, np.float32)
    for i in range(n):
        taken = np.zeros((size, size), bool)
        for j in range(rng.integers(1, MOST + 1)):
            which, scale = rng.integers(len(pictures)), rng.integers(18, 29)
            rows = np.linspace(0, 27, scale).round().astype(int)
            item = pictures[which][np.ix_(rows, rows)]
            y, x = rng.integers(0, size - scale + 1, 2)
            place = np.s_[y : y + scale, x : x + scale]
            if taken[place].mean() > 0.2:
                continue
            solid = item > 0.1
            images[i][place] = np.where(solid, item, images[i][place])
            masks[i][place] |= solid
            taken[place] = True
            ys, xs = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
            boxes[i, j] = (labels[which], x + xs[0], y + ys[0], x + xs[-1] + 1, y + ys[-1] + 1)
    return Scenes(images.astype(np.float32), masks, boxes)
