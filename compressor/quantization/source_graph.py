"""What an artifact's own file says of its layers: whose weights are how large, who reads whom."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.quantization.ledger import stored_tensors
from runtimes.onnx_nodes import Node
from runtimes.types import Artifact

_OF_THEM = frozenset({"scales", "zero points"})


@dataclass(frozen=True)
class SourceGraph:
    """The main graph of an artifact.

    Attributes:
        nodes: in topological order, by the names that engines and users call them by.
        weight_bytes: node name → stored bytes of its weights with their scales and zero points.
    """

    nodes: tuple[Node, ...]
    weight_bytes: Mapping[str, int]

    @property
    def names(self) -> frozenset[str]:
        """Names of all nodes."""
        return frozenset(node.name for node in self.nodes)

    def following(self, node: Node) -> Iterator[Node]:
        """The nodes after `node` for as long as each one is the only reader of the one before."""
        readers = self._readers()
        while True:
            found = [reader for name in node.outputs for reader in readers.get(name, [])]
            if len(found) != 1:
                return
            node = found[0]
            yield node

    def _readers(self) -> dict[str, list[Node]]:
        readers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                readers.setdefault(name, []).append(node)
        return readers


def source_graph(artifact: Artifact) -> SourceGraph:
    """Read an ONNX file or an OpenVINO IR; other formats have no graph to read, and get none."""
    readers = {".onnx": _onnx, ".xml": _openvino}
    read = readers.get(artifact.path.suffix)
    if read is None:
        return SourceGraph((), {})
    nodes = read(artifact.path)
    return SourceGraph(tuple(nodes), _weight_bytes(nodes, _sizes(artifact)))


def _sizes(artifact: Artifact) -> dict[str, tuple[str, int]]:
    return {key: (kind, size) for key, kind, size in stored_tensors(artifact)}


def _weight_bytes(
    nodes: Iterable[Node], stored: Mapping[str, tuple[str, int]]
) -> Mapping[str, int]:
    """Each stored weight goes to the first node that computes with it.

    Whatever lies between the stored tensors and that node (casts, dequantization, scaling,
    transposition) has constant inputs only, so one rule covers every form of storage. Scales of
    activations and of biases belong to no weight.
    """
    roots = {key: frozenset({key}) for key in stored}
    weights = {key for key, (kind, _) in stored.items() if kind.startswith("weights")}
    left = {key: size for key, (kind, size) in stored.items() if key in weights or kind in _OF_THEM}
    total: dict[str, int] = {}
    for node in nodes:
        made = [roots.get(name) for name in node.inputs]
        constant = [read for read in made if read is not None]
        if made and len(constant) == len(made):
            roots.update(dict.fromkeys(node.outputs, frozenset[str]().union(*constant)))
            continue
        used = [read for read in constant if weights & read]
        if used:  # kernels that take a weight's scale as an input of their own
            used += [read for read in constant if len(read) == 1 and not weights & read]
        size = sum(left.pop(key, 0) for key in frozenset[str]().union(*used))
        if size:
            total[node.name] = total.get(node.name, 0) + size
    return total


def _onnx(path: Path) -> list[Node]:
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    return [
        Node(node.name, node.op_type, tuple(_reads(node)), tuple(filter(None, node.output)))
        for node in model.graph.node
    ]


def _reads(node: Any) -> Iterator[str]:
    """Tensors a node reads; a branch or loop body's own weights are its node's."""
    from exporters._onnx_graph import graphs, reads, subgraphs

    yield from reads(node)
    for inner in subgraphs(node):
        yield from (tensor.name for graph in graphs(inner) for tensor in graph.initializer)


def _openvino(path: Path) -> list[Node]:
    root = ET.parse(path).getroot()  # noqa: S314 - an artifact of ours
    layers = {layer.get("id", ""): layer for layer in root.iterfind("layers/layer")}
    inputs: dict[str, list[str]] = {}
    for edge in root.iterfind("edges/edge"):
        number, port = edge.get("from-layer", ""), edge.get("from-port", "")
        offset = _offset(layers[number])
        name = f"{number}:{port}" if offset is None else offset
        inputs.setdefault(edge.get("to-layer", ""), []).append(name)
    return [
        _ir_node(layer, number, inputs.get(number, []))
        for number, layer in layers.items()
        if layer.get("type") != "Const"
    ]


def _ir_node(layer: ET.Element, number: str, inputs: list[str]) -> Node:
    inner = [offset for found in layer.iter("layer") if (offset := _offset(found)) is not None]
    # A convolution with a bias is two layers, `conv/WithoutBiases` and `conv`.
    name = layer.get("name", "").removesuffix("/WithoutBiases")
    outputs = tuple(f"{number}:{port.get('id')}" for port in layer.iterfind("output/port"))
    return Node(name, layer.get("type", ""), (*inputs, *inner), outputs)


def _offset(layer: ET.Element) -> str | None:
    """Where a constant lies in the .bin, as `stored_tensors` names it; None: no constant."""
    data = layer.find("data")
    return data.get("offset", "0") if layer.get("type") == "Const" and data is not None else None
