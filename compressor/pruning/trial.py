"""Proof by trial: whether a module really can do without some of its channels.

What is left must run, keep the shapes of its outputs, and compute what the module computes with
these channels zeroed. For the comparison norms over the channels divide by what they divide the
whole module's by, as a smaller norm's own statistics would hide every mistake.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from compressor.pruning.graph import ChannelGroup, spread
from compressor.pruning.removal import remove, zero
from compressor.sources.torch_io import call, first_input, plain_attention

if TYPE_CHECKING:
    from torch import Tensor, nn

_Item = TypeVar("_Item")
_Why = TypeVar("_Why")

# What a forward raises that finds less, or another layer, than it expects.
FAILURES = (RuntimeError, ValueError, IndexError, AssertionError, TypeError, KeyError,
            AttributeError, ArithmeticError)  # fmt: skip
OUTPUTS = "its channels are the model's outputs"
_MIXED = (
    "removing channels here changes more than those channels "
    "(a reshape into heads, or an average over channels)"
)
_FIX = "keep it, or write the layer so that the channel count is read from its weights"


def failure(
    module: nn.Module,
    example: Sequence[Tensor],
    groups: Sequence[ChannelGroup],
    units: int | None = None,
) -> tuple[str, str] | None:
    """(reason, fix) where the module cannot lose the first `units` of each group; else None.

    By default half of them go.
    """
    import torch

    removal = {g.name: spread(g, range(units or max(1, g.units // 2))) for g in groups}
    pruned, zeroed = copy.deepcopy(module), copy.deepcopy(module)
    exact = all(g.exact for g in groups)
    scales = {} if exact else _scales(module, example)
    with torch.no_grad(), plain_attention():
        try:
            remove(pruned, groups, removal)
            shapes = [o.shape for o in call(pruned.eval(), example)]
            _fix_norms(pruned, scales)
            smaller = call(pruned, example)
        except FAILURES as error:
            return _told(error, example, groups)
        zero(zeroed, groups, removal)
        _fix_norms(zeroed, scales)
        before = call(zeroed.eval(), example)
    if shapes != [o.shape for o in before]:
        return OUTPUTS, ""
    if not all(close(a, b) for a, b in zip(smaller, before, strict=True)):
        return _MIXED, ""
    return None


def sifted(
    items: Sequence[_Item], failure: Callable[[Sequence[_Item]], _Why]
) -> tuple[list[_Item], list[tuple[_Item, _Why]]]:
    """What passes its trial, and what fails it alone, with the reason.

    `failure` of some items together is false where they pass; what fails is halved.
    """
    passed: list[_Item] = []
    failed: list[tuple[_Item, _Why]] = []

    def sift(part: Sequence[_Item]) -> None:
        why = failure(part)
        if not why:
            passed.extend(part)
        elif len(part) == 1:
            failed.append((part[0], why))
        else:
            sift(part[: len(part) // 2])
            sift(part[len(part) // 2 :])

    if items:
        sift(items)
    return passed, failed


def _told(
    error: Exception, example: Sequence[Tensor], groups: Sequence[ChannelGroup]
) -> tuple[str, str]:
    """What failed, and whether the width is part of the model's interface."""
    text = str(error).strip().splitlines()
    said = text[-1] if text else repr(error)
    if said.startswith("tied weights"):
        return said, "untie them, or keep one of the layers"
    wide = [i for i, x in enumerate(example) for g in groups if g.width in x.shape[1:]]
    if len(groups) == 1 and wide:
        said += f" (input {wide[0]} of the model has that width too)"
    return f"without some of its channels the module fails: {said}", _FIX


def _scales(module: nn.Module, example: Sequence[Tensor]) -> dict[str, float]:
    """Norm over channels → root mean square of what it sees in the whole module."""
    import torch

    found: dict[str, float] = {}

    def hook(name: str) -> Any:
        def note(_layer: Any, args: Any, kwargs: Any) -> None:
            x = first_input(args, kwargs)
            found[name] = max(float(x.double().square().mean()) ** 0.5, 1e-6)

        return note

    handles = [
        m.register_forward_pre_hook(hook(n), with_kwargs=True)
        for n, m in module.named_modules()
        if _norm(m)
    ]
    try:
        with torch.no_grad(), plain_attention():
            call(module.eval(), example)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _norm(layer: Any) -> bool:
    from torch import nn

    over = getattr(layer, "normalized_shape", ())
    return isinstance(layer, nn.GroupNorm) or (
        isinstance(layer, (nn.LayerNorm, nn.RMSNorm)) and len(over) == 1
    )


def _fix_norms(module: nn.Module, scales: Mapping[str, float]) -> None:
    """Norms of this copy become a division by a constant, then their own weights and biases."""
    for name, scale in scales.items():
        layer: Any = module.get_submodule(name)
        layer.forward = _constant(layer, scale)


def _constant(layer: Any, scale: float) -> Any:
    from torch import nn

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        x = first_input(args, kwargs)
        last = (-1,) if not isinstance(layer, nn.GroupNorm) else (-1, *[1] * (x.dim() - 2))
        y = x / scale
        y = y if layer.weight is None else y * layer.weight.reshape(last)
        bias = getattr(layer, "bias", None)
        return y if bias is None else y + bias.reshape(last)

    return forward


def close(a: Tensor, b: Tensor) -> bool:
    """Whether `a` is `b` up to rounding."""
    if not a.is_floating_point():
        return True
    scale = float(b.abs().max()) if b.numel() else 0.0
    return bool((a - b).abs().max() <= 1e-3 * scale + 1e-5) if b.numel() else True
