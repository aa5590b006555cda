"""One layer as two smaller ones: `reduce` to a few channels, `expand` to the layer's own.

A linear layer becomes two, a k x k convolution one to `rank` channels and a 1 x 1 behind it
(Zhang et al., "Accelerating Very Deep Convolutional Networks", TPAMI 2016). A pair is a plain
`nn.Sequential` with a mark, so it trains, exports and prunes like any other; `rebuild` makes it
from the untouched module's own layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

_MARK = "is_low_rank_pair"


def is_pair(layer: Any) -> bool:
    """Whether `layer` was made here (or rebuilt)."""
    return getattr(layer, _MARK, False) is True


def ends(layer: Any) -> tuple[Any, Any]:
    """The layer that reads the inputs and the one that makes the outputs: of a pair, its two."""
    return (layer.reduce, layer.expand) if is_pair(layer) else (layer, layer)


def widths(layer: Any) -> tuple[int, int]:
    """Inputs (of a convolution: values under its window) and outputs of a layer or pair."""
    first, last = ends(layer)
    return int(first.weight[0].numel()), int(last.weight.shape[0])


def full_rank(layer: Any) -> int:
    """The most that the rank of the layer's matrix can be; of a pair, its rank."""
    return int(layer.reduce.weight.shape[0]) if is_pair(layer) else min(widths(layer))


def matrix(layer: Any) -> Tensor:
    """The layer's weights as a float64 matrix [outputs, inputs]; of a pair, the product."""
    first, last = (end.weight.detach().double().flatten(1) for end in ends(layer))
    return last @ first if is_pair(layer) else first


def blank(layer: Any, rank: int) -> nn.Sequential:
    """A pair in place of `layer` (or of an earlier pair), its weights not set yet."""
    import torch
    from torch import nn

    first, last = ends(layer)
    kind, bias = type(first), last.bias is not None
    made: dict[str, Any] = {"dtype": first.weight.dtype}
    if isinstance(first, nn.Linear):
        reduce = nn.utils.skip_init(kind, first.in_features, rank, bias=False, **made)
        expand = nn.utils.skip_init(kind, rank, last.out_features, bias=bias, **made)
    else:
        window = {k: getattr(first, k) for k in ("stride", "padding", "dilation", "padding_mode")}
        reduce = nn.utils.skip_init(
            kind, first.in_channels, rank, first.kernel_size, bias=False, **window, **made
        )
        expand = nn.utils.skip_init(kind, rank, last.out_channels, 1, bias=bias, **made)
    pair = nn.Sequential()
    pair.add_module("reduce", reduce)
    pair.add_module("expand", expand)
    setattr(pair, _MARK, True)
    with torch.no_grad():
        for p in pair.parameters():
            p.requires_grad_(last.weight.requires_grad)
    return pair.train(layer.training)


def filled(layer: Any, first: Tensor, last: Tensor, bias: Tensor | None = None) -> nn.Sequential:
    """A pair with the matrices `first` [rank, inputs] and `last` [outputs, rank].

    `bias` [outputs] replaces the layer's own, where it has one.
    """
    import torch

    pair: Any = blank(layer, int(first.shape[0]))
    own = ends(layer)[1].bias
    with torch.no_grad():
        pair.reduce.weight.copy_(first.reshape(pair.reduce.weight.shape))
        pair.expand.weight.copy_(last.reshape(pair.expand.weight.shape))
        if own is not None:
            pair.expand.bias.copy_(own if bias is None else bias)
    return pair


def put(module: nn.Module, name: str, pair: nn.Module) -> None:
    """Put `pair` where `module` has the layer `name`.

    torch's own transformer encoder hands its layers' weights to a fused kernel; around a pair it
    is told not to.
    """
    from torch import nn

    *path, leaf = name.split(".")
    holder: Any = module
    for part in ("", *path):
        holder = holder.get_submodule(part)
        if isinstance(holder, nn.TransformerEncoderLayer):
            holder.activation_relu_or_gelu = 0
        elif isinstance(holder, nn.TransformerEncoder):
            holder.use_nested_tensor = False
    setattr(holder, leaf, pair)


def ranks(module: nn.Module) -> dict[str, int]:
    """Name of every pair in `module` → its rank."""
    return {name: full_rank(layer) for name, layer in module.named_modules() if is_pair(layer)}


def splittable(layer: Any) -> bool:
    """Whether a layer is of a kind that has a pair: torch's own, not grouped, not a subclass."""
    from torch import nn

    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return type(layer) in kinds and getattr(layer, "groups", 1) == 1


def rebuild(module: nn.Module, stored: Mapping[str, int]) -> None:
    """Put blank pairs in place of an untouched module's layers: name → rank.

    What does not fit is left as it is: the module then has another fingerprint than the stored one.
    """
    layers = dict(module.named_modules())
    for name, rank in stored.items():
        layer = layers.get(name)
        if name and splittable(layer) and rank <= full_rank(layer):
            put(module, name, blank(layer, rank))


def valid(stored: Any) -> bool:
    """Whether `stored` is what `ranks` gives."""
    if not isinstance(stored, Mapping):
        return False
    pairs: Iterable[tuple[Any, Any]] = stored.items()
    return all(isinstance(k, str) and type(v) is int and v > 0 for k, v in pairs)
