"""Layers with weights: where they take channels, where they make them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from compressor.pruning.onnx_trace import Tracer
from compressor.pruning.onnx_units import Label
from exporters._onnx_graph import attribute

_COMPUTED = "has a weight that is no constant"


def _input(t: Tracer, node: Any, axis: int) -> Label | None:
    """The channels that come in at `axis`; others are frozen."""
    label = t.label(node.input[0])
    if label is not None and label.axis != axis:
        t.refuse(label, node, f"reads these channels as axis {label.axis}, not {axis}")
        return None
    return label


def _bias(t: Tracer, node: Any, port: int, ids: Any) -> bool:
    """Let the bias shrink too; False where it is computed, or no vector."""
    if len(node.input) <= port or not node.input[port]:
        return True
    bias = t.weights.get(node.input[port])
    if bias is None:
        return False
    dims = list(bias.dims)
    if not dims or dims[-1] == 1:
        return all(d == 1 for d in dims)
    if dims[-1] != len(ids) or any(d != 1 for d in dims[:-1]):
        return False
    t.cut(bias.name, len(dims) - 1, ids, node, "pass")
    return True


def _made(t: Tracer, node: Any, weight: str, axis: int, where: int, port: int = 2) -> None:
    """New channels at axis `where` of the output, from `axis` of the weight."""
    ids = t.trace.units.new(int(t.weights[weight].dims[axis]))
    t.cut(weight, axis, ids, node, "out")
    if not _bias(t, node, port, ids):
        t.trace.units.freeze(ids, node.name, f"{node.op_type} has a bias that is no constant")
    t.trace.made[node.name] = ids
    t.mark(node.output[0], where, ids)


def convolution(t: Tracer, node: Any) -> None:
    """Plain, grouped (the same offsets of each group go together) and depthwise ones."""
    label, weight = t.label(node.input[0]), t.weights.get(node.input[1])
    if weight is None:
        t.refuse(label, node, _COMPUTED)
        return
    label = _input(t, node, 1)
    groups, inputs = int(attribute(node, "group", 1)), int(weight.dims[1])
    if groups > 1 and inputs == 1:
        _depthwise(t, node, label, groups)
        return
    _made(t, node, weight.name, 0, 1)
    if groups > 1:
        made = t.trace.made[node.name].reshape(groups, -1)
        for block in made[1:]:
            t.trace.units.tie(made[0], block)
    if label is not None:
        blocks = label.ids.reshape(groups, -1)
        for block in blocks[1:]:
            t.trace.units.tie(blocks[0], block)
        t.cut(weight.name, 1, blocks[0], node, "in")


def _depthwise(t: Tracer, node: Any, label: Label | None, groups: int) -> None:
    if label is None:
        return
    weight = t.weights[node.input[1]]
    ids = np.repeat(label.ids, int(weight.dims[0]) // groups)
    t.cut(weight.name, 0, ids, node, "pass")
    if not _bias(t, node, 2, ids):
        t.refuse(label, node, "has a bias that is no constant")
    t.trace.grouped[node.name] = label.ids
    t.mark(node.output[0], 1, ids)


def transposed(t: Tracer, node: Any) -> None:
    """Ungrouped transposed convolutions."""
    label, weight = t.label(node.input[0]), t.weights.get(node.input[1])
    if weight is None:
        t.refuse(label, node, _COMPUTED)
        return
    if int(attribute(node, "group", 1)) > 1:
        t.refuse(label, node, "in groups is not followed")
        return
    label = _input(t, node, 1)
    _made(t, node, weight.name, 1, 1)
    if label is not None:
        t.cut(weight.name, 0, label.ids, node, "in")


def gemm(t: Tracer, node: Any) -> None:
    """A matrix product with a constant right side."""
    label, weight = t.label(node.input[0]), t.weights.get(node.input[1])
    if weight is None or attribute(node, "transA", 0):
        t.refuse(label, node, _COMPUTED if weight is None else "transposes its input")
        for name in node.input[1:]:
            t.refuse(t.label(name), node, _COMPUTED)
        return
    label = _input(t, node, 1)
    turned = bool(attribute(node, "transB", 0))
    _made(t, node, weight.name, 0 if turned else 1, 1)
    if label is not None:
        t.cut(weight.name, 1 if turned else 0, label.ids, node, "in")


def matmul(t: Tracer, node: Any) -> None:
    """A matrix on the right; products of two computed tensors (attention) freeze both."""
    label, weight = t.label(node.input[0]), t.weights.get(node.input[1])
    if weight is None or len(weight.dims) != 2:
        for name in node.input:
            t.refuse(t.label(name), node, "is no product with a constant matrix on its right")
        return
    last = len(t.shapes[node.output[0]]) - 1
    label = _input(t, node, last)
    _made(t, node, weight.name, 1, last)
    if label is not None:
        t.cut(weight.name, 0, label.ids, node, "in")


def recurrent(t: Tracer, node: Any) -> None:
    """Inputs of LSTM, GRU and RNN may go; hidden units stay."""
    for name in node.input[3:]:
        t.refuse(t.label(name), node, "keeps its hidden units")
    label, weight = t.label(node.input[0]), t.weights.get(node.input[1])
    if weight is None:
        t.refuse(label, node, _COMPUTED)
        return
    label = _input(t, node, 2)
    if label is not None:
        t.cut(weight.name, 2, label.ids, node, "in")


LAYERS: Mapping[str, Callable[[Tracer, Any], None]] = {
    "Conv": convolution,
    "ConvTranspose": transposed,
    "Gemm": gemm,
    "MatMul": matmul,
    "LSTM": recurrent,
    "GRU": recurrent,
    "RNN": recurrent,
}
