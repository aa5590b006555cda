"""Who makes and who reads each tensor of an ONNX graph, and the tensors' types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from exporters._onnx_graph import reads, rename_reads, unique
from exporters._onnx_session import without_weights


@dataclass
class Index:
    """One graph, looked up by name; valid until the graph is changed.

    Attributes:
        graph: the `onnx.GraphProto`.
        weights: initializers by name.
        producers: tensor → the node that makes it.
        consumers: tensor → the nodes that read it (through their subgraphs too), in order.
        ranks: rank of every tensor whose shape is known.
        floats: tensors known to be float32.
        outputs: names of the graph's outputs.
    """

    graph: Any
    weights: dict[str, Any]
    producers: dict[str, Any]
    consumers: dict[str, list[Any]]
    ranks: dict[str, int]
    floats: set[str]
    outputs: set[str]

    def only_consumer(self, tensor: str) -> Any | None:
        """The one node that reads `tensor`, if nothing else does and it is no output."""
        readers = self.consumers.get(tensor, [])
        return readers[0] if len(readers) == 1 and tensor not in self.outputs else None

    def dynamic_inputs(self, node: Any) -> list[str]:
        """Inputs of `node` that are computed at run time, in order."""
        return [name for name in node.input if name and name not in self.weights]


def index(model: Any) -> Index:
    """Look a model's main graph up; types and ranks come from onnx's shape inference."""
    graph = model.graph
    producers = {name: node for node in graph.node for name in node.output if name}
    consumers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in dict.fromkeys(reads(node)):
            consumers.setdefault(name, []).append(node)
    ranks, floats = _types(model)
    return Index(
        graph,
        {tensor.name: tensor for tensor in graph.initializer},
        producers,
        consumers,
        ranks,
        floats,
        {value.name for value in graph.output},
    )


def _types(model: Any) -> tuple[dict[str, int], set[str]]:
    import onnx

    inferred = onnx.shape_inference.infer_shapes(without_weights(model)).graph
    ranks, floats = {}, set()
    for value in [*inferred.input, *inferred.value_info, *inferred.output]:
        tensor = value.type.tensor_type
        if tensor.HasField("shape"):
            ranks[value.name] = len(tensor.shape.dim)
        if tensor.elem_type == onnx.TensorProto.FLOAT:
            floats.add(value.name)
    for weight in model.graph.initializer:
        ranks[weight.name] = len(weight.dims)
        if weight.data_type == onnx.TensorProto.FLOAT:
            floats.add(weight.name)
    return ranks, floats


class Names:
    """Short names that no tensor or node of the graphs has yet.

    They are counted, so the same graph always gets the same ones; every byte of a helper's name is
    paid two or three times over in the file.
    """

    def __init__(self, *graphs: Any) -> None:
        self._taken: set[str] = set()
        for graph in graphs:
            self._taken |= {t.name for t in graph.initializer} | {v.name for v in graph.input}
            self._taken |= {v.name for v in graph.output} | {node.name for node in graph.node}
            self._taken |= {name for node in graph.node for name in [*node.input, *node.output]}

    def new(self, wanted: str) -> str:
        """`wanted`, or the first of `wanted_1`, `wanted_2`, … that is free; it is taken then."""
        made = unique(wanted, self._taken)
        self._taken.add(made)
        return made


def take_over_names(graph: Any, made: dict[str, str]) -> None:
    """Give initializers (new → old name) the name of the tensor they replaced, where it is gone."""
    present = {tensor.name for tensor in graph.initializer}
    renames = {new: old for new, old in made.items() if new in present and old not in present}
    for tensor in graph.initializer:
        tensor.name = renames.get(tensor.name, tensor.name)
    rename_reads(graph, renames)
