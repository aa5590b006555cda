"""Models of every common kind, each with data and a metric: see README.md.

A model is one file here. It declares `ABOUT`, and

    build()         the torch module, untrained
    train(module)   makes its weights, in place, from `training` data or from a package's file
    training(), calibration(), selection(), evaluation()
                    arrays by input name, with `labels` where there are any

so a recipe names them as it names its own: `examples.zoo.lstm:build`, `examples.zoo.lstm:training`.
A model that comes as an ONNX file has `given(path)`, which writes it, instead of the first two.
"""

from __future__ import annotations

import importlib
from types import ModuleType

MODELS = (
    "resnet", "mobilenet", "unet", "yolo", "rnn", "lstm", "gru", "nsnet2", "captcha", "bert",
    "gpt", "gpt_cache", "vit", "autoencoder", "gan", "gcn", "seq2seq", "stream", "efficientnet",
    "darts",
)  # fmt: skip


def load(name: str) -> ModuleType:
    """The file of one model."""
    if name not in MODELS:
        raise SystemExit(f"no model {name!r}; there are: {', '.join(MODELS)}")
    return importlib.import_module(f"{__name__}.{name}")
