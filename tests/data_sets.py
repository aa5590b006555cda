"""Small labelled data for tests: made here, or real where scikit-learn is installed."""

from __future__ import annotations

import numpy as np

Arrays = dict[str, np.ndarray]


def fashion_like(n: int, seed: int = 0, size: int = 28, noise: float = 0.15) -> Arrays:
    """`n` grey images of ten fabrics cut to ten shapes, moved and noisy, and their labels.

    Learnable and not trivial, shaped and typed as Fashion-MNIST: `image` [n, 1, size, size]
    float32 in 0-1, `labels` int64 [n]. Another seed gives other images of the same classes.
    """
    fixed = np.random.default_rng(1708)
    cuts = np.kron(fixed.random((10, size // 4, size // 4)) > 0.3, np.ones((4, 4)))
    y, x = np.mgrid[:size, :size]
    angle, period = np.arange(10) * np.pi / 10, 3 + np.arange(10) % 3
    across = np.cos(angle)[:, None, None] * x + np.sin(angle)[:, None, None] * y
    shapes = cuts * (0.5 + 0.5 * np.cos(2 * np.pi * across / period[:, None, None]))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, n)
    moves = rng.integers(-2, 3, (n, 2))
    images = np.stack([np.roll(shapes[k], m, (0, 1)) for k, m in zip(labels, moves, strict=True)])
    images = images * rng.uniform(0.5, 1.0, (n, 1, 1)) + rng.normal(0, noise, images.shape)
    return {"image": np.clip(images, 0, 1)[:, None].astype(np.float32), "labels": labels}


def digits() -> Arrays:
    """1,797 real handwritten digits, `image` [n, 1, 8, 8] in 0-1; skips without scikit-learn."""
    import pytest

    data_sets = pytest.importorskip("sklearn.datasets", reason="real digits need scikit-learn")
    found = data_sets.load_digits()
    image = (found.images[:, None] / 16).astype(np.float32)
    return {"image": image, "labels": found.target.astype(np.int64)}
