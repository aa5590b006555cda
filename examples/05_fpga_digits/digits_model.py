"""A classifier of 8x8 digits, 64-32-16-10."""

from torch import nn


def build() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 10)
    )
