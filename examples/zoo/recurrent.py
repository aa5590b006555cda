"""What the recurrent classifiers share: a picture is a sequence of 28 rows."""

from __future__ import annotations

from torch import Tensor, nn

from examples.zoo import data, fitting
from examples.zoo.about import About, splits

training, calibration, selection, evaluation = splits(data.fashion_rows)


class Classifier(nn.Module):
    """A recurrent body and a linear head on its last step, or on the mean of both directions."""

    def __init__(self, body: nn.RNNBase) -> None:
        super().__init__()
        self.body = body
        width = body.hidden_size * (2 if body.bidirectional else 1)
        self.head = nn.Linear(width, 10)

    def forward(self, rows: Tensor) -> Tensor:
        outputs, _ = self.body(rows)
        return self.head(outputs[:, -1] if not self.body.bidirectional else outputs.mean(1))


def about(kind: str, architecture: str) -> About:
    """The card's words, which differ in little."""
    return About(
        kind=kind,
        architecture=architecture,
        source=f"{data.FASHION}, read row by row",
        licence=data.FASHION_LICENCE,
        metric="top1",
        inputs={"rows": ["batch", 28, 28]},
        outputs=["logits"],
        export="torchscript",
    )


def train(module: nn.Module, *, half: bool = False) -> None:
    fitting.train(module, training(), fitting.cross_entropy(), epochs=4, lr=2e-3, half=half)
