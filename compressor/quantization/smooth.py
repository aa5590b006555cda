"""SmoothQuant for ONNX graphs: activations with outlier channels lend their range to the weights.

A product reads x/s and its weight becomes s·w: the same numbers, but no channel of x stretches the
scale that all of them share (Xiao et al., "SmoothQuant", 2023). The factors go into whatever makes
x (LayerNormalization, a Mul and Add with constants, another product); where something else reads x
too, a Mul is inserted before the products, if that pays.

How far to go (alpha) is chosen for each group of products by the rounding noise that 8 bits will
leave in their outputs, estimated from statistics of each channel. No activations are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compressor.quantization.calibration import ChannelStatistics
from compressor.quantization.onnx_index import Index, Names
from compressor.quantization.placement import Placement
from exporters._onnx_graph import attribute, output_axis, replace

_ALPHAS = np.linspace(0.0, 1.0, 21)
_COLUMNS = 4096
_LARGEST = 1e4  # of a factor over the geometric mean of all
FOLDED_GAIN = 2.0  # of the noise's power; the estimate is not better than that
INSERTED_GAIN, INSERTED_NOISE = 4.0, 1e-4  # a Mul costs a few percent of its product's time
SMOOTHED = frozenset({"MatMul", "Gemm"})


@dataclass(frozen=True)
class Smoothed:
    """What was done to the products that read `tensor`."""

    tensor: str
    layers: tuple[str, ...]
    alpha: float
    gain_db: float
    inserted: bool


def groups(graph: Index, plan: Placement) -> dict[str, list[Any]]:
    """Float tensor with channels last → the integer products that read it."""
    found: dict[str, list[Any]] = {}
    for node in graph.graph.node:
        if node.op_type not in SMOOTHED or node.name not in plan.weights:
            continue
        weight, source = plan.weights[node.name], node.input[0]
        if source in plan.made_here and not _chain(graph, source):
            continue  # it is in integers already: its outliers were rounded before
        if len(graph.weights[weight].dims) == 2 and graph.ranks.get(source, 0) >= 2:
            found.setdefault(source, []).append(node)
    return {name: nodes for name, nodes in found.items() if _own_weights(graph, nodes)}


def _own_weights(graph: Index, nodes: list[Any]) -> bool:
    names = {node.name for node in nodes}
    readers = [reader for node in nodes for reader in graph.consumers[node.input[1]]]
    return all(reader.name in names for reader in readers)


def smooth(
    model: Any,
    graph: Index,
    plan: Placement,
    statistics: Mapping[str, ChannelStatistics],
    limit: int = 127,
) -> list[Smoothed]:
    """Rewrite `model` (which `graph` indexes) in place; the graph must be indexed again after it.

    `statistics` are of the tensors that `groups` names, `limit` is the largest integer of a weight.
    """
    names, done, muls = Names(model.graph), [], {}
    for tensor, nodes in groups(graph, plan).items():
        weights = [_rows(graph, node) for node in nodes]
        seen = statistics[tensor]
        if any(weight.shape[0] != len(seen.low) for weight in weights):
            continue
        whole = weights[0] if len(weights) == 1 else np.concatenate(weights, axis=1)
        alpha, factors, before, after = best_factors(seen, whole, limit)
        edits = _foldable(graph, tensor, nodes)
        gain = before / max(after, 1e-30)
        if edits is None and (gain < INSERTED_GAIN or before < INSERTED_NOISE):
            continue
        if edits is not None and gain < FOLDED_GAIN:
            continue
        if edits is None:
            muls[tensor] = _multiply(model.graph, names, tensor, nodes, factors)
        for name, axis in (edits or {}).items():
            _scale(graph, name, 1 / factors, axis)
        for name, node in {node.input[1]: node for node in nodes}.items():
            _scale(graph, name, factors, _input_axis(node))
        layers = tuple(node.name for node in nodes)
        done.append(Smoothed(tensor, layers, alpha, 10 * np.log10(gain), edits is None))
    if muls:
        _insert(model.graph, muls)
    return done


def _rows(graph: Index, node: Any) -> Any:
    """The weight of `node` as [inputs, outputs]."""
    import onnx

    weight = onnx.numpy_helper.to_array(graph.weights[node.input[1]])
    return weight if _input_axis(node) == 0 else weight.T


def _input_axis(node: Any) -> int:
    return 1 - output_axis(node, 2)


def note(done: Sequence[Smoothed]) -> list[str]:
    """One sentence for the user, or none."""
    if not done:
        return []
    layers = sum(len(group.layers) for group in done)
    inserted = sum(group.inserted for group in done)
    more = f", {inserted} by an added product" if inserted else ""
    best = max(group.gain_db for group in done)
    return [f"SmoothQuant on {layers} layers{more}: outlier channels cost them up to {best:.0f} dB"]


def best_factors(
    seen: ChannelStatistics, weight: Any, limit: int
) -> tuple[float, Any, float, float]:
    """(alpha, factors, noise before, noise after), noise as a share of the output's power.

    `weight` is [inputs, outputs], `limit` its largest integer.
    """
    magnitude = np.abs(weight)
    peak_x = np.maximum(np.abs(seen.low), np.abs(seen.high))
    peak_w = magnitude.max(axis=1)
    alive = (peak_x > 0) & (peak_w > 0)
    energy = sum((part.astype(np.float64) ** 2).sum(axis=1) for part in _blocks(weight))
    signal = float(seen.square @ energy) or 1.0
    plain = np.ones(len(peak_x), np.float32)
    before = _noise(seen, magnitude, energy, plain, limit) / signal
    best = (0.0, plain, before, before)
    if not alive.any():
        return best
    for alpha in _ALPHAS:
        for beta in {float(1 - alpha), 0.0}:
            raw = np.ones(len(peak_x))
            raw[alive] = peak_x[alive] ** alpha / peak_w[alive] ** beta
            raw[alive] /= np.exp(np.log(raw[alive]).mean())
            factors = np.clip(raw, 1 / _LARGEST, _LARGEST).astype(np.float32)
            after = _noise(seen, magnitude, energy, factors, limit) / signal
            if after < best[3]:
                best = (float(alpha), factors, before, after)
    return best


def _noise(seen: ChannelStatistics, magnitude: Any, energy: Any, factors: Any, limit: int) -> float:
    """Power that rounding x/s and s·w to 8 bits adds to the products, their channels unrelated.

    A value below half a step is lost, not rounded: its noise is its own power at most.
    """
    s = factors.astype(np.float64)
    high, low = max(0.0, (seen.high / s).max()), min(0.0, (seen.low / s).min())
    step = (high - low) / 255
    of_inputs = np.minimum(step**2 / 12, seen.square / s**2) @ (s**2 * energy)
    peaks = [(part * factors[:, None]).max(axis=0) for part in _blocks(magnitude)]
    steps = np.concatenate(peaks).astype(np.float64) / limit
    of_weights = float((steps**2).sum()) / 12 * float((seen.square / s**2).sum())
    return float(of_inputs) + of_weights


def _blocks(weight: Any) -> list[Any]:
    """Some columns at a time: what is computed from a whole vocabulary's weight is large."""
    return [weight[:, i : i + _COLUMNS] for i in range(0, weight.shape[1], _COLUMNS)]


def _foldable(graph: Index, tensor: str, nodes: list[Any]) -> dict[str, int] | None:
    """Initializer → its channel axis, for all that scaling `tensor` at its source means."""
    readers = {node.name for node in graph.consumers.get(tensor, [])}
    if tensor in graph.outputs or readers != {node.name for node in nodes}:
        return None
    return _chain(graph, tensor)


def _chain(graph: Index, tensor: str) -> dict[str, int] | None:
    edits: dict[str, int] = {}
    while True:
        node = graph.producers.get(tensor)
        if node is None or any(node.output[1:]):
            return None
        constants = [name for name in node.input if name in graph.weights]
        if any(len(graph.consumers[name]) > 1 or name in edits for name in constants):
            return None
        if node.op_type == "LayerNormalization":
            last = attribute(node, "axis", -1) in {-1, graph.ranks.get(tensor, 0) - 1}
            plain = last and len(constants) == len(node.input) - 1
            return {**edits, **dict.fromkeys(constants, -1)} if plain else None
        if node.op_type in {"MatMul", "Gemm"} and node.input[1] in constants:
            return _of_product(graph, node, constants, edits)
        if node.op_type in {"Add", "Mul"} and len(constants) == 1:
            if not _is_row(graph, constants[0], tensor):
                return None
            edits[constants[0]] = -1
        elif node.op_type != "Relu":
            return None
        if node.op_type == "Mul":
            return edits
        tensor = next(name for name in node.input if name not in graph.weights)
        if graph.only_consumer(tensor) is None:
            return None


def _of_product(
    graph: Index, node: Any, constants: list[str], edits: dict[str, int]
) -> dict[str, int] | None:
    weight, *rest = constants
    if len(graph.weights[weight].dims) != 2 or len(rest) != len(node.input) - 2:
        return None
    if any(len(graph.weights[name].dims) != 1 for name in rest):
        return None
    return {**edits, weight: output_axis(node, 2), **dict.fromkeys(rest, -1)}


def _is_row(graph: Index, constant: str, tensor: str) -> bool:
    """Whether `constant` holds one value for each channel of `tensor`, whose rank it leaves."""
    dims = list(graph.weights[constant].dims)
    shape = [d for d in dims if d != 1]
    return len(shape) == 1 and dims[-1] == shape[0] and len(dims) <= graph.ranks.get(tensor, 0)


def _scale(graph: Index, name: str, factors: Any, axis: int) -> None:
    import onnx

    tensor = graph.weights[name]
    values = onnx.numpy_helper.to_array(tensor)
    shape = [1] * values.ndim
    shape[axis] = -1
    scaled = (values * factors.reshape(shape)).astype(values.dtype)
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(scaled), name))


def _multiply(onto: Any, names: Names, tensor: str, nodes: list[Any], factors: Any) -> Any:
    """A Mul by 1/s that `nodes` read instead of `tensor`."""
    import onnx

    constant, made = names.new("smooth"), names.new(tensor + "/smooth")
    onto.initializer.append(
        onnx.numpy_helper.from_array((1 / factors).astype(np.float32), constant)
    )
    for node in nodes:
        node.input[0] = made
    return onnx.helper.make_node("Mul", [tensor, constant], [made], names.new(made))


def _insert(graph: Any, muls: Mapping[str, Any]) -> None:
    """Put each Mul in front of the first node that reads it."""
    waiting = {mul.output[0]: mul for mul in muls.values()}
    nodes: list[Any] = []
    for node in graph.node:
        nodes += [waiting.pop(name) for name in node.input if name in waiting]
        nodes.append(node)
    replace(graph.node, nodes)
