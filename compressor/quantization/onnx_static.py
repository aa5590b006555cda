"""Post-training INT8 of an ONNX graph: calibrate, place, write; no torch, no NNCF."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from compressor.quantization import smooth
from compressor.quantization.calibration import Statistics, calibrate, channels
from compressor.quantization.conformance import onnx_violations, require_conforming
from compressor.quantization.keep import Named, exactly, kept
from compressor.quantization.lowering import lower
from compressor.quantization.onnx_branches import (
    as_model,
    branch_feeds,
    branches,
    layers_in,
    loops,
    never_taken,
    write_back,
)
from compressor.quantization.onnx_index import Index, Names, index
from compressor.quantization.onnx_weights import dequantize, quantize_weight
from compressor.quantization.placement import Placement, place
from compressor.quantization.placement_explicit import place_explicit
from compressor.quantization.qdq import write_qdq
from exporters._onnx_graph import graphs, output_axis
from exporters.base import Keep, QuantScheme
from runtimes.base import Feeds

_WITH_BIAS = frozenset({"Conv", "Gemm"})  # whose mean outputs are known from their mean inputs
SMOOTHING_BATCHES = 8  # the largest values of a channel show early, and only their ratios count


@dataclass(frozen=True)
class Quantized:
    """A quantized `onnx.ModelProto`, what was decided for each node, and what was observed."""

    model: Any
    plan: Placement
    statistics: Statistics
    ops: Mapping[str, str]
    smoothed: Sequence[smooth.Smoothed] = ()

    def with_body(self, other: Quantized) -> Quantized:
        """With what was decided for the nodes of a branch."""
        plan = self.plan
        plan.reasons.update(other.plan.reasons)
        plan.weights.update(other.plan.weights)
        plan.integer += other.plan.integer
        return replace(self, ops={**self.ops, **other.ops})


def named_nodes(model: Any, *, nested: bool = False) -> list[Named]:
    """The nodes of the main graph, or all, with every name a keep pattern may use."""
    scopes = list(graphs(model.graph)) if nested else [model.graph]
    weights = {tensor.name for graph in scopes for tensor in graph.initializer}
    return [
        Named(n.name, (n.op_type,), (*n.output, *(name for name in n.input if name in weights)))
        for graph in scopes
        for n in graph.node
    ]


def planned(model: Any, scheme: QuantScheme, keep: Keep) -> tuple[Any, Index, Placement]:
    """`model` itself, lowered in place, its index, and the placement for it."""
    stay = kept(named_nodes(model, nested=True), keep)
    lower(model, index(model), set(stay), transposed_only=scheme.explicit)
    graph = index(model)
    return model, graph, _placed(graph, scheme, stay)


def _placed(graph: Index, scheme: QuantScheme, stay: Mapping[str, str]) -> Placement:
    return (place_explicit if scheme.explicit else place)(graph, scheme, stay)


def quantize(
    model: Any,
    scheme: QuantScheme,
    keep: Keep,
    data: Callable[[], Iterator[Feeds]],
    *,
    method: str = "minmax",
    bias_correction: bool = True,
    smoothing: bool = True,
    threads: int = 1,
    told: Callable[[int], None] | None = None,
    said: Callable[[str], None] | None = None,
) -> Quantized:
    """`model` with Q/DQ pairs and 8-bit weights, after `scheme`; it is changed in place."""
    inner, left = _quantize_branches(model, scheme, keep, data, method, bias_correction, threads)
    _, graph, plan = planned(model, scheme, keep)
    smoothed = smooth_outliers(model, graph, plan, scheme, data, threads) if smoothing else []
    if smoothed:
        graph = index(model)
        plan = _placed(graph, scheme, kept(named_nodes(model, nested=True), keep))
    ops = {node.name: node.op_type for node in model.graph.node}
    wanted = [
        root for root in dict.fromkeys(plan.roots.values()) if root not in _fixed(graph, plan)
    ]
    axes = mean_axes(graph, plan.weights) if bias_correction else {}
    found = calibrate(
        model, wanted, axes, data, method=method, threads=threads, told=told, said=said
    )
    if bias_correction:
        errors = rounding_errors(graph, plan.weights, scheme)
        correct_biases(model, graph, errors, found.means)
    write_qdq(model, graph, plan, found.ranges, scheme)
    made = Quantized(model, plan, found, ops, smoothed)
    for part in inner:
        made = made.with_body(part)
    plan.reasons.update(left)
    return replace(made, ops={**made.ops, **layers_in(model.graph)})


def _quantize_branches(
    model: Any,
    scheme: QuantScheme,
    keep: Keep,
    data: Callable[[], Iterator[Feeds]],
    method: str,
    bias_correction: bool,
    threads: int,
) -> tuple[list[Quantized], dict[str, str]]:
    """Quantize branches of `model` in place; what was decided, and why layers in others are float.

    All of them see the float model: a branch is written when the last one has been calibrated.
    """
    left, made = loops(model), []
    for branch in branches(model):
        feeds = branch_feeds(model, branch, data, threads)
        first = next(feeds(), None)
        if first is None:
            left |= never_taken(branch)
            continue
        stay = kept(named_nodes(model, nested=True), keep)
        own = {name for graph in graphs(branch.graph) for name in (n.name for n in graph.node)}
        keeps = Keep(float=tuple(exactly(name) for name in stay if name in own))
        done = quantize(
            as_model(model, branch, first), scheme, keeps, feeds,
            method=method, bias_correction=bias_correction, smoothing=False, threads=threads,
        )  # fmt: skip
        require_conforming(
            onnx_violations(done.model, scheme, done.plan.reasons), "quantize_static"
        )
        made.append((branch, done))
    for branch, done in made:
        write_back(model, branch, done.model)
    return [done for _, done in made], left


def smooth_outliers(
    model: Any,
    graph: Index,
    plan: Placement,
    scheme: QuantScheme,
    data: Callable[[], Iterator[Feeds]],
    threads: int = 1,
) -> list[smooth.Smoothed]:
    """SmoothQuant in place, from the first few batches; returns what was changed."""
    tensors = {name: graph.ranks[name] for name in smooth.groups(graph, plan)}
    if not tensors:
        return []
    few = lambda: islice(data(), SMOOTHING_BATCHES)  # noqa: E731
    seen = channels(model, tensors, few, threads)
    return smooth.smooth(model, graph, plan, seen, scheme.weight_limit)


def _fixed(graph: Index, plan: Placement) -> set[str]:
    gates = set(plan.gates)
    return {n.output[0] for n in graph.graph.node if n.name in gates}


def mean_axes(graph: Index, layers: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Layer input → axes to average over, for layers whose bias can be corrected."""
    axes = {}
    for node in graph.graph.node:
        rank = graph.ranks.get(node.input[0]) if node.name in layers else None
        if rank is not None and node.op_type in _WITH_BIAS:
            axes[node.input[0]] = tuple(i for i in range(rank) if i != 1)
    return axes


def rounding_errors(
    graph: Index, layers: Mapping[str, str], scheme: QuantScheme
) -> dict[str, Callable[[], Any]]:
    """Layer → what gives its weight minus what that will be rounded to."""
    return {
        node.name: partial(_rounding_error, node, graph.weights[layers[node.name]], scheme)
        for node in graph.graph.node
        if node.name in layers
    }


def _rounding_error(node: Any, tensor: Any, scheme: QuantScheme) -> Any:
    import onnx

    weight = onnx.numpy_helper.to_array(tensor)
    axis = output_axis(node, weight.ndim) if scheme.weight_per_channel else None
    return weight - dequantize(*quantize_weight(weight, axis, scheme), axis)


def correct_biases(
    model: Any,
    graph: Index,
    errors: Mapping[str, Callable[[], Any]],
    means: Mapping[str, Any],
) -> list[str]:
    """Add to each Conv's and Gemm's bias what rounding its weight takes from its mean output.

    Expectation over the layer's mean input, as in fast bias correction (Nagel et al., "Data-Free
    Quantization", 2019; NNCF); borders of a padded Conv are taken as if they were inside. `errors`
    gives, by node, the weight minus what it is rounded to: one of them is held at a time. Returns
    the nodes changed.
    """
    names, changed = Names(model.graph), []
    for node in model.graph.node:
        mean = (
            means.get(node.input[0]) if node.name in errors and node.op_type in _WITH_BIAS else None
        )
        if mean is None:
            continue
        lost = mean_lost(node, errors[node.name](), np.asarray(mean))
        if _add_to_bias(model.graph, graph, names, node, lost):
            changed.append(node.name)
    return changed


def mean_lost(node: Any, error: Any, mean: Any) -> Any:
    """What the error of a weight takes from the mean of each output channel."""
    if node.op_type == "Gemm":
        return (error if output_axis(node, 2) == 0 else error.T) @ mean
    taps = error.reshape(error.shape[0], error.shape[1], -1).sum(axis=2)
    group = len(mean) // taps.shape[1]
    rows = len(taps) // group
    parts = mean.reshape(group, -1).repeat(rows, axis=0)
    return (taps * parts).sum(axis=1)


def _add_to_bias(onto: Any, graph: Index, names: Names, node: Any, lost: Any) -> bool:
    import onnx

    old = node.input[2] if len(node.input) > 2 else ""
    if old and (old not in graph.weights or len(graph.weights[old].dims) != 1):
        return False
    before = onnx.numpy_helper.to_array(graph.weights[old]) if old else np.zeros(1)
    made = onnx.numpy_helper.from_array((before + lost).astype(np.float32), names.new(old or "b"))
    onto.initializer.append(made)
    del node.input[2:]
    node.input.append(made.name)
    return True
