"""Which channels must go together: torch-pruning's dependency graph as plain data.

A `ChannelGroup` names every tensor axis that shrinks when one of its channels is removed.
Source of the idea: Fang et al., "DepGraph: Towards Any Structural Pruning" (CVPR 2023).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from compressor.pruning import products, recurrent
from compressor.sources.torch_io import call

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Member:
    """One axis of one layer (or bare tensor): `own[i]` is the channel coupled to `root[i]`.

    Attributes:
        layer: of a bare tensor its own name.
        side: `inner` is what a module does between its layers: attention on its heads.
        own, root: channels of the layer, and of the group's root.
        axis: of a bare tensor.
        sizes: integers of the module that go down in proportion, each (attribute, place in it
            where it is a tuple).
    """

    layer: str
    side: Literal["out", "in", "inner", "tensor"]
    own: tuple[int, ...]
    root: tuple[int, ...]
    axis: int = 0
    sizes: tuple[tuple[str, int | None], ...] = ()


@dataclass(frozen=True)
class ChannelGroup:
    """Channels of `name` (its first producer) and everything coupled to them.

    Attributes:
        name: the root layer.
        width: number of channels of the root layer.
        repeats: channel groups (grouped convolution, group norm): each loses the same offsets.
        members: every axis that shrinks, the root's first.
        exact: False where a norm over these channels makes removal differ from zeroing.
        block: so many channels next to each other go together (an attention head, a flattened
            picture).
        parts: groups that must lose equally much, each its own least salient channels; the
            members are theirs.
    """

    name: str
    width: int
    repeats: int
    members: tuple[Member, ...]
    exact: bool = True
    block: int = 1
    parts: tuple[ChannelGroup, ...] = ()

    @property
    def units(self) -> int:
        """What can go one by one: the blocks of a repeat."""
        return self.width // self.repeats // self.block

    @property
    def producers(self) -> tuple[str, ...]:
        """Layers that make these channels."""
        return tuple(m.layer for m in self.members if m.side == "out")


def find_groups(
    module: nn.Module, example: Sequence[Tensor], cut: bool = False
) -> list[ChannelGroup]:
    """Every group of coupled channels, in the order of execution.

    With `cut`, products of activations that sum over channels let none through: see `products`.
    Raises whatever tracing raises; `select` turns that into a reason.
    """
    import torch
    from torch import nn

    graph = _trace(module, example, cut)
    names = {layer: name for name, layer in module.named_modules()}
    names.update({p: name for name, p in module.named_parameters()})
    roots = (nn.modules.conv._ConvNd, nn.Linear, nn.RNNBase)
    found = []
    with _quiet(), torch.enable_grad():
        for group in graph.get_all_groups(root_module_types=roots):
            found.append(_as_data(graph, group, names))
    order = {name: place for place, name in enumerate(dict(module.named_modules()))}
    return sorted(found, key=lambda group: order[group.name])


def _trace(module: nn.Module, example: Sequence[Tensor], cut: bool) -> Any:
    import torch
    import torch_pruning

    module.eval()
    parameters = list(module.parameters())
    frozen = [p for p in parameters if not p.requires_grad]

    def outputs(module: nn.Module, batch: Sequence[Tensor]) -> list[Tensor]:
        with products.cut() if cut else nullcontext(list[Any]()) as told:
            made = call(module, batch)
        return [o for o in (*made, *told) if o.grad_fn is not None]

    with _quiet(), torch.enable_grad(), recurrent.opaque(module):
        for p in frozen:  # the graph is read off autograd
            p.requires_grad_(True)
        try:
            return torch_pruning.DependencyGraph().build_dependency(
                module,
                list(example),
                forward_fn=outputs,
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

    members, repeats, exact, block = [], 1, True, 1
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
        axis = getattr(item.dep.target, "pruning_dim", None) or 0
        own, root = tuple(item.idxs), tuple(item.root_idxs)
        size = _block(width, own, root)
        if size > 1:  # some of the root's channels may not have been named
            own, root = tuple(r // size for r in range(width)), tuple(range(width))
        block = max(block, size)
        members.append(Member(names[layer], side, own, root, axis))
        if isinstance(layer, nn.MultiheadAttention):
            members.append(Member(f"{names[layer]}.out_proj", side, own, root))
    name = names[group[0].dep.target.module]
    return ChannelGroup(name, width, repeats, tuple(members), exact, block)


def _block(width: int, own: Sequence[int], root: Sequence[int]) -> int:
    """How many of the root's channels next to each other are one channel of this layer."""
    count = len(set(own))
    block = width // count
    whole = block * count == width and max(own) == count - 1
    return block if whole and all(o == r // block for o, r in zip(own, root, strict=True)) else 1


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


def spread(group: ChannelGroup, units: Iterable[int]) -> list[int]:
    """Channel indices of `units`, of a group's blocks within each of its repeats."""
    size = group.width // group.repeats
    return sorted(
        repeat * size + unit * group.block + i
        for repeat in range(group.repeats)
        for unit in units
        for i in range(group.block)
    )
