"""Rewrites that give an engine's integer kernels something to work on; the numbers stay the same.

ONNX Runtime has integer Conv, Add, Mul and GlobalAveragePool, but no ConvTranspose, HardSwish and
ReduceMean. Around those it would convert to float and back, which makes an 8-bit network slower
than the float one. A product of matrices with a row added becomes a Gemm: the engine makes one of
it anyway, but of the dequantized weights, and computes it in float.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from compressor.quantization.lowering_transposed import transposed
from compressor.quantization.onnx_index import Index, Names
from exporters._onnx_graph import attribute, drop_dead_weights, replace


def lower(model: Any, graph: Index, kept: set[str], *, transposed_only: bool = False) -> list[str]:
    """Rewrite what has no integer kernel in place, nodes in `kept` apart; returns their names.

    `transposed_only`: an engine that lacks ConvTranspose alone.
    """
    if transposed_only:
        kept = kept | {n.name for n in model.graph.node if n.op_type != "ConvTranspose"}
    names, nodes, done = Names(model.graph), [], []
    sums = {}
    for node in model.graph.node:
        if node.name in sums:
            continue
        made = None if node.name in kept else _lowered(node, graph, names, model.graph)
        if made is None and (row := _row_added(node, graph, kept)):
            made, sums[row.name] = [_gemm(node, row, graph)], node.name
        nodes += made or [node]
        if made:
            done.append(node.name)
    if done:
        replace(model.graph.node, nodes)
        drop_dead_weights(model.graph)
    return done


def _lowered(node: Any, graph: Index, names: Names, onto: Any) -> list[Any] | None:
    if node.op_type == "HardSwish":
        return _hard_swish(node, names)
    if node.op_type == "ReduceMean" and _is_spatial_mean(node, graph):
        return _mean(node, names, onto)
    if node.op_type == "ConvTranspose":
        return transposed(node, graph, names, onto)
    return None


def _hard_swish(node: Any, names: Names) -> list[Any]:
    import onnx

    gate = names.new("g")
    sigmoid = onnx.helper.make_node(
        "HardSigmoid",
        [node.input[0]],
        [gate],
        names.new(node.name + "/gate"),
        alpha=1 / 6,
        beta=0.5,
    )
    product = onnx.helper.make_node("Mul", [node.input[0], gate], list(node.output), node.name)
    return [sigmoid, product]


def _row_added(node: Any, graph: Index, kept: set[str]) -> Any | None:
    """The Add of a constant row behind a product of two matrices, if nothing else reads that."""
    if node.op_type != "MatMul" or node.name in kept or graph.ranks.get(node.input[0]) != 2:
        return None
    weight, add = graph.weights.get(node.input[1]), graph.only_consumer(node.output[0])
    if weight is None or len(weight.dims) != 2 or add is None or add.op_type != "Add":
        return None
    row = graph.weights.get(next((name for name in add.input if name != node.output[0]), ""))
    fits = row is not None and list(row.dims) == [weight.dims[1]]
    floats = {*node.input, node.output[0]} <= graph.floats
    return add if fits and floats and add.name not in kept else None


def _gemm(node: Any, add: Any, graph: Index) -> Any:
    import onnx

    row = next(name for name in add.input if name in graph.weights)
    return onnx.helper.make_node("Gemm", [*node.input, row], list(add.output), node.name)


def _is_spatial_mean(node: Any, graph: Index) -> bool:
    import onnx

    rank = graph.ranks.get(node.input[0])
    axes = attribute(node, "axes", None)
    if len(node.input) > 1 and node.input[1]:
        tensor = graph.weights.get(node.input[1])
        axes = None if tensor is None else onnx.numpy_helper.to_array(tensor).tolist()
    if rank not in {3, 4, 5} or axes is None or node.input[0] not in graph.floats:
        return False
    return sorted(axis % rank for axis in axes) == list(range(2, rank))


def _mean(node: Any, names: Names, onto: Any) -> list[Any]:
    import onnx

    if attribute(node, "keepdims", 1):
        return [
            onnx.helper.make_node(
                "GlobalAveragePool", [node.input[0]], list(node.output), node.name
            )
        ]
    pooled = names.new("p")
    zero = names.new("flat")
    onto.initializer.append(onnx.numpy_helper.from_array(np.array([0, -1], np.int64), zero))
    return [
        onnx.helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], node.name),
        onnx.helper.make_node(
            "Reshape", [pooled, zero], list(node.output), names.new(node.name + "/flat")
        ),
    ]
