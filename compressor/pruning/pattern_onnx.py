"""`prune_pattern` on an ONNX graph: layers as matrices, activations through ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from compressor.pruning.effects import data_of
from compressor.pruning.onnx_linear import (
    Floats,
    Linear,
    Values,
    add_biases,
    augmented,
    drop_zero_biases,
    linears,
)
from compressor.pruning.pattern_pass import Slot, run_pattern, with_pattern
from compressor.pruning.patterns import parse_pattern
from compressor.pruning.select import matches
from compressor.quantization.blas import one_blas_thread
from compressor.quantization.reconstruction_onnx import Reader, open_taps, tap_of
from compressor.quantization.reconstruction_taps import Tap
from exporters._onnx_graph import attribute
from exporters._onnx_session import check_model, session_of
from exporters.base import Env
from runtimes.base import Feeds
from runtimes.errors import Refusal
from runtimes.types import Artifact

_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
_WEIGHTED = _RECURRENT | {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_ODD = "its weight is shared, not float32, or of a form that is not known"


class Graph:
    """An ONNX model as a `Subject`; weights are changed in place."""

    def __init__(self, model: Any, threads: int) -> None:
        self.model, self.threads = model, threads
        self.values = Values(model)
        found = linears(model)
        self.layers = {layer.weight: layer for layer in (*found, *_states(model, found))}

    def get(self, slot: Slot) -> Floats:
        """As `Subject` says."""
        return self.values.get(self.layers[slot.weight])

    def set(self, slot: Slot, values: Floats) -> None:
        """As `Subject` says."""
        self.values.set(self.layers[slot.weight], values)

    def tapped(self, names: Sequence[str], shapes: bool) -> Callable[[Feeds], Sequence[Any]]:
        """As `Subject` says."""
        return open_taps(self.model, self.threads, names, shapes)

    def outputs(self, feeds: Sequence[Feeds]) -> list[list[Any]]:
        """As `Subject` says."""
        session = session_of(self.model, self.threads)
        return [list(session.run(None, dict(batch))) for batch in feeds]

    def slots(self) -> list[Slot]:
        """Every weight that can be read as a matrix."""
        return [self._slot(layer) for layer in self.layers.values()]

    def _slot(self, layer: Linear) -> Slot:
        dims = self.values.tensors[layer.weight].dims
        spatial = layer.node.op_type in {"Conv", "ConvTranspose"}
        kernel = int(np.prod(dims[2:])) if spatial else 1
        return Slot(layer.name, layer.weight, kernel, layer.bias is not None, _tap(layer))


def _tap(layer: Linear) -> Tap:
    """Rows of the layer's input with the bias's one, a matrix a block."""
    return replace(
        layer.tap, rows=partial(augmented, layer), grouped=True,
        columns=layer.tap.columns + (layer.bias is not None),
        how=(*layer.tap.how, layer.bias is not None),
    )  # fmt: skip


def _states(model: Any, found: Sequence[Linear]) -> list[Linear]:
    """What recurrent layers multiply their states with."""
    weights = {t.name: t for t in model.graph.initializer}
    made = []
    for layer in found:
        tensor = weights.get(layer.node.input[2]) if layer.node.op_type in _RECURRENT else None
        if tensor is None or tensor.data_type != 1:
            continue
        tap = tap_of(Reader(tensor.name, layer.node, 2, tuple(tensor.dims)))
        if tap is not None:
            made.append(Linear(layer.node, tensor.name, None, layer.output, tap))
    return made


def _sorted_out(graph: Graph, keep: Sequence[str], quads: bool) -> tuple[list[Slot], list[Refusal]]:
    """The weights that may have the pattern, and why others may not."""
    weighted = [n for n in graph.model.graph.node if n.op_type in _WEIGHTED]
    names = [n.name for n in weighted]
    kept = {name for glob in keep for name in matches(glob, names, "layer")}
    slots, reasons = [], []
    for slot in graph.slots():
        node = graph.layers[slot.weight].node
        why = f"kept: {slot.layer}" if slot.layer in kept else ""
        if quads and not why:
            why = _no_sparse_kernel(node)
        if why:
            reasons.append(Refusal(slot.layer, why))
        else:
            slots.append(slot)
    known = {slot.layer for slot in graph.slots()}
    for node in weighted:
        held = len(node.input) > 1 and node.input[1] in graph.values.tensors
        if held and node.name not in known:
            reasons.append(Refusal(node.name, _ODD))
    return slots, list(dict.fromkeys(reasons))


def _no_sparse_kernel(node: Any) -> str:
    if node.op_type == "Conv" and attribute(node, "group", 1) > 1:
        return "a grouped convolution has no sparse kernel"
    if node.op_type in _RECURRENT or node.op_type == "ConvTranspose":
        return f"a {node.op_type} has no sparse kernel"
    return ""


@one_blas_thread()
def run_onnx(source: Artifact, options: Any, env: Env) -> Artifact:
    """Give the weights of the graph in `source` their zeros.

    Raises as `run_pattern`; `UsageError` where a `keep` matches nothing.
    """
    from exporters._drop_in import require_drop_in
    from exporters._onnx_graph import load_model, save_model

    model = load_model(source.path)
    biases = add_biases(model)
    graph = Graph(model, env.context.threads)
    quads = parse_pattern(options.pattern).quads
    slots, reasons = _sorted_out(graph, env.context.keep.channels, quads)
    data = data_of(env)
    facts = run_pattern(graph, slots, reasons, source.inputs, data, options, env)
    drop_zero_biases(model, biases)
    check_model(model)
    save_model(model, env.work / source.entry)
    artifact = Artifact.write(
        env.work, source.format, source.entry, source.inputs, source.outputs,
        with_pattern(source, facts),
    )  # fmt: skip
    return require_drop_in(source, artifact)
