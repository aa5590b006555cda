"""LSTM of two layers, reading Fashion-MNIST row by row."""

from __future__ import annotations

from torch import nn

from examples.zoo.recurrent import (
    Classifier,
    about,
    calibration,
    evaluation,
    selection,
    train,
    training,
)

__all__ = ["ABOUT", "build", "calibration", "evaluation", "selection", "train", "training"]
ABOUT = about("lstm", "2 LSTM layers of 224, last step classified")


def build() -> nn.Module:
    return Classifier(nn.LSTM(28, 224, 2, batch_first=True))
