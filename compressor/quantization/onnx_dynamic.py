"""Layers of an ONNX graph that ONNX Runtime's dynamic INT8 kernels can take, and how they do.

Written here and not by `onnxruntime.quantization.quantize_dynamic`, which renames layers, drops the
batch-first layout without a word, rounds MatMul weights to 7 bits everywhere, stores 8 bits only,
and corrects no bias. The nodes are the same as its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from compressor.quantization.keep import kept
from compressor.quantization.onnx_dynamic_loop import GATES, why_no_loop
from compressor.quantization.onnx_dynamic_write import write
from compressor.quantization.onnx_pass import require_smaller, scheme_of
from compressor.quantization.onnx_static import named_nodes
from exporters._drop_in import require_drop_in
from exporters._onnx_graph import OPSET, attribute, graphs, load_model, opset_of, save_model
from exporters._onnx_opset import upgrade_opset
from exporters._onnx_session import without_weights
from exporters.base import Context, Env
from runtimes.errors import Refusal, UsageError
from runtimes.types import Artifact

# How many times `least` weight values a kind of layer needs to gain. One product of a row with a
# matrix is cheap, and the loop that a GRU or RNN becomes costs some microseconds a step.
TIMES = {"LSTM": 1, "GRU": 24, "RNN": 8, "MatMul": 4, "Gemm": 4}
SINGLE = {"GRU": 12, "RNN": 16}  # of sequences of one step, which need no loop
DYNAMIC = "scales of activations are taken at run time"


@dataclass
class Layer:
    """A node to take: the graph it stands in, its weights by port, and its bias.

    Attributes:
        node: the node.
        graph: main graph, branch or loop body.
        weights: input port → tensor: (1,) of a product, (1, 2) of an LSTM.
        bias: the tensor to add, or None.
        absorbed: the Add after a MatMul that the kernel does by itself, or None.
        single_step: a recurrent layer's sequences have one step.
    """

    node: Any
    graph: Any
    weights: dict[int, Any]
    bias: Any | None = None
    absorbed: Any | None = None
    single_step: bool = False

    @property
    def values(self) -> int:
        """Number of weight values."""
        return sum(_size(tensor) for tensor in self.weights.values())


def choose(model: Any, options: Any, context: Context) -> tuple[list[Layer], dict[str, str]]:
    """Layers to take, in the order of the graph, and for the others of these kinds why not."""
    unknown = [op for op in options.ops if op not in TIMES]
    if unknown:
        raise UsageError(
            f"no dynamic kernel for {unknown[0]}",
            where="quantize_dynamic.ops",
            expected=", ".join(TIMES),
            got=unknown[0],
            fix="quantize_weights stores the weights of other layers in integers",
        )
    keep = replace(context.keep, float=(*context.keep.float, *options.exclude))
    stay = kept(named_nodes(model, nested=True), keep)
    chosen, reasons = [], {}
    single = _single_steps(model)
    for scope in _scopes(model.graph, {}):
        for node in scope.graph.node:
            if node.op_type not in options.ops or node.domain not in {"", "ai.onnx"}:
                continue
            once = node.input[0] in single
            least = options.least * _times(node.op_type, once=once)
            made = stay.get(node.name) or _layer(scope, node, least, opset_of(model))
            if isinstance(made, Layer):
                chosen.append(replace(made, single_step=once))
            elif made:
                reasons[node.name] = made
    return chosen, reasons


def _times(op: str, *, once: bool) -> int:
    return SINGLE.get(op, TIMES[op]) if once else TIMES[op]


def _single_steps(model: Any) -> set[str]:
    """Tensors of rank 3 whose first axis is 1: sequences of one step."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(without_weights(model)).graph
    shapes = {
        value.name: value.type.tensor_type.shape.dim
        for value in [*inferred.input, *inferred.value_info]
    }
    return {name for name, dims in shapes.items() if len(dims) == 3 and dims[0].dim_value == 1}


@dataclass
class _Scope:
    """One graph with the weights it can see, its own and those around it."""

    graph: Any
    weights: dict[str, Any]
    readers: dict[str, list[Any]]

    def only_reader(self, tensor: str) -> Any | None:
        readers = self.readers.get(tensor, [])
        return readers[0] if len(readers) == 1 else None


def _scopes(graph: Any, outside: Mapping[str, Any]) -> Iterator[_Scope]:
    from exporters._onnx_graph import reads, subgraphs

    weights = {**outside, **{tensor.name: tensor for tensor in graph.initializer}}
    readers: dict[str, list[Any]] = {value.name: [None] for value in graph.output}
    for node in graph.node:
        for name in dict.fromkeys(reads(node)):
            readers.setdefault(name, []).append(node)
    yield _Scope(graph, weights, readers)
    for node in graph.node:
        for inner in subgraphs(node):
            yield from _scopes(inner, weights)


def _layer(scope: _Scope, node: Any, least: int, opset: int) -> Layer | str:
    """The layer, or why it stays float; empty for products that are none of our business."""
    if node.op_type in {"MatMul", "Gemm"}:
        found = _product(scope, node)
    else:
        found = why_no_loop(node, opset) if node.op_type in GATES else ""
        found = found or _recurrent(scope, node)
    if isinstance(found, Layer) and found.values < least:
        return f"its {found.values} weights are too few to pay for quantizing its input"
    return found


def _recurrent(scope: _Scope, node: Any) -> Layer | str:
    import onnx

    ports = [port for port in (1, 2) if node.input[port] in scope.weights]
    weights = {port: scope.weights[node.input[port]] for port in ports}
    if len(weights) < 2:
        return "its weights are computed, or stored in integers already"
    if any(tensor.data_type != onnx.TensorProto.FLOAT for tensor in weights.values()):
        return "its weights are not float32"
    if attribute(node, "layout", 0):
        return "the kernel has no batch-first layout"
    name = node.input[3] if len(node.input) > 3 else ""
    if name and name not in scope.weights:
        return "its bias is computed"
    return Layer(node, scope.graph, weights, scope.weights.get(name))


def _product(scope: _Scope, node: Any) -> Layer | str:
    import onnx

    weight = scope.weights.get(node.input[1])
    if weight is None or node.input[0] in scope.weights:
        return ""
    if weight.data_type != onnx.TensorProto.FLOAT:
        return "its weight is not float32"
    if len(weight.dims) != 2:
        return f"its weight has rank {len(weight.dims)}, not 2"
    if node.op_type == "MatMul":
        return _with_add(scope, Layer(node, scope.graph, {1: weight}))
    factors = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
    if factors != (1.0, 1.0) or attribute(node, "transA", 0):
        return "alpha, beta or transA is set"
    name = node.input[2] if len(node.input) > 2 else ""
    bias = scope.weights.get(name)
    if name and (bias is None or _size(bias) != weight.dims[0 if _transposed(node) else 1]):
        return "its bias is no constant row"
    return Layer(node, scope.graph, {1: weight}, bias)


def _with_add(scope: _Scope, layer: Layer) -> Layer:
    """The same with the Add of a constant row that follows and nobody else reads."""
    after = scope.only_reader(layer.node.output[0])
    if after is None or after.op_type != "Add" or after.name == "":
        return layer
    other = [name for name in after.input if name != layer.node.output[0]]
    bias = scope.weights.get(other[0]) if len(other) == 1 else None
    if bias is None or list(bias.dims) != [layer.weights[1].dims[1]]:
        return layer
    return replace(layer, bias=bias, absorbed=after)


def _transposed(node: Any) -> bool:
    return bool(attribute(node, "transB", 0))


def _size(tensor: Any) -> int:
    import math

    return math.prod(tensor.dims)


def refusals(source: Artifact, options: Any, context: Context) -> list[Refusal]:
    """Reasons why no layer of an ONNX artifact can be taken."""
    if context.target not in {None, "onnxruntime"}:
        why = f"these are ONNX Runtime's own operators, which {context.target} does not have"
        return [Refusal("model", why, "use quantize_static and quantize_weights")]
    model = _raised(load_model(source.path), options)
    chosen, reasons = choose(model, options, context)
    if not chosen:
        why = f"no layer of kind {', '.join(options.ops)} can run in dynamic INT8"
        fix = "use quantize_weights, which stores the weights of float layers in integers"
        return [Refusal("model", why, fix), *(Refusal(n, r) for n, r in reasons.items())]
    if options.store == 4 and opset_of(model) < OPSET:
        why = f"operator set {opset_of(model)} has no INT4 and cannot be raised to {OPSET}"
        return [Refusal("model", why, f"export with operator set {OPSET}, or use store: 8")]
    return []


def _raised(model: Any, options: Any) -> Any:
    """The model at the operator set that 4 bits and loops need, where it can be raised."""
    loops = any(node.op_type in GATES for graph in graphs(model.graph) for node in graph.node)
    return upgrade_opset(model)[0] if options.store == 4 or loops else model


def run(source: Artifact, options: Any, env: Env) -> Artifact:
    """Put the kernels in and write the model with its facts."""
    model = _raised(load_model(source.path), options)
    chosen, reasons = choose(model, options, env.context)
    # What the graph calls them, before it is changed.
    ops = {layer.node.name: layer.node.op_type for layer in chosen}
    absorbed = {layer.absorbed.name for layer in chosen if layer.absorbed is not None}
    limit = scheme_of(env.context).weight_limit
    bits = write(model, chosen, options, env, limit, source.inputs)
    save_model(model, env.work / source.entry)
    rows = [row for row in source.facts.get("requested", []) if row["layer"] not in absorbed]
    facts = {
        **source.facts,
        "requested": _merged(rows, ops, reasons),
        "dynamic": {"bits": bits, "layers": sorted(ops)},
        "notes": [*source.facts.get("notes", []), _note(ops, bits)],
    }
    artifact = Artifact.write(
        env.work, source.format, source.entry, source.inputs, source.outputs, facts
    )
    require_smaller(source, artifact)
    return require_drop_in(source, artifact)


def _merged(
    rows: list[dict[str, str]], ops: Mapping[str, str], reasons: Mapping[str, str]
) -> list[dict[str, str]]:
    """What was asked for so far, with this step's layers in their places or behind."""
    own = {
        name: {"layer": name, "op": op, "requested": "int8", "reason": DYNAMIC}
        for name, op in ops.items()
    }
    for name in [name for name, op in ops.items() if op in GATES]:  # the product before the loop
        own[f"{name}/W"] = {**own[name], "layer": f"{name}/W", "op": "MatMul"}
    made = []
    for row in rows:
        taken = own.pop(row["layer"], None)
        more = reasons.get(row["layer"]) if row["requested"] == "float32" else None
        made.append(taken or ({**row, "reason": more} if more else row))
    return [*made, *own.values()]


def _note(ops: Mapping[str, str], bits: Mapping[str, int]) -> str:
    kinds = sorted(set(ops.values()))
    counts = ", ".join(f"{list(ops.values()).count(kind)} {kind}" for kind in kinds)
    four = sum(1 for width in bits.values() if width == 4)
    stored = f"{four} of their {len(bits)} weights stored in 4 bits" if four else "weights in 8"
    return f"dynamic INT8, {DYNAMIC}: {counts}; {stored}"
