"""Which channels of an ONNX graph go together, read off the graph itself.

From every layer the axis of its output channels is followed forward, node by node, to the weights
that read it. What a node means for channels is said by `onnx_layers` (layers with weights) and
`onnx_rules` (all others); a node nobody knows freezes the channels it reads and is named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from compressor.pruning.onnx_units import Cut, Ids, Label, Size, Trace
from exporters._onnx_graph import STANDARD_DOMAINS, opset_of, reads, subgraphs

Shape = tuple[int, ...]
_COPIED = 1 << 16  # values; smaller constants read twice get a copy for each reader


@dataclass
class Tracer:
    """A walk over the nodes; the rules write into `trace`.

    Attributes:
        weights: initializers by name.
        shapes: of every tensor, as seen on real feeds.
        opset: of the standard operators.
        trace: what was found so far.
    """

    weights: Mapping[str, Any]
    shapes: Mapping[str, Shape]
    opset: int
    trace: Trace = field(default_factory=Trace)

    def label(self, name: str) -> Label | None:
        """The channels of a tensor, if it has any."""
        return self.trace.labels.get(name)

    def mark(self, name: str, axis: int, ids: Ids) -> None:
        """Say that `axis` of a tensor holds these channels."""
        self.trace.labels[name] = Label(axis, ids)

    def refuse(self, label: Label | None, node: Any, why: str) -> None:
        """Freeze the channels of `label`, on account of `node`."""
        if label is not None:
            self.trace.units.freeze(label.ids, node.name, f"{node.op_type} {why}")

    def cut(self, tensor: str, axis: int, ids: Ids, node: Any, role: str) -> None:
        """Let an axis of a weight shrink with these units."""
        self.trace.cuts.append(Cut(tensor, axis, ids, node.name, role))

    def size(self, tensor: str, position: int, ids: Ids) -> None:
        """Let a number in a constant be the count of these units."""
        self.trace.sizes.append(Size(tensor, position, ids))


def trace(model: Any, shapes: Mapping[str, Shape]) -> Trace:
    """Follow the channels of `model` (in normal form, constants of its own for each reader).

    `shapes` are those of all its tensors, seen on feeds with more than one sample where the model
    allows that.
    """
    from compressor.pruning.onnx_layers import LAYERS
    from compressor.pruning.onnx_rules import RULES

    weights = {t.name: t for t in model.graph.initializer}
    tracer = Tracer(weights, shapes, opset_of(model))
    rules = {**RULES, **LAYERS}
    for node in model.graph.node:
        standard = node.domain in STANDARD_DOMAINS and not any(subgraphs(node))
        rule = rules.get(node.op_type) if standard else None
        if rule is not None:
            rule(tracer, node)
            continue
        for name in dict.fromkeys(reads(node)):
            tracer.refuse(tracer.label(name), node, "is not followed")
    for value in model.graph.output:
        label = tracer.label(value.name)
        if label is not None:
            tracer.trace.units.freeze(label.ids, value.name, "the model's output")
    _shared(model, tracer.trace)
    return tracer.trace


def _shared(model: Any, found: Trace) -> None:
    """A weight with several readers: its units are tied, and stay where one does not shrink it."""
    count = Counter(name for node in model.graph.node for name in reads(node))
    count.update(value.name for value in model.graph.output)
    by_axis: dict[tuple[str, int], list[Cut]] = {}
    for cut in found.cuts:
        by_axis.setdefault((cut.tensor, cut.axis), []).append(cut)
    for (tensor, _), cuts in by_axis.items():
        for other in cuts[1:]:
            found.units.tie(cuts[0].ids, other.ids)
        if len(cuts) < count[tensor]:
            why = f"weight {tensor} has another reader, which needs it whole"
            found.units.freeze(cuts[0].ids, cuts[0].node, why)


def own_constants(model: Any) -> dict[str, str]:
    """Give every reader of a small constant a copy of its own, in place; copy → original."""
    import onnx

    weights = {t.name: t for t in model.graph.initializer}
    small = {n for n, t in weights.items() if _small(t.dims)}
    seen: set[str] = set()
    copies: dict[str, str] = {}
    for node in model.graph.node:
        for port, name in enumerate(node.input):
            if name not in small:
                continue
            if name in seen:
                made = onnx.TensorProto()
                made.CopyFrom(weights[name])
                made.name = f"{name}//{node.name}//{port}"
                copies[made.name] = name
                model.graph.initializer.append(made)
                node.input[port] = made.name
            seen.add(name)
    return copies


def _small(dims: Sequence[int]) -> bool:
    wide = [int(d) for d in dims if d != 1]
    return len(wide) <= 1 and (not wide or wide[0] <= _COPIED)


def join_constants(model: Any, copies: Mapping[str, str]) -> None:
    """Undo `own_constants` where a copy still equals its original, in place."""
    from exporters._onnx_graph import drop, unique

    weights = {t.name: t for t in model.graph.initializer}
    taken = {n for node in model.graph.node for n in (*node.input, *node.output)}
    taken |= set(weights) - set(copies)
    first: dict[tuple[str, bytes, Shape], str] = {}
    renamed: dict[str, str] = {}
    gone: set[str] = set()
    for name in [*dict.fromkeys(copies.values()), *copies]:
        if name not in weights:
            continue
        tensor = weights[name]
        key = (copies.get(name, name), tensor.raw_data, tuple(tensor.dims))
        kept = first.setdefault(key, name)
        if kept != name:
            renamed[name] = kept
            gone.add(name)
        elif name in copies:
            renamed[name] = unique(copies[name], taken)
            taken.add(renamed[name])
    renamed = {name: renamed.get(to, to) for name, to in renamed.items()}
    drop(model.graph.initializer, lambda tensor: tensor.name in gone)
    for tensor in model.graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    for node in model.graph.node:
        for port, name in enumerate(node.input):
            node.input[port] = renamed.get(name, name)
