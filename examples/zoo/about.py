"""What a model of the zoo says of itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
Roles = dict[str, Arrays]
Split = Callable[[], Arrays]
SPLITS = ("training", "calibration", "selection", "evaluation")


@dataclass(frozen=True)
class About:
    """The part of a card that is written by hand.

    Attributes:
        kind: of network: cnn, rnn, transformer, …
        architecture: one line.
        source: where the data, and weights that were not trained here, come from.
        licence: of those.
        metric: as in a recipe.
        inputs: as in a recipe: name → shape or {shape, dtype}; a string is a free dimension.
        outputs: names, in the order the module returns them.
        state: recurrent state, input → output.
        export: `dynamo` or `torchscript`: which of torch's exporters writes the file. The second
            turns recurrent layers into single ONNX nodes, the first unrolls some of them.
        weights_of: another model, whose trained weights are this one's too.
    """

    kind: str
    architecture: str
    source: str
    licence: str
    metric: str | Mapping[str, Any]
    inputs: Mapping[str, Any]
    outputs: Sequence[str]
    state: Mapping[str, str] | None = None
    export: str = "dynamo"
    weights_of: str | None = None

    def shapes(self) -> dict[str, tuple[list[int | str], str]]:
        """Input → (shape, dtype)."""
        full = {n: v if isinstance(v, Mapping) else {"shape": v} for n, v in self.inputs.items()}
        return {n: (list(v["shape"]), v.get("dtype", "float32")) for n, v in full.items()}


def splits(arrays: Callable[[], Roles]) -> tuple[Split, Split, Split, Split]:
    """`arrays()`, which gives all roles, as the four functions that recipes name; made once."""
    made = cache(arrays)

    def training() -> Arrays:
        return made()["training"]

    def calibration() -> Arrays:
        return made()["calibration"]

    def selection() -> Arrays:
        return made()["selection"]

    def evaluation() -> Arrays:
        return made()["evaluation"]

    return training, calibration, selection, evaluation
