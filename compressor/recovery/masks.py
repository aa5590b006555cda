"""Zeros that `prune_pattern` made stay zero while a module is trained."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


def hold(module: nn.Module, facts: Mapping[str, Any]) -> int:
    """No gradient reaches the zeros of the weights that `facts` say have a pattern; how many zeros.

    Without one, neither AdamW's step nor its decay moves a weight that is zero. Weights are named
    as parameters of `module`.
    """
    named = dict(module.named_parameters())
    weights = [named[name] for name in facts.get("pattern", {}).get("weights", [])]
    return sum(map(hold_zeros, weights))


def hold_zeros(weight: Tensor) -> int:
    """No gradient reaches the zeros of a parameter from now on; how many there are."""
    zero = weight.detach() == 0
    weight.register_hook(partial(_without, zero))
    return int(zero.sum())


def _without(zero: Tensor, gradient: Tensor) -> Tensor:
    return gradient.masked_fill(zero, 0.0)
