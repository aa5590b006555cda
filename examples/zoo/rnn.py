"""Elman network of one layer, reading Fashion-MNIST row by row."""

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
ABOUT = about("rnn", "tanh RNN of 384, last step classified")


def build() -> nn.Module:
    return Classifier(nn.RNN(28, 384, batch_first=True))


def train(module: nn.Module) -> None:
    train_recurrent(module, half=True)
