"""The branches of an `If`, quantized as models of their own on what calibration feeds to them.

A branch reads tensors from outside; as a model it has them as inputs (weights as its own), and gets
the batches of calibration data that take it, one after the other. One that is never taken stays
float, and so do bodies of loops. ONNX Runtime (1.31) fuses pairs in branches as it does outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compressor.quantization.placement import WEIGHTED
from exporters._onnx_cleanup import clean
from exporters._onnx_graph import drop, graphs, reads, rename_reads, subgraphs, unique
from exporters._onnx_session import tapped_session
from runtimes.base import Feeds

LAYERS = WEIGHTED | {"ConvTranspose", "GRU", "LSTM", "RNN"}  # those that may have weights
_SIDES = {"then_branch": "then", "else_branch": "else"}
Feeder = Callable[[], Iterator[Feeds]]


@dataclass(frozen=True)
class Branch:
    """One branch: its node and side, its graph in the model, and the names it reads from outside.

    Attributes:
        node: the `If`.
        side: `then` or `else`.
        graph: the `onnx.GraphProto`, part of the model.
        inputs: tensors from outside that are computed.
        weights: initializers from outside.
    """

    node: Any
    side: str
    graph: Any
    inputs: Sequence[str]
    weights: Sequence[str]


def layers_in(graph: Any) -> dict[str, str]:
    """Name → op type of the layers that may have weights, those in bodies too."""
    return {n.name: n.op_type for inner in graphs(graph) for n in inner.node if n.op_type in LAYERS}


def has_branches(model: Any) -> bool:
    """Whether there is an `If`, in whatever depth."""
    return any(node.op_type == "If" for graph in graphs(model.graph) for node in graph.node)


def branches(model: Any) -> list[Branch]:
    """Branches of the main graph that hold layers with weights."""
    weights = {tensor.name for tensor in model.graph.initializer}
    found = []
    for node in model.graph.node:
        for part in node.attribute:
            if node.op_type != "If" or part.name not in _SIDES or not layers_in(part.g):
                continue
            outside = list(dict.fromkeys(_outside(part.g)))
            found.append(
                Branch(
                    node, _SIDES[part.name], part.g,
                    [name for name in outside if name not in weights],
                    [name for name in outside if name in weights],
                )
            )  # fmt: skip
    return found


def loops(model: Any) -> dict[str, str]:
    """Layer with weights in a loop's body → why it stays float."""
    return {
        name: in_loop(node.name)
        for node in model.graph.node
        if node.op_type != "If"
        for inner in subgraphs(node)
        for name in layers_in(inner)
    }


def never_taken(branch: Branch) -> dict[str, str]:
    """Layer with weights in a branch that no sample takes → why it stays float."""
    return dict.fromkeys(layers_in(branch.graph), not_taken(branch.node.name, branch.side))


def in_loop(name: str) -> str:
    """Why a layer in the body of the loop of that name stays float."""
    return f"it stands in the loop {name}, which is not calibrated"


def not_taken(name: str, side: str) -> str:
    """Why a layer in one branch of the `If` of that name stays float."""
    return f"no calibration sample takes the {side} branch of {name}: hand in samples that do"


def branch_feeds(model: Any, branch: Branch, data: Feeder, threads: int) -> Feeder:
    """Gives a fresh pass over what the branch is fed, a batch at a time."""
    import onnx

    condition, inputs = branch.node.input[0], {value.name for value in model.graph.input}
    known = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.name == condition
    }
    wanted = [n for n in dict.fromkeys([condition, *branch.inputs]) if n not in inputs | set(known)]
    outputs = [onnx.ValueInfoProto(name=name) for name in wanted]
    session = tapped_session(model, (), outputs, threads) if wanted else None

    def feeds() -> Iterator[Feeds]:
        for given in data():
            made = session.run(wanted, dict(given)) if session is not None else []
            values = {**known, **given, **dict(zip(wanted, made, strict=True))}
            if bool(np.ravel(values[condition])[0]) == (branch.side == "then"):
                yield {name: values[name] for name in branch.inputs}

    return feeds


def as_model(model: Any, branch: Branch, example: Feeds) -> Any:
    """A copy of the branch as an `onnx.ModelProto`, cleaned, its inputs typed after `example`."""
    import onnx

    made = onnx.ModelProto(ir_version=model.ir_version)
    made.opset_import.extend(model.opset_import)
    made.graph.CopyFrom(branch.graph)
    for name in branch.inputs:
        kind = onnx.helper.np_dtype_to_tensor_dtype(example[name].dtype)
        shape = [None] * example[name].ndim
        made.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, shape))
    copies = _copies(model, branch)
    for tensor in model.graph.initializer:
        if tensor.name in copies:
            made.graph.initializer.add().CopyFrom(tensor)
            made.graph.initializer[-1].name = copies[tensor.name]
    rename_reads(made.graph, copies)
    clean(made)
    return made


def write_back(model: Any, branch: Branch, made: Any) -> None:
    """Put what became of `as_model` in the branch's place, in place.

    What is as it was outside is read from there again; new names are no other's.
    """
    copies = _copies(model, branch)
    outer = {tensor.name: tensor for tensor in model.graph.initializer}
    same = {
        copy: name
        for name, copy in copies.items()
        for tensor in made.graph.initializer
        if tensor.name == copy and tensor.raw_data == outer[name].raw_data
    }
    drop(made.graph.initializer, lambda tensor: tensor.name in same)
    del made.graph.input[:]
    taken = {name for graph in graphs(model.graph) for name in _defined(graph)}
    known = {name for graph in graphs(branch.graph) for name in _defined(graph)}
    taken |= {name for graph in graphs(made.graph) for name in _defined(graph)}
    renamed = dict(same)
    for name in _defined(made.graph):
        if name not in known:
            renamed[name] = unique(f"{name}.if", taken)
            taken.add(renamed[name])
    _rename(made.graph, renamed)
    branch.graph.CopyFrom(made.graph)


def _copies(model: Any, branch: Branch) -> dict[str, str]:
    """Weights from outside → the names of their copies in the branch as a model."""
    taken = {name for graph in graphs(model.graph) for name in _defined(graph)}
    made = {}
    for name in branch.weights:
        made[name] = unique(f"{name}.if", taken)
        taken.add(made[name])
    return made


def _outside(graph: Any) -> Iterator[str]:
    """Names that a branch reads and does not define."""
    own = set(_defined(graph))
    return (name for node in graph.node for name in reads(node) if name not in own)


def _defined(graph: Any) -> list[str]:
    names = [tensor.name for tensor in graph.initializer] + [value.name for value in graph.input]
    return names + [name for node in graph.node for name in node.output if name]


def _rename(graph: Any, renamed: dict[str, str]) -> None:
    """Give tensors of a graph new names, where they are made and where they are read."""
    for tensor in graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    for node in graph.node:
        node.output[:] = [renamed.get(name, name) for name in node.output]
    rename_reads(graph, renamed)
    for value in [*graph.value_info, *graph.output]:
        value.name = renamed.get(value.name, value.name)
