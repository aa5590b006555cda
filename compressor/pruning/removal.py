"""Channels taken out of a module, or zeroed in it, tensor by tensor.

One table, `cuts`, says which slices of which tensors hold a layer's channels; removing, zeroing,
and the costs before and after all read it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from compressor.modules import parameter_names, set_tensor
from compressor.pruning import recurrent
from compressor.pruning.graph import ChannelGroup, Member
from compressor.sizes import resize

if TYPE_CHECKING:
    from torch import Tensor, nn

INNER = ".heads"  # how the channels inside a module are named beside its layers'
Removal = Mapping[str, Sequence[int]]
Cut = tuple[str, int, list[int]]  # a layer's tensor, its axis, indices there
OUT_SIZES = ("out_channels", "out_features", "num_features", "num_channels", "num_parameters",
             "embedding_dim")  # fmt: skip
IN_SIZES = ("in_channels", "in_features", "input_size")


def cuts(layer: Any, side: str, own: Sequence[int]) -> list[Cut]:
    """Where the channels `own` lie on one side of `layer`; of a bare tensor, see `Member.axis`.

    Raises `ValueError` where a layer's channels cannot be told apart in its tensors.
    """
    from torch import nn

    channels = list(own)
    if isinstance(layer, nn.RNNBase):
        return _recurrent(layer, side, channels)
    if isinstance(layer, nn.MultiheadAttention):
        return _attention(layer, side, channels)
    if isinstance(layer, nn.modules.conv._ConvNd):
        return _convolution(layer, side, channels)
    if isinstance(layer, nn.Linear):
        return _present(layer, [("weight", 1)] if side == "in" else [("weight", 0), ("bias", 0)],
                        channels)  # fmt: skip
    if side == "inner":
        return []
    names = [name for name, t in _tensors(layer).items() if t.dim()]
    return [(name, _tensors(layer)[name].dim() - 1, channels) for name in names]


def _tensors(layer: Any) -> dict[str, Tensor]:
    own = [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
    return dict(own)


def _present(layer: Any, wanted: Sequence[tuple[str, int]], channels: list[int]) -> list[Cut]:
    there = _tensors(layer)
    return [(name, axis, channels) for name, axis in wanted if name in there]


def _recurrent(layer: Any, side: str, channels: list[int]) -> list[Cut]:
    if side == "in":
        return _present(layer, [("weight_ih_l0", 1), ("weight_ih_l0_reverse", 1)], channels)
    if layer.proj_size:
        raise ValueError("hidden units behind a projection (proj_size) are left alone")
    units = sorted({i % layer.hidden_size for i in channels})
    return [
        (name, axis, index)
        for name, _ in layer.named_parameters()
        for axis, index in recurrent.hidden_axes(layer, name, units)
    ]


def _attention(layer: Any, side: str, channels: list[int]) -> list[Cut]:
    """`out` is the width of what comes in and goes out, `inner` that of the heads."""
    if layer.in_proj_weight is None:
        raise ValueError("nn.MultiheadAttention with keys or values of another width (kdim, vdim)")
    if side == "out":
        return [("in_proj_weight", 1, channels)]
    three = [part * layer.embed_dim + i for part in range(3) for i in channels]
    found = _present(layer, [("in_proj_weight", 0), ("in_proj_bias", 0)], three)
    return found + _present(layer, [("bias_k", 2), ("bias_v", 2)], channels)


def _convolution(layer: Any, side: str, channels: list[int]) -> list[Cut]:
    if is_depthwise(layer):
        return _present(layer, [("weight", 0), ("bias", 0)], channels)
    if (side == "in") == layer.transposed:
        weight: Cut = ("weight", 0, channels)
    else:  # the axis holds one block's channels
        count = layer.in_channels if side == "in" else layer.out_channels
        weight = ("weight", 1, sorted({i % (count // layer.groups) for i in channels}))
    return [weight, *(_present(layer, [("bias", 0)], channels) if side == "out" else [])]


def is_depthwise(layer: Any) -> bool:
    """Whether a convolution sees each channel by itself."""
    return bool(layer.groups > 1 and layer.groups == layer.in_channels == layer.out_channels)


def remove(module: nn.Module, groups: Sequence[ChannelGroup], removal: Removal) -> None:
    """Remove channels in place: group name → indices of its root layer's channels.

    Raises `ValueError` where tied weights would have to lose different channels, or a size of the
    module does not go down in whole numbers.
    """
    import torch

    gone = dict(_gone(groups, removal))
    plan = _slices(module, gone)
    _check_ties(module, plan)
    tensors = {**dict(module.named_parameters(remove_duplicate=False)),
               **dict(module.named_buffers(remove_duplicate=False))}  # fmt: skip
    made: dict[int, Any] = {}
    for name, axes in plan.items():
        value = tensors[name].detach()
        for axis, index in axes.items():
            stay = sorted(set(range(value.shape[axis])) - index)
            value = value.index_select(axis, torch.tensor(stay, dtype=torch.long))
        key = id(tensors[name])
        if key in made:
            owner, leaf = module.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
            setattr(owner, leaf, made[key])
        else:
            set_tensor(module, name, value.contiguous().clone())
            made[key] = _tensor(module, name)
    _set_sizes(module, gone)


def _tensor(module: nn.Module, name: str) -> Any:
    path, _, leaf = name.rpartition(".")
    return getattr(module.get_submodule(path), leaf)


def _gone(
    groups: Sequence[ChannelGroup], removal: Removal
) -> Iterator[tuple[tuple[str, str], tuple[Member, set[int]]]]:
    """(layer, side) → one of its members, and all its channels that go, over all groups."""
    found: dict[tuple[str, str], tuple[Member, set[int]]] = {}
    for group in groups:
        chosen = set(removal.get(group.name, ()))
        for m in group.members if chosen else ():
            own = {o for o, r in zip(m.own, m.root, strict=True) if r in chosen}
            found.setdefault((m.layer, m.side), (m, set()))[1].update(own)
    return iter(found.items())


def _slices(
    module: nn.Module, gone: Mapping[tuple[str, str], tuple[Member, set[int]]]
) -> dict[str, dict[int, set[int]]]:
    """Full tensor name → axis → indices that go."""
    plan: dict[str, dict[int, set[int]]] = {}
    for (layer, side), (member, own) in gone.items():
        if side == "tensor":
            found = [(layer, member.axis % _tensor(module, layer).dim(), sorted(own))]
        else:
            dot = f"{layer}." if layer else ""
            there = cuts(module.get_submodule(layer), side, sorted(own))
            found = [(dot + name, axis, index) for name, axis, index in there]
        for name, axis, index in found:
            plan.setdefault(name, {}).setdefault(axis, set()).update(index)
    return plan


def _check_ties(module: nn.Module, plan: Mapping[str, Mapping[int, set[int]]]) -> None:
    for tied in parameter_names(module).values():
        if len({str(sorted(plan.get(n, {}).items())) for n in tied}) > 1:
            raise ValueError(f"tied weights: {' and '.join(tied)} would lose different channels")


def _set_sizes(module: nn.Module, gone: Mapping[tuple[str, str], tuple[Member, set[int]]]) -> None:
    """Sizes go down with the channels; those of one layer that both its sides name, once."""
    done = set()
    for (name, side), (member, own) in gone.items():
        if side == "tensor":
            continue
        layer = module.get_submodule(name)
        for attribute, change in _changes(layer, side, member, own):
            if (name, attribute) not in done:
                resize(layer, attribute, change)
                done.add((name, attribute))


def _changes(layer: Any, side: str, member: Member, own: set[int]) -> Iterator[tuple[str, Any]]:
    from torch import nn

    if side == "inner":
        for attribute, place in member.sizes:
            yield attribute, _scaled(layer, attribute, place, len(own), len(set(member.own)))
    elif isinstance(layer, nn.RNNBase) and side == "out":
        yield "hidden_size", layer.hidden_size - len({i % layer.hidden_size for i in own})
    elif isinstance(layer, nn.MultiheadAttention):
        for attribute in ("embed_dim", "kdim", "vdim"):
            yield attribute, getattr(layer, attribute) - len(own)
    elif isinstance(layer, nn.modules.conv._ConvNd) and is_depthwise(layer):
        for attribute in ("in_channels", "out_channels", "groups"):
            yield attribute, getattr(layer, attribute) - len(own)
    elif hasattr(layer, "normalized_shape"):
        yield "normalized_shape", (*layer.normalized_shape[:-1],
                                   layer.normalized_shape[-1] - len(own))  # fmt: skip
    else:
        for attribute in IN_SIZES if side == "in" else OUT_SIZES:
            if attribute in vars(layer):
                yield attribute, getattr(layer, attribute) - len(own)


def _scaled(layer: Any, attribute: str, place: int | None, gone: int, whole: int) -> Any:
    """The integer `attribute` (of a tuple, the one at `place`), in proportion to what stays."""
    value = getattr(layer, attribute)
    number = value if place is None else value[place]
    left, rest = divmod(number * (whole - gone), whole)
    if rest:
        raise ValueError(f"{attribute} = {number} does not go down in whole numbers")
    return left if place is None else type(value)([*value[:place], left, *value[place + 1 :]])


def zero(module: nn.Module, groups: Sequence[ChannelGroup], removal: Removal) -> None:
    """Zero in place what `remove` would take away: the same function where a group is exact."""
    import torch

    gone = dict(_gone(groups, removal))
    parameters = dict(module.named_parameters(remove_duplicate=False))
    bare = {name for name, side in gone if side == "tensor"}
    with torch.no_grad():
        for name, axes in _slices(module, gone).items():
            if name in parameters or name in bare:  # statistics stay
                for axis, index in axes.items():
                    where = torch.tensor(sorted(index), dtype=torch.long)
                    _tensor(module, name).index_fill_(axis, where, 0.0)
