"""The normal form of an ONNX graph: the same model always has the same bytes.

Every ONNX file we write, whether it came from a user or from torch, has gone through `normalise`:
weights are initializers with raw data, every node has a unique name, nodes stand in topological
order, and nothing is kept that no engine reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from exporters._onnx_write import write_model
from runtimes.types import TensorSpec

OPSET = 21  # the first one with INT4 tensors
STANDARD_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})
MICROSOFT = "com.microsoft"  # ONNX Runtime's own operators
LARGEST = 2**31 - 2**20  # bytes in one piece: protobuf's limit, less some room for the graph
_NODES = 2**26  # bytes of a graph without its weights, at most


def load_model(path: Path) -> Any:
    """The `onnx.ModelProto` of a file we wrote, its external data loaded."""
    import onnx

    return onnx.load(str(path))


def save_model(model: Any, path: Path) -> None:
    """Write `model` with a fixed byte order; past 2 GiB the weights go to `<name>.data`."""
    import onnx

    if weight_bytes(model) < LARGEST - _NODES:
        write_model(model, path)
        return
    onnx.save_model(model, str(path), save_as_external_data=True, location=path.name + ".data")


def weight_bytes(model: Any) -> int:
    """Bytes of all initializers; protobuf's own count of a model makes a copy of it."""
    import onnx

    widths = {kind: onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize for kind in _kinds(model)}
    tensors = (tensor for graph in graphs(model.graph) for tensor in graph.initializer)
    return sum(math.prod(t.dims) * widths[t.data_type] for t in tensors)


def _kinds(model: Any) -> set[int]:
    return {tensor.data_type for graph in graphs(model.graph) for tensor in graph.initializer}


def specs(model: Any) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Input and output specs; free dimensions must have been named (`name_free_dims`)."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = (value for value in model.graph.input if value.name not in weights)
    return tuple(map(_spec, inputs)), tuple(map(_spec, model.graph.output))


def _spec(value: Any) -> TensorSpec:
    import onnx

    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    dims = (d.dim_param or int(d.dim_value) for d in tensor.shape.dim)
    return TensorSpec(value.name, dtype.name, tuple(dims))


def subgraphs(node: Any) -> Iterator[Any]:
    """The graphs a node holds (branches of `If`, bodies of `Loop` and `Scan`)."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def graphs(graph: Any) -> Iterator[Any]:
    """`graph` and every graph nested in it."""
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from graphs(inner)


def all_nodes(model: Any) -> Iterator[Any]:
    """Every node of the model, nested ones too."""
    for graph in graphs(model.graph):
        yield from graph.node


def reads(node: Any) -> Iterator[str]:
    """Names a node reads, with those its subgraphs take from outside."""
    yield from (name for name in node.input if name)
    for inner in subgraphs(node):
        own = {value.name for value in inner.input} | {t.name for t in inner.initializer}
        own |= {name for other in inner.node for name in other.output}
        for other in inner.node:
            yield from (name for name in reads(other) if name not in own)
        yield from (value.name for value in inner.output if value.name not in own)


def needed(nodes: Sequence[Any], outputs: Iterable[str]) -> list[Any]:
    """Those of `nodes`, which stand in order, that tensors named `outputs` depend on."""
    wanted, found = set(outputs), []
    for node in reversed(nodes):
        if not wanted.isdisjoint(node.output):
            wanted.update(reads(node))
            found.append(node)
    return found[::-1]


def output_axis(node: Any, rank: int) -> int:
    """Axis of the output channels of the weight of `rank` that `node` reads."""
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    if node.op_type == "MatMul":
        return rank - 1
    return 1 if node.op_type in {"ConvTranspose", "GRU", "LSTM", "RNN"} else 0


def attribute(node: Any, name: str, default: Any) -> Any:
    """Value of an attribute of `node`, or `default`."""
    import onnx

    for found in node.attribute:
        if found.name == name:
            return onnx.helper.get_attribute_value(found)
    return default


def rename_reads(graph: Any, renamed: dict[str, str]) -> None:
    """Let every node read the new names, in place; names a subgraph defines itself stay."""
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name in renamed:
                node.input[i] = renamed[name]
        for inner in subgraphs(node):
            own = {tensor.name for tensor in inner.initializer}
            own |= {name for other in inner.node for name in other.output}
            rename_reads(inner, {k: v for k, v in renamed.items() if k not in own})


def normalise(model: Any, *, copy: bool = True) -> tuple[Any, list[str]]:
    """`model` in normal form, and a note for everything a user may want to know.

    Without `copy`, the model that is handed in may be changed.
    """
    import onnx

    notes: list[str] = []
    if model.functions:
        notes.append(f"{len(model.functions)} model-local functions were inlined")
        model = onnx.inliner.inline_local_functions(model)
    elif copy:
        given, model = model, onnx.ModelProto()
        model.CopyFrom(given)
    _drop_overridable_inputs(model.graph)
    notes += _merge_duplicate_weights(model.graph)
    constants_to_initializers(model.graph)
    notes += _sort_nodes(model.graph)
    notes += name_nodes(model)
    drop_dead_weights(model.graph)
    strip(model)
    for tensor in tensors(model):
        make_raw(tensor)
    model.ir_version = max(4, onnx.helper.find_min_ir_version_for(model.opset_import, True))
    return model, notes


def _drop_overridable_inputs(graph: Any) -> None:
    # Before IR version 4 every weight was listed among the inputs.
    weights = {tensor.name for tensor in graph.initializer}
    replace(graph.input, [value for value in graph.input if value.name not in weights])


def _merge_duplicate_weights(graph: Any) -> list[str]:
    first: dict[str, Any] = {}
    notes = []
    for tensor in graph.initializer:
        seen = first.setdefault(tensor.name, tensor)
        if seen is not tensor and seen != tensor:
            notes.append(f"weight {tensor.name} is defined twice; the first one is used")
    if len(first) < len(graph.initializer):
        replace(graph.initializer, list(first.values()))
    return notes


def replace(field: Any, items: list[Any]) -> None:
    # Protobuf frees what a repeated field held, so what stays is copied first.
    copies = [type(item).FromString(item.SerializeToString()) for item in items]
    del field[:]
    field.extend(copies)


def drop(field: Any, gone: Callable[[Any], bool]) -> int:
    """Remove the items of a repeated field that are `gone`, without copying the rest; how many."""
    chosen = [i for i, item in enumerate(field) if gone(item)]
    for i in reversed(chosen):
        del field[i]
    return len(chosen)


def constants_to_initializers(graph: Any) -> int:
    """Turn `Constant` nodes of the main graph into initializers; returns how many.

    One that is itself a graph output stays a node, and so do sparse tensors and the constants
    inside subgraphs, where a branch may consist of nothing else.
    """
    outputs = {value.name for value in graph.output}
    kept, made = [], []
    for node in graph.node:
        tensor = _constant(node)
        if tensor is None or node.output[0] in outputs:
            kept.append(node)
        else:
            tensor.name = node.output[0]
            made.append(tensor)
    if made:
        replace(graph.node, kept)
        graph.initializer.extend(made)
    return len(made)


def _constant(node: Any) -> Any | None:
    import numpy as np
    import onnx

    if node.op_type != "Constant" or node.domain not in STANDARD_DOMAINS:
        return None
    attribute = node.attribute[0]
    if attribute.name == "value":
        tensor = onnx.TensorProto()
        tensor.CopyFrom(attribute.t)
        return tensor
    if attribute.name == "sparse_value":
        return None
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.name.startswith("value_string"):
        strings = [value] if isinstance(value, bytes) else list(value)
        shape = [] if isinstance(value, bytes) else [len(strings)]
        return onnx.helper.make_tensor("", onnx.TensorProto.STRING, shape, strings)
    dtype = np.float32 if attribute.name.startswith("value_float") else np.int64
    return onnx.numpy_helper.from_array(np.asarray(value, dtype))


def _sort_nodes(graph: Any) -> list[str]:
    import heapq

    producer = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    before = [{producer[n] for n in reads(node) if n in producer} for node in graph.node]
    if all(not needed or max(needed) < i for i, needed in enumerate(before)):
        return []
    after: dict[int, list[int]] = {}
    for i, needed in enumerate(before):
        for j in needed:
            after.setdefault(j, []).append(i)
    ready, order = [i for i, needed in enumerate(before) if not needed], []
    while ready:
        i = heapq.heappop(ready)
        order.append(i)
        for j in after.get(i, ()):
            before[j].discard(i)
            if not before[j]:
                heapq.heappush(ready, j)
    if len(order) < len(graph.node):
        return []  # a cycle: the checker says so, with names
    replace(graph.node, [graph.node[i] for i in order])
    return ["nodes were put in topological order"]


def name_nodes(model: Any) -> list[str]:
    """Give every node a unique, deterministic name; a user's unique names stay."""
    taken: set[str] = set()
    repeated: list[str] = []
    for node in all_nodes(model):
        wanted = node.name or "_".join([node.op_type, *node.output[:1]])
        if node.name and node.name in taken:
            repeated.append(node.name)
        node.name = unique(wanted, taken)
        taken.add(node.name)
    if not repeated:
        return []
    return [f"duplicate node names were made unique: {', '.join(sorted(set(repeated))[:5])}"]


def unique(name: str, taken: set[str]) -> str:
    """`name`, or the first of `name_1`, `name_2`, … that is not taken."""
    if name not in taken:
        return name
    number = 1
    while f"{name}_{number}" in taken:
        number += 1
    return f"{name}_{number}"


def drop_dead_weights(graph: Any) -> int:
    """Remove initializers nothing reads; returns their number."""
    used = {name for node in graph.node for name in reads(node)}
    used |= {value.name for value in graph.output}
    return drop(graph.initializer, lambda tensor: tensor.name not in used)


def strip(model: Any) -> None:
    """Drop doc strings, tracing metadata and producer noise; the model's own metadata stays.

    Intermediate shapes go too, unless custom operators make them impossible to infer again.
    """
    custom = any(node.domain not in STANDARD_DOMAINS for node in all_nodes(model))
    model.doc_string = ""
    model.producer_name, model.producer_version = "", ""
    for graph in graphs(model.graph):
        if not custom and graph is model.graph:
            del graph.value_info[:]
        values = [*graph.input, *graph.output, *graph.value_info]
        for item in [graph, *graph.node, *graph.initializer, *values]:
            item.doc_string = ""
            del item.metadata_props[:]
    model.graph.name = "model"


def tensors(model: Any) -> Iterator[Any]:
    """Every tensor of the model: initializers and attributes, nested ones too."""
    for graph in graphs(model.graph):
        yield from graph.initializer
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors


def make_raw(tensor: Any) -> None:
    """Store a tensor's values as raw little-endian bytes: the smallest and the only fixed form."""
    import onnx

    if tensor.HasField("raw_data") or tensor.data_type == onnx.TensorProto.STRING:
        return
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return
    name, kind = tensor.name, tensor.data_type
    packed = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), name)
    if packed.data_type == kind:
        tensor.CopyFrom(packed)


def count_parameters(model: Any) -> int:
    """Number of floating-point (or quantized) weight values in the initializers."""
    import math

    import onnx

    indices = {onnx.TensorProto.INT64, onnx.TensorProto.BOOL, onnx.TensorProto.STRING}
    weights = (t for g in graphs(model.graph) for t in g.initializer if t.data_type not in indices)
    return sum(math.prod(tensor.dims) for tensor in weights)


def import_microsoft(model: Any) -> None:
    """Declare in place that `model` holds operators of ONNX Runtime's own."""
    import onnx

    if all(entry.domain != MICROSOFT for entry in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(MICROSOFT, 1))


def fixed_batch(model: Any) -> int:
    """The batch size that the model is made for; 0 where it is free."""
    weights = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name not in weights and dims and dims[0].dim_value:
            return int(dims[0].dim_value)
    return 0


def opset_of(model: Any) -> int:
    """Version of the standard operator set the model imports."""
    return max(
        (int(o.version) for o in model.opset_import if o.domain in {"", "ai.onnx"}), default=0
    )
