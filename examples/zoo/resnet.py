"""The residual network of example 01, with its weights; Fashion-MNIST."""

from __future__ import annotations

from safetensors.torch import load_file
from torch import nn

from compressor.modules import import_reference
from examples.zoo import data
from examples.zoo.about import About, splits

TRAINED_HERE = False
ABOUT = About(
    kind="cnn",
    architecture="3 stages of 2 residual blocks, 32-64-128 channels",
    source=f"{data.FASHION}; weights of examples/01_image_classifier",
    licence=data.FASHION_LICENCE,
    metric="top1",
    inputs={"image": ["batch", 1, 28, 28]},
    outputs=["logits"],
)


def build() -> nn.Module:
    module: nn.Module = import_reference("fashion_resnet:build", data.EXAMPLE)()
    return module


# these weights were trained on grey levels in 0-1
training, calibration, selection, evaluation = splits(data.fashion_pictures)


def train(module: nn.Module) -> None:
    """Nothing to train: the weights lie beside the example."""
    module.load_state_dict(load_file(data.EXAMPLE / "resnet.safetensors"))
