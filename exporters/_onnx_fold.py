"""Constants that are only moved about (sliced, joined, turned) are written as what they become.

torch exports the weights of a GRU or LSTM as slices of the module's own tensors, joined in ONNX's
order of gates. Engines fold that while they load; tools that look for weights do not find them.
"""

from __future__ import annotations

from typing import Any

from exporters._onnx_graph import STANDARD_DOMAINS, drop, reads, replace

_MOVES = frozenset(
    {"Concat", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose",
     "Unsqueeze"}
)  # fmt: skip
_SMALL = 4096  # bytes that may lie in the file twice


def fold_moves(model: Any) -> int:
    """Replace nodes of the main graph that only move constants by their results; returns how many.

    Nothing is folded where the file would grow: a constant that something else reads too stays.
    """
    graph = model.graph
    chosen = _chosen(graph)
    if not chosen:
        return 0
    rest = [node for node in graph.node if node.name not in chosen]
    read = {name for node in rest for name in reads(node)}
    own = [node for node in graph.node if node.name in chosen]
    wanted = [name for node in own for name in node.output if name in read]
    known = {tensor.name: tensor for tensor in graph.initializer}
    used = dict.fromkeys(name for node in own for name in node.input if name in known)
    made = _results(model, own, [known[name] for name in used], wanted)
    gone = sum(_size(known[name]) for name in used if name not in read)
    if sum(_size(tensor) for tensor in made) > gone + _SMALL:
        return 0
    replace(graph.node, rest)
    graph.initializer.extend(made)
    drop(graph.initializer, lambda tensor: tensor.name in used and tensor.name not in read)
    return len(own)


def _chosen(graph: Any) -> set[str]:
    """Names of nodes that move constants only, and no large one that others read as it is."""
    outputs = {value.name for value in graph.output}
    known = {tensor.name: _size(tensor) for tensor in graph.initializer}
    tied: set[str] = set()
    while True:
        there = {name for name in known if name not in tied}
        chosen: set[str] = set()
        for node in graph.node:
            moves = node.op_type in _MOVES and node.domain in STANDARD_DOMAINS and node.name
            inputs = [name for name in node.input if name]
            if moves and there.issuperset(inputs) and not outputs & set(node.output):
                chosen.add(node.name)
                there |= set(node.output)
        read = {n for node in graph.node if node.name not in chosen for n in reads(node)}
        moved = {n for node in graph.node if node.name in chosen for n in node.input}
        found = {n for n in moved & (read | outputs) if known.get(n, 0) > _SMALL} - tied
        if not found:
            return chosen
        tied |= found


def _results(model: Any, nodes: list[Any], weights: list[Any], wanted: list[str]) -> list[Any]:
    """The tensors `wanted`, computed by onnx's own reference."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    outputs = [onnx.helper.make_tensor_value_info(name, 1, None) for name in wanted]
    graph = onnx.helper.make_graph(nodes, "constants", [], outputs, weights)
    part = onnx.helper.make_model(
        graph, opset_imports=model.opset_import, ir_version=model.ir_version
    )
    values = ReferenceEvaluator(part).run(None, {})
    return [onnx.numpy_helper.from_array(v, n) for n, v in zip(wanted, values, strict=True)]


def _size(tensor: Any) -> int:
    import math

    import onnx

    try:
        width = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except KeyError:
        width = 8
    return int(math.prod(tensor.dims)) * int(width)
