"""Zeros that `prune_pattern` made stay zero while a module is trained."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


def hold(module: nn.Module, facts: Mapping[str, Any]) -> None:
    """No gradient reaches the zeros of the weights that `facts` say have a pattern.

    Without one, neither AdamW's step nor its decay moves a weight that is zero. Weights are named
    as parameters of `module`.
    """
    named = dict(module.named_parameters())
    for name in facts.get("pattern", {}).get("weights", []):
        hold_zeros(named[name])


def hold_zeros(weight: Tensor) -> None:
    """No gradient reaches the zeros of a parameter from now on."""
    zero = weight.detach() == 0
    weight.register_hook(partial(_without, zero))


def _without(zero: Tensor, gradient: Tensor) -> Tensor:
    return gradient.masked_fill(zero, 0.0)
