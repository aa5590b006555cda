"""Groups that must lose equally much, though each its own channels: heads and embedding width.

Where a forward reshapes the heads' outputs to the width of its input, as nn.MultiheadAttention
does, every layer's heads and the embedding shrink together. Which heads of which layer go, and
which channels of the embedding, is each group's own matter: the least salient unit of one goes
with the least salient unit of the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from compressor.pruning.allocate import unit_scores
from compressor.pruning.graph import ChannelGroup, Member
from compressor.pruning.saliency import Saliency


def tied(
    parts: Sequence[ChannelGroup], orders: Mapping[str, Sequence[int]] | None = None
) -> ChannelGroup:
    """One group of `parts`, the first of which gives it its name and width.

    `orders` holds the units of each part in the order in which they go, by default as they lie.
    """
    width = parts[0].width // parts[0].repeats
    blocks = [width // part.units for part in parts]
    members: dict[tuple[str, str], list[Member]] = {}
    for part, block in zip(parts, blocks, strict=True):
        order = (orders or {}).get(part.name, range(part.units))
        rank = {unit: place for place, unit in enumerate(order)}
        for m in part.members:
            root = tuple(_place(part, rank, block, r) for r in m.root)
            members.setdefault((m.layer, m.side), []).append(replace(m, root=root))
    return ChannelGroup(
        parts[0].name,
        width,
        1,
        tuple(_joined(same) for same in members.values()),
        all(part.exact for part in parts),
        math.lcm(*blocks),
        tuple(parts),
    )


def _place(part: ChannelGroup, rank: Mapping[int, int], block: int, root: int) -> int:
    """Where a channel of `part` comes in the tied group's order."""
    unit, offset = divmod(root % (part.width // part.repeats), part.block)
    return rank[unit] * block + offset % block


def _joined(same: Sequence[Member]) -> Member:
    """The inside of one module, named by several parts: their sizes all go down, once."""
    sizes = dict.fromkeys(size for m in same for size in m.sizes)
    return replace(same[0], sizes=tuple(sizes))


def aligned(
    groups: Sequence[ChannelGroup], scores: Saliency
) -> tuple[list[ChannelGroup], Saliency]:
    """Tied groups with the least salient units of all their parts first, and their saliency."""
    made, found = [], dict(scores)
    for group in groups:
        if group.parts:
            values = {p.name: unit_scores(p, scores[p.name]) for p in group.parts}
            orders = {n: np.argsort(v, kind="stable").tolist() for n, v in values.items()}
            group = tied(group.parts, orders)
            total = np.zeros(group.width)
            for value in values.values():
                each = group.width // len(value)
                total += np.repeat(np.sort(value) / each, each)
            found[group.name] = total
        made.append(group)
    return made, found
