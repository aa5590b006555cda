"""Groups behind a reshape whose constants the module keeps in its attributes: attention heads.

A forward that says `view(batch, steps, self.heads, self.size)` can lose whole heads if `heads`
goes down with them; which attributes those are is found by running the module. A hypothesis is
how many channels go together, in which order a fused projection holds them, and which integers
go down; it holds where `trial` finds that what is left computes what it did with the heads zeroed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice, product
from typing import TYPE_CHECKING, Any

from compressor.pruning.graph import ChannelGroup, Member
from compressor.pruning.tie import tied

if TYPE_CHECKING:
    from torch import nn

Number = tuple[str, str, int | None]  # module, attribute, place where it is a tuple
Check = Callable[[Sequence[ChannelGroup]], Any]  # None where the groups can lose one unit
_MOST = 200  # trials
_CHANGED = 3  # attributes at once


@dataclass(frozen=True)
class Found:
    """What was found.

    Attributes:
        groups: those that can be pruned.
        tried: given ones whose layers look like attention, found or not.
    """

    groups: list[ChannelGroup]
    tried: frozenset[str]


def resolve(module: nn.Module, failed: Sequence[ChannelGroup], check: Check) -> Found:
    """What of the groups `failed`, which cannot shrink as they are, can do so in blocks.

    Each by itself first, layers of the same kind alike; what is left together with the group that
    it reads from: heads with the embedding.
    """
    made: list[ChannelGroup] = []
    kinds: dict[Any, list[list[ChannelGroup]]] = {}
    tried = {g.name for g in failed if _like_attention(_projections(module, g))}
    for group in failed:
        found = [v for v in _variants(module, group) if v != group]
        kinds.setdefault(_kind(module, group, len(found)), []).append(found)
    for lists in kinds.values():
        alike = next((list(v) for v in zip(*lists, strict=True) if check(v) is None), [])
        made += alike
    done = {g.name for g in made}
    for stream in failed:
        rest = [g for g in failed if g.name not in done]
        if stream in rest:
            tie = _tied(module, stream, [g for g in rest if g is not stream], check)
            made += [tie] if tie else []
            done |= {part.name for part in tie.parts} if tie else set()
    return Found(made, frozenset(tried))


def _kind(module: nn.Module, group: ChannelGroup, count: int) -> Any:
    holder = module.get_submodule(group.name.rpartition(".")[0])
    return type(holder), group.width, count


def _tied(
    module: nn.Module, stream: ChannelGroup, others: Sequence[ChannelGroup], check: Check
) -> ChannelGroup | None:
    """`stream` and the heads that read from it, as one group."""
    from torch import nn

    layers = dict(module.named_modules())
    read = {m.layer for m in stream.members if m.side == "in"}
    native = [m.layer for m in stream.members if m.side == "out"
              and isinstance(layers.get(m.layer), nn.MultiheadAttention)]  # fmt: skip
    kinds: dict[Any, list[list[ChannelGroup]]] = {}
    for name in dict.fromkeys(native):
        kinds.setdefault("native", []).append([_native(name, layers[name])])
    for group in others:
        if set(group.producers) & read:
            found = [v for v in _variants(module, group) if v.block > 1]
            kinds.setdefault(_kind(module, group, len(found)), []).append(found)
    if not kinds or stream.repeats > 1:
        return None
    heads = product(*(list(zip(*lists, strict=True)) for lists in kinds.values()))
    for choice in islice(heads, _MOST):
        parts = [part for kind in choice for part in kind]
        if any(stream.width % part.units for part in parts):
            continue
        for own in islice(_sized(module, stream, {stream.width}), _MOST):
            group = tied([own, *parts])
            if check([group]) is None:
                return group
    return None


def _native(name: str, layer: Any) -> ChannelGroup:
    """The heads of an nn.MultiheadAttention."""
    every = tuple(range(layer.embed_dim))
    members = (
        Member(name, "inner", every, every, sizes=(("num_heads", None),)),
        Member(f"{name}.out_proj", "in", every, every),
    )
    return ChannelGroup(name, layer.embed_dim, 1, members, block=layer.embed_dim // layer.num_heads)


def _variants(module: nn.Module, group: ChannelGroup) -> Iterator[ChannelGroup]:
    """Every hypothesis about `group`, the likeliest first."""
    yield from _sized(module, group, {group.width, group.units})
    for base, numbers in _attentions(module, group):
        yield from _sized(module, base, numbers)


def _sized(module: nn.Module, group: ChannelGroup, numbers: set[int]) -> Iterator[ChannelGroup]:
    """`group`, with any few integers of the modules around it that are one of `numbers`.

    Modules of one class change alike.
    """
    alike: dict[Any, list[Number]] = {}
    for holder in _holders(module, group):
        layer = module.get_submodule(holder)
        for attribute, place, value in _integers(layer):
            if value in numbers and value > 1:
                key = (type(layer), attribute, place)
                alike.setdefault(key, []).append((holder, attribute, place))
    for count in range(min(_CHANGED, len(alike)) + 1):
        for chosen in combinations(alike.values(), count):
            yield _with(group, [number for some in chosen for number in some])


def _with(group: ChannelGroup, numbers: Sequence[Number]) -> ChannelGroup:
    root = tuple(range(group.width))
    members = list(group.members)
    for holder, attribute, place in numbers:
        size = (attribute, place)
        same = [i for i, m in enumerate(members) if (m.layer, m.side) == (holder, "inner")]
        if same:
            old = members[same[0]]
            members[same[0]] = replace(old, sizes=(*old.sizes, size))
        else:
            members.append(Member(holder, "inner", root, root, sizes=(size,)))
    return replace(group, members=tuple(members))


def _holders(module: nn.Module, group: ChannelGroup) -> list[str]:
    """The modules around the group's layers, nearest first, and those without any weights."""
    layers = {m.layer for m in group.members if m.side != "inner"}
    around = {
        ".".join(path[:end])
        for path in (m.layer.split(".") for m in group.members if m.side != "tensor")
        for end in range(len(path))
    }
    bare = {n for n, m in module.named_modules() if not any(m.children()) and not _weighty(m)}
    return sorted((around | bare) - layers, key=lambda name: (-name.count("."), name))


def _weighty(layer: nn.Module) -> bool:
    return any(True for _ in layer.parameters())


def _integers(layer: Any) -> Iterator[tuple[str, int | None, int]]:
    for attribute, value in vars(layer).items():
        if attribute.startswith("_"):
            continue
        if isinstance(value, int) and not isinstance(value, bool):
            yield attribute, None, value
        elif isinstance(value, tuple) and all(type(v) is int for v in value):
            yield from ((attribute, place, v) for place, v in enumerate(value))


def _attentions(module: nn.Module, group: ChannelGroup) -> Iterator[tuple[ChannelGroup, set[int]]]:
    """`group` as projections into heads and one out of them; the integers that could say so."""
    shapes = _projections(module, group)
    if shapes is None:
        return
    producers, consumer, inner = shapes
    owner = producers[0].layer.rpartition(".")[0]
    near = [value for holder in _holders(module, group)
            for _, _, value in _integers(module.get_submodule(holder))]  # fmt: skip
    counts = dict.fromkeys(c for v in near if v > 1 and inner % v == 0 for c in (v, inner // v))
    fused = max(len(p.own) for p in producers) // inner
    for heads in (c for c in counts if 1 < c < inner):
        size = inner // heads
        for order in ("parts", "heads") if fused > 1 else ("parts",):
            width = inner * fused
            repeats, block = (fused, size) if order == "parts" else (1, size * fused)

            def root(i: int, length: int, *, order: str = order, size: int = size) -> int:
                if order == "parts" or length > inner:
                    return i
                return i // size * size * fused + i % size

            members = [Member(owner, "inner", *_both(inner, root))]
            for m, length in [(p, len(p.own)) for p in producers] + [(consumer, inner)]:
                members.append(Member(m.layer, m.side, *_both(length, root)))
            base = ChannelGroup(group.name, width, repeats, tuple(members), group.exact, block)
            yield base, {heads, *(inner * n for n in range(1, fused + 1))}


def _both(length: int, root: Callable[[int, int], int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(range(length)), tuple(root(i, length) for i in range(length))


def _projections(module: nn.Module, group: ChannelGroup) -> tuple[list[Member], Member, int] | None:
    """(projections whose outputs are heads, the layer that reads them, its inputs), or None."""
    from torch import nn

    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    layers = {m.layer: module.get_submodule(m.layer) for m in group.members if m.side != "tensor"}
    made = [m for m in group.members if m.side == "out" and isinstance(layers[m.layer], kinds)]
    read = [m for m in group.members if m.side == "in" and isinstance(layers[m.layer], kinds)]
    if len({m.layer for m in read}) != 1 or not made:
        return None
    inner = int(layers[read[0].layer].weight.shape[1])
    every = {m.layer: Member(m.layer, "out", *_same(layers[m.layer].weight.shape[0])) for m in made}
    if any(len(m.own) % inner or len(m.own) > 3 * inner for m in every.values()):
        return None
    return list(every.values()), read[0], inner


def _like_attention(found: tuple[list[Member], Member, int] | None) -> bool:
    """Queries, keys and values for each channel that is read."""
    return found is not None and sum(len(m.own) for m in found[0]) == 3 * found[2]


def _same(length: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(range(length)), tuple(range(length))
