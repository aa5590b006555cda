"""Which channels must go together: torch-pruning's dependency graph as plain data.

A `ChannelGroup` names every tensor axis that shrinks when one of its channels is removed.
Source of the idea: Fang et al., "DepGraph: Towards Any Structural Pruning" (CVPR 2023).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from compressor.pruning import recurrent
from compressor.sources.torch_io import call
from runtimes.errors import Refusal

if TYPE_CHECKING:
    from torch import Tensor, nn

Removal = Mapping[str, Sequence[int]]
_MIXED = (
    "removing channels here changes more than those channels "
    "(a reshape into heads, or an average over channels)"
)
_HEADS = "its channels run through nn.MultiheadAttention, whose heads are left alone"
_SPLIT_FIX = "keep it, or write the layer so that the channel count is read from its weights"


@dataclass(frozen=True)
class Member:
    """One axis of one layer (or bare parameter): `own[i]` is the channel coupled to `root[i]`."""

    layer: str
    side: Literal["out", "in", "tensor"]
    own: tuple[int, ...]
    root: tuple[int, ...]
    axis: int = 0  # of a bare parameter


@dataclass(frozen=True)
class ChannelGroup:
    """Channels of `name` (its first producer) and everything coupled to them.

    Attributes:
        name: the root layer.
        width: number of channels of the root layer.
        repeats: channel groups (grouped convolution, group norm): each loses the same offsets.
        members: every axis that shrinks, the root's first.
        exact: False where a norm over these channels makes removal differ from zeroing.
    """

    name: str
    width: int
    repeats: int
    members: tuple[Member, ...]
    exact: bool = True

    @property
    def producers(self) -> tuple[str, ...]:
        """Layers that make these channels."""
        return tuple(m.layer for m in self.members if m.side == "out")


def find_groups(module: nn.Module, example: Sequence[Tensor]) -> list[ChannelGroup]:
    """Every group of coupled channels, in the order of execution.

    Raises whatever tracing raises; `trace_failure` turns that into a reason.
    """
    import torch
    from torch import nn

    graph = _trace(module, example)
    names = {layer: name for name, layer in module.named_modules()}
    names.update({p: name for name, p in module.named_parameters()})
    roots = (nn.modules.conv._ConvNd, nn.Linear, nn.RNNBase)
    found = []
    with _quiet(), torch.enable_grad():
        for group in graph.get_all_groups(root_module_types=roots):
            found.append(_as_data(graph, group, names))
    order = {name: place for place, name in enumerate(dict(module.named_modules()))}
    return sorted(found, key=lambda group: order[group.name])


def _trace(module: nn.Module, example: Sequence[Tensor]) -> Any:
    import torch
    import torch_pruning

    module.eval()
    parameters = list(module.parameters())
    frozen = [p for p in parameters if not p.requires_grad]
    with _quiet(), torch.enable_grad(), recurrent.opaque(module):
        for p in frozen:  # the graph is read off autograd
            p.requires_grad_(True)
        try:
            return torch_pruning.DependencyGraph().build_dependency(
                module,
                list(example),
                forward_fn=lambda m, x: [o for o in call(m, x) if o.grad_fn is not None],
                customized_pruners=recurrent.pruners(),
                verbose=False,
            )
        finally:
            for p in frozen:
                p.requires_grad_(False)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _as_data(graph: Any, group: Any, names: Mapping[Any, str]) -> ChannelGroup:
    from torch import nn

    members, repeats, exact = [], 1, True
    width = len(group[0].idxs)
    for item in group:
        layer = item.dep.target.module
        if layer not in names:
            continue  # an operation without weights
        side = _side(graph, layer, item.dep.handler)
        repeats = max(repeats, _repeats(layer, side))
        exact = exact and not isinstance(layer, (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm))
        if any(r is None for r in item.root_idxs):
            continue
        members.append(
            Member(
                names[layer],
                side,
                tuple(item.idxs),
                tuple(item.root_idxs),
                getattr(item.dep.target, "pruning_dim", None) or 0,
            )
        )
    return ChannelGroup(names[group[0].dep.target.module], width, repeats, tuple(members), exact)


def _side(graph: Any, layer: Any, handler: Any) -> Literal["out", "in", "tensor"]:
    from torch import nn

    if isinstance(layer, nn.Parameter):
        return "tensor"
    return "out" if graph.is_out_channel_pruning_fn(handler) else "in"


def _repeats(layer: Any, side: str) -> int:
    """Channel groups of a layer; a depthwise convolution has none: its channels are separate."""
    from torch import nn

    if isinstance(layer, nn.RNNBase):
        return recurrent.directions(layer) if side == "out" else 1
    if isinstance(layer, nn.GroupNorm):
        return int(layer.num_groups)
    if isinstance(layer, nn.modules.conv._ConvNd) and layer.groups > 1:
        depthwise = layer.groups == layer.in_channels == layer.out_channels
        return 1 if depthwise else int(layer.groups)
    return 1


def remove(module: nn.Module, example: Sequence[Tensor], removal: Removal) -> None:
    """Remove channels in place: group name → indices of its root layer's channels."""
    import torch

    graph = _trace(module, example)
    layers = dict(module.named_modules())
    with _quiet(), torch.enable_grad():
        for name in sorted(removal):
            root = layers[name]
            prune = graph.get_pruner_of_module(root).prune_out_channels
            graph.get_pruning_group(root, prune, list(removal[name])).prune()
    module.zero_grad(set_to_none=True)


def zero(module: nn.Module, groups: Sequence[ChannelGroup], removal: Removal) -> None:
    """Zero in place what `remove` would take away: the same function where a group is exact."""
    import torch

    layers, parameters = dict(module.named_modules()), dict(module.named_parameters())
    with torch.no_grad():
        for group in groups:
            gone = set(removal.get(group.name, ()))
            for m in group.members:
                own = [o for o, r in zip(m.own, m.root, strict=True) if r in gone]
                if m.side == "tensor":
                    parameters[m.layer].index_fill_(m.axis, torch.tensor(own), 0.0)
                else:
                    _zero_side(layers[m.layer], m.side, own)


def _zero_side(layer: nn.Module, side: str, own: list[int]) -> None:
    import torch
    from torch import nn

    index = torch.tensor(own, dtype=torch.long)
    conv = isinstance(layer, nn.modules.conv._ConvNd)
    flipped = conv and layer.transposed
    if isinstance(layer, (nn.LSTM, nn.GRU, nn.RNN)):
        units = sorted({i % layer.hidden_size for i in own})
        for name, weight in layer.named_parameters():
            if side == "out":  # a unit whose gates get nothing stays at its start, which is 0
                rows = recurrent.hidden_axes(layer, name, units)[0][1]
                weight.index_fill_(0, torch.tensor(rows), 0.0)
            elif name.startswith("weight_ih_l0"):
                weight.index_fill_(1, index, 0.0)
    elif isinstance(layer, nn.Embedding):
        layer.weight.index_fill_(1, index, 0.0)
    elif side == "out" or not (conv or isinstance(layer, nn.Linear)):
        weights = [("weight", 1 if flipped else 0), ("bias", 0)]
        for name, axis in weights:
            weight = getattr(layer, name, None)
            if isinstance(weight, torch.Tensor) and weight.dim() > 0:
                weight.index_fill_(min(axis, weight.dim() - 1), index, 0.0)
    elif conv and layer.groups > 1:
        _zero_grouped_inputs(layer, own)
    else:
        layer.weight.index_fill_(0 if flipped else 1, index, 0.0)


def _zero_grouped_inputs(layer: Any, own: list[int]) -> None:
    per_in, per_out = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    for channel in own:
        block, offset = divmod(channel, per_in)
        if layer.transposed:
            layer.weight[channel] = 0.0
        else:
            layer.weight[block * per_out : (block + 1) * per_out, offset] = 0.0


def removable(
    module: nn.Module, example: Sequence[Tensor], groups: Sequence[ChannelGroup]
) -> tuple[list[ChannelGroup], list[Refusal]]:
    """The groups that can really lose channels, and the reasons why the others cannot.

    Proof by trial: with half of its channels removed the module must still run, keep the shapes
    of its outputs, and compute what it computes with these channels zeroed. Attention heads behind
    a reshape, fixed sizes in the forward, and the output layers fail this and are left alone.
    """
    kept: list[ChannelGroup] = []
    reasons: list[Refusal] = []

    def sift(part: Sequence[ChannelGroup]) -> None:
        why = _trial_failure(module, example, part) if part else None
        if why is None:
            kept.extend(part)
        elif len(part) == 1:
            reasons.append(Refusal(part[0].name, *why))
        else:
            sift(part[: len(part) // 2])
            sift(part[len(part) // 2 :])

    layers = dict(module.named_modules())
    attention = [g for g in groups if any(_is_attention(layers.get(m.layer)) for m in g.members)]
    reasons += [Refusal(g.name, _HEADS) for g in attention]
    sift([g for g in groups if g not in attention and g.width // g.repeats > 1])
    return kept, reasons


def _is_attention(layer: Any) -> bool:
    from torch import nn

    return isinstance(layer, nn.MultiheadAttention)


def _trial_failure(
    module: nn.Module, example: Sequence[Tensor], groups: Sequence[ChannelGroup]
) -> tuple[str, str] | None:
    import torch

    removal = {g.name: spread(g, range(g.width // g.repeats // 2)) for g in groups}
    pruned, zeroed = copy.deepcopy(module), copy.deepcopy(module)
    try:
        remove(pruned, example, removal)
        with torch.no_grad():
            smaller = call(pruned.eval(), example)
    except (RuntimeError, ValueError, IndexError, AssertionError, TypeError, KeyError) as error:
        text = str(error).strip().splitlines()
        return (
            f"without some of its channels the module fails: {text[-1] if text else error!r}",
            _SPLIT_FIX,
        )
    zero(zeroed, groups, removal)
    with torch.no_grad():
        before = call(zeroed.eval(), example)
    if [o.shape for o in smaller] != [o.shape for o in before]:
        return "its channels are the model's outputs", ""
    exact = all(g.exact for g in groups)
    if exact and not all(close(a, b) for a, b in zip(smaller, before, strict=True)):
        return _MIXED, ""
    return None


def close(a: Tensor, b: Tensor) -> bool:
    """Whether `a` is `b` up to rounding."""
    if not a.is_floating_point():
        return True
    scale = float(b.abs().max()) if b.numel() else 0.0
    return bool((a - b).abs().max() <= 1e-3 * scale + 1e-5) if b.numel() else True


def spread(group: ChannelGroup, offsets: Sequence[int]) -> list[int]:
    """Channel indices for `offsets` within each of the group's repeats."""
    size = group.width // group.repeats
    return sorted(block * size + offset for block in range(group.repeats) for offset in offsets)
