"""Bidirectional GRU of two layers, reading Fashion-MNIST row by row."""

from __future__ import annotations

from torch import nn

from examples.zoo.recurrent import (
    Classifier,
    about,
    calibration,
    evaluation,
    selection,
    training,
)
from examples.zoo.recurrent import train as train_recurrent

__all__ = ["ABOUT", "build", "calibration", "evaluation", "selection", "train", "training"]
ABOUT = about("gru", "2 bidirectional GRU layers of 160, mean over steps classified")


def build() -> nn.Module:
    return Classifier(nn.GRU(28, 160, 2, batch_first=True, bidirectional=True))


def train(module: nn.Module) -> None:
    train_recurrent(module, half=True)
