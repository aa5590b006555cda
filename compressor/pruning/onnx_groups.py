"""Groups of channels that may lose some, what they cost, and the graph without some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compressor.pruning.costs import CostModel, Factor, Measure, Term
from compressor.pruning.graph import ChannelGroup, Member
from compressor.pruning.onnx_trace import Shape
from compressor.pruning.onnx_units import Ids, Trace, stays
from compressor.pruning.select import matches
from exporters import _onnx_macs as macs
from exporters._onnx_graph import unique
from runtimes.errors import Refusal


@dataclass(frozen=True)
class Group:
    """Channels of the same layers: unit `roots[i]` is one channel of all of them.

    `channels` is the same as the allocation wants it.
    """

    channels: ChannelGroup
    roots: tuple[int, ...]

    @property
    def name(self) -> str:
        """The first layer that makes these channels."""
        return self.channels.name


def groups(found: Trace, keep: Sequence[str]) -> tuple[list[Group], list[Refusal]]:
    """Groups that may lose channels, in the graph's order, and the others with the reason.

    `keep` are globs on the names of layers; `UsageError` where one matches none.
    """
    makers: dict[int, list[str]] = {}
    for layer, ids in found.made.items():
        for root in dict.fromkeys(found.units.roots(ids).tolist()):
            makers.setdefault(root, []).append(layer)
    kept = {name for pattern in keep for name in matches(pattern, list(found.made), "layer")}
    by_makers: dict[tuple[str, ...], list[int]] = {}
    for root, layers in makers.items():
        by_makers.setdefault(tuple(layers), []).append(root)
    usable: list[Group] = []
    refused = []
    taken: set[str] = set()
    for together, roots in by_makers.items():
        layers = list(together)
        reason = _reason(found, layers, roots, kept)
        if reason is None:
            name = unique(layers[0], taken)
            taken.add(name)
            usable.append(Group(_channels(found, name, layers, roots), tuple(roots)))
        else:
            refused.append(Refusal(layers[0], reason))
    return usable, refused


def _reason(
    found: Trace, layers: Sequence[str], roots: Sequence[int], kept: set[str]
) -> str | None:
    held = [layer for layer in layers if layer in kept]
    if held:
        return f"kept: {', '.join(held)}"
    reasons = [found.units.reasons[root] for root in roots if root in found.units.reasons]
    if reasons:
        return f"{reasons[0].where}: {reasons[0].why}"
    return None if len(roots) > 1 else "one channel"


def _channels(found: Trace, name: str, layers: Sequence[str], roots: Sequence[int]) -> ChannelGroup:
    place = {root: i for i, root in enumerate(roots)}
    members = []
    for layer in layers:
        held = found.units.roots(found.made[layer])
        own = [i for i, root in enumerate(held) if int(root) in place]
        at = tuple(place[int(held[i])] for i in own)
        members.append(Member(layer, "out", tuple(own), at))
    return ChannelGroup(name, len(roots), 1, tuple(members))


def cost_model(
    model: Any,
    found: Trace,
    wanted: Sequence[Group],
    shapes: Mapping[str, Shape],
    measure: Measure,
    samples: int,
) -> CostModel:
    """How `measure` depends on what is removed; `shapes` are those of so many `samples`."""
    by_root = {root: group for group in wanted for root in group.roots}
    factors: dict[str, dict[int, Factor]] = {}
    for cut in found.cuts:
        factors.setdefault(cut.tensor, {})[cut.axis] = _factor(found, by_root, cut.ids)
    if measure == "macs":
        return CostModel(tuple(_mac_terms(model, shapes, factors, samples)))
    terms = []
    for tensor in model.graph.initializer:
        size = len(tensor.raw_data) if measure == "bytes" else int(np.prod(tensor.dims))
        terms.append((float(size), tuple(factors.get(tensor.name, {}).values())))
    return CostModel(tuple(terms))


def _factor(found: Trace, by_root: Mapping[int, Group], ids: Ids) -> Factor:
    count: dict[str, int] = {}
    widths = {}
    for root in found.units.roots(ids):
        group = by_root.get(int(root))
        if group is not None:
            count[group.name] = count.get(group.name, 0) + 1
            widths[group.name] = group.channels.width
    each = tuple((name, number / widths[name]) for name, number in count.items())
    return Factor(len(ids), each)


def _mac_terms(
    model: Any,
    shapes: Mapping[str, Shape],
    factors: Mapping[str, Mapping[int, Factor]],
    samples: int,
) -> list[Term]:
    """A recurrent layer's hidden products do not depend on its inputs; all others are one term."""
    terms: list[Term] = []
    for node, whole in macs.by_node(model.graph, shapes):
        count = whole / samples
        on = tuple(factors.get(node.input[1], {}).values()) if len(node.input) > 1 else ()
        if node.op_type in {"LSTM", "GRU", "RNN"} and on:
            own, hidden = (float(np.prod(shapes[name])) for name in node.input[1:3])
            part = count * own / (own + hidden)
            terms += [(part, on), (count - part, ())]
        else:
            terms.append((count, on))
    return terms


def removed(model: Any, found: Trace, gone: set[int]) -> Any:
    """A copy of `model` without the units whose roots are in `gone`."""
    import onnx

    made = onnx.ModelProto()
    made.CopyFrom(model)
    weights = {t.name: t for t in made.graph.initializer}
    done: set[tuple[str, int]] = set()
    for cut in found.cuts:
        left = stays(found, cut.ids, gone)
        if left.all() or (cut.tensor, cut.axis) in done:
            continue
        done.add((cut.tensor, cut.axis))
        values = onnx.numpy_helper.to_array(weights[cut.tensor])
        values = np.ascontiguousarray(np.compress(left, values, axis=cut.axis))
        weights[cut.tensor].CopyFrom(onnx.numpy_helper.from_array(values, cut.tensor))
    for size in found.sizes:
        values = onnx.numpy_helper.to_array(weights[size.tensor]).copy()
        values[size.position] = stays(found, size.ids, gone).sum()
        weights[size.tensor].CopyFrom(onnx.numpy_helper.from_array(values, size.tensor))
    for node in made.graph.node:
        if node.name in found.grouped:
            count = int(stays(found, found.grouped[node.name], gone).sum())
            next(a for a in node.attribute if a.name == "group").i = count
    del made.graph.value_info[:]
    return made


def masked(model: Any, found: Trace, gone: set[int]) -> Any:
    """A copy of `model` in which nothing reads the units whose roots are in `gone`."""
    import onnx

    made = onnx.ModelProto()
    made.CopyFrom(model)
    weights = {t.name: t for t in made.graph.initializer}
    for cut in found.cuts:
        left = stays(found, cut.ids, gone)
        if cut.role == "in" and not left.all():
            values = onnx.numpy_helper.to_array(weights[cut.tensor]).copy()
            np.moveaxis(values, cut.axis, 0)[~left] = 0
            weights[cut.tensor].CopyFrom(onnx.numpy_helper.from_array(values, cut.tensor))
    return made
