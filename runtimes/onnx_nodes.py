"""Node names of an ONNX file, read without the onnx package, and what an engine fused of them.

ONNX Runtime names an executed kernel after the source's node (`conv0`, `conv0_token_15`,
`conv0_quant`) or after the tensor it writes (`relu0_out_nchwc`), and says nothing of the nodes
that went into it. The source's own graph does.
"""

from __future__ import annotations

import mmap
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence, Set, Tuple

from runtimes.base import LayerPrecision
from runtimes.wire import fields

_SUFFIX = re.compile(r"(_token_\d+|_nchwc|_quant|_fused|_transposed|_nhwc|_weights?_prepacked)$")
_GLUE = frozenset({"QuantizeLinear", "DequantizeLinear", "Constant", "Identity", "Cast"})
_OPENVINO_OPS = {
    "Convolution": ("Conv",),
    "Deconvolution": ("ConvTranspose",),
    "FullyConnected": ("Gemm", "MatMul"),
}


@dataclass(frozen=True)
class Node:
    """A node of the source's main graph."""

    name: str
    op: str
    inputs: Tuple[str, ...]
    outputs: Tuple[str, ...]


def read_nodes(path: Path) -> List[Node]:
    """The nodes of a model file's main graph; empty where the file is no readable ONNX model."""
    if path.suffix != ".onnx":
        return []
    with path.open("rb") as file:
        try:  # mapped, so that weights are never read
            whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            graphs = list(_messages(whole, 0, len(whole), (7,)))
            nodes = [node for _, a, b in graphs for node in _messages(whole, a, b, (1,))]
            return [_node(whole, a, b) for _, a, b in nodes]
        except (ValueError, IndexError, UnicodeDecodeError):
            return []


def merge_layers(layers: Sequence[LayerPrecision], nodes: Sequence[Node]) -> List[LayerPrecision]:
    """`layers` with `layer` and `layers` in the source's node names wherever they can be told."""
    graph = _Graph(nodes)
    anchors = [graph.anchor(layer.layer) for layer in layers]
    taken = {node.name for node in anchors if node}
    fused: List[List[str]] = []
    for layer, anchor in zip(layers, anchors):
        fused.append(graph.upstream(anchor, layer.op, taken) if anchor else [])
    # last first: a sum of two branches runs inside the branch that is computed later
    for names, anchor in reversed(list(zip(fused, anchors))):
        if anchor:
            names.extend(graph.downstream(anchor, taken))
    return [_renamed(layer, names) for layer, names in zip(layers, fused)]


def add_folded(layers: Sequence[LayerPrecision], nodes: Sequence[Node]) -> List[LayerPrecision]:
    """`layers` whose own names are right but lack the node that computes.

    An engine that folds a batch-norm into the convolution before it may call both by the
    batch-norm's name.
    """
    graph = _Graph(nodes)
    taken = {name for layer in layers for name in layer.layers}
    return [graph.with_folded(layer, taken) for layer in layers]


def _renamed(layer: LayerPrecision, names: List[str]) -> LayerPrecision:
    if not names:
        return replace(layer, layers=())
    return replace(layer, layer=names[0], layers=tuple(names))


class _Graph:
    """Who makes and who reads each tensor."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.by_name = {node.name: node for node in nodes if node.name}
        self.maker = {name: node for node in nodes for name in node.outputs if name}
        self.readers: Dict[str, List[Node]] = {}
        for node in nodes:
            for name in node.inputs:
                self.readers.setdefault(name, []).append(node)

    def anchor(self, name: str) -> Optional[Node]:
        """The source node an engine's name stands for: by node name, else by output tensor."""
        while True:
            found = self.by_name.get(name) or self.maker.get(name)
            shorter = _SUFFIX.sub("", name)
            if found or shorter == name:
                return found
            name = shorter

    def upstream(self, anchor: Node, op: str, taken: Set[str]) -> List[str]:
        """The node that computes (of the engine's `op`) first, then those down to `anchor`."""
        path, node = [anchor], anchor
        while not _same_op(node.op, op):
            before = [self.maker[t] for t in node.inputs if t in self.maker]
            free = [n for n in before if n.name and n.name not in taken]
            if not free:
                return [anchor.name]
            node = free[0]
            path.append(node)
        taken.update(n.name for n in path)
        return [n.name for n in reversed(path) if n.op not in _GLUE or n is anchor]

    def with_folded(self, layer: LayerPrecision, taken: Set[str]) -> LayerPrecision:
        """The layer with the node of its op in front, where only later nodes are named."""
        known = [self.by_name[name] for name in layer.layers if name in self.by_name]
        if not known or any(_same_op(node.op, layer.op) for node in known):
            return layer
        path = self.upstream(known[0], layer.op, taken)
        return _renamed(layer, [*path[:-1], *(name for name in layer.layers)])

    def downstream(self, anchor: Node, taken: Set[str]) -> Iterator[str]:
        """Nodes after `anchor` that no kernel is named after: they run inside it."""
        readers = [node for t in anchor.outputs for node in self.readers.get(t, [])]
        for node in readers:
            if node.name and node.name not in taken:
                taken.add(node.name)
                if node.op not in _GLUE:
                    yield node.name
                yield from self.downstream(node, taken)


def _same_op(source: str, engine: str) -> bool:
    """Whether an engine's op (`QLinearConv`, `QGemm`, `Convolution`) computes the source's op."""
    return engine.endswith(source) or source in _OPENVINO_OPS.get(engine, ())


def _node(data: memoryview, start: int, end: int) -> Node:
    texts: Dict[int, List[str]] = {1: [], 2: [], 3: [], 4: []}
    for field, a, b in _messages(data, start, end, tuple(texts)):
        texts[field].append(str(data[a:b], "utf-8"))
    return Node("".join(texts[3]), "".join(texts[4]), tuple(texts[1]), tuple(texts[2]))


def _messages(
    data: memoryview, start: int, end: int, wanted: Sequence[int]
) -> Iterator[Tuple[int, int, int]]:
    """The `fields` of these numbers, which must be messages or texts."""
    for field, a, b in fields(data, start, end):
        if field in wanted:
            if b < 0:
                raise ValueError("a message was expected, not a number")
            yield field, a, b
