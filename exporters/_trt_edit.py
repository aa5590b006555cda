"""Small edits of a graph under way to TensorRT: constants under new names, readers turned."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from exporters._onnx_graph import drop, graphs, reads, unique
from exporters._trt_graph import DEQUANTIZE, QUANTIZE, View


class Editor:
    """A model being edited: `view` is of the graph as it stands after `changed`."""

    def __init__(self, model: Any) -> None:
        self.model, self.graph = model, model.graph
        self.view = View(model)
        self._taken = {name for graph in graphs(model.graph) for name in _names(graph)}

    def changed(self) -> None:
        """Look the graph up anew."""
        self.view = View(self.model)

    def name(self, wanted: str) -> str:
        """`wanted`, or the first of `wanted_1`, … that no tensor or node has."""
        made = unique(wanted, self._taken)
        self._taken.add(made)
        return made

    def constant(self, wanted: str, array: Any) -> str:
        """Name of a new initializer that holds `array`."""
        import onnx

        name = self.name(wanted)
        tensor = onnx.numpy_helper.from_array(np.ascontiguousarray(array), name)
        tensor.dims[:] = np.shape(array)  # ascontiguousarray makes a scalar an array of one
        self.graph.initializer.append(tensor)
        return name

    def node(self, op: str, inputs: Iterable[str], wanted: str, **attributes: Any) -> str:
        """Output of a new node; it stands at the end until the graph is sorted."""
        import onnx

        out = self.name(wanted)
        made = onnx.helper.make_node(op, list(inputs), [out], name=self.name(out), **attributes)
        self.graph.node.append(made)
        return out

    def drop(self, nodes: Iterable[Any]) -> None:
        """Take nodes out."""
        gone = {node.name for node in nodes}
        drop(self.graph.node, lambda node: node.name in gone)

    def drop_unread(self) -> None:
        """Take out Q and DQ nodes that nobody reads any more."""
        while True:
            self.changed()
            read = self.view.readers.keys() | self.view.outputs
            found = self.view.nodes(QUANTIZE, DEQUANTIZE)
            gone = [node for node in found if node.output[0] not in read]
            if not gone:
                return
            self.drop(gone)


def point(node: Any, old: str, new: str) -> None:
    """Let `node` read `new` in place of `old`."""
    for i, name in enumerate(node.input):
        if name == old:
            node.input[i] = new


def _names(graph: Any) -> Iterable[str]:
    yield from (tensor.name for tensor in graph.initializer)
    yield from (value.name for value in [*graph.input, *graph.output])
    for node in graph.node:
        yield node.name
        yield from node.output
        yield from reads(node)
