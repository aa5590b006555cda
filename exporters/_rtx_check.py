"""What a TensorRT-RTX engine computes in, layer by layer of the ONNX model it was compiled from."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from exporters._rtx_compile import Inputs, Outcome, Problem, compile_plan
from exporters._rtx_layers import EngineLayer, EngineTensor
from exporters._trt_graph import MULTIPLYING

_COMPUTING = frozenset({"correlation", "convolution", "gemm", "deconv"})
_CARRYING = frozenset({"Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze"})
_LIMIT_S = 300.0
_FAR = 4  # a constant of so much fewer values holds scales or biases, and no part of the weight
FOLDED = "folded"
_ASKED = ("int8", "fp8", "int4")


@dataclass(frozen=True)
class Row:
    """A layer with a constant weight.

    Attributes:
        node, op: in the model.
        macs: of one sample; 0 where nobody counted them.
        wanted: what the model asks for: `int8` or `fp8` where pairs stand on both sides, `int4`
            for weights in 4 bits beside floats.
        got: what the engine multiplies in (`int4` where it reads such weights as they are, beside
            floats); `folded` where it need not, since the other operand is constant in its eyes;
            empty where no engine layer could be told to be it.
        layer: the engine's layer.
    """

    node: str
    op: str
    macs: int
    wanted: str
    got: str
    layer: str

    @property
    def fell_back(self) -> bool:
        """Does it compute in something wider than the model asks for?"""
        return self.wanted in _ASKED and self.got not in {self.wanted, FOLDED}


def rows(model: Any, layers: Sequence[EngineLayer], macs: Mapping[str, int]) -> list[Row]:
    """Every Conv, ConvTranspose, Gemm and MatMul with a constant weight, as the engine runs it.

    Args:
        model: the `onnx.ModelProto` that was compiled; weights may be left out.
        layers: of the engine.
        macs: node → multiply-accumulates of one sample.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    sizes = {tensor.name: tensor for tensor in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type not in MULTIPLYING or len(node.input) < 2:
            continue
        weight = _stored(node.input[1], makers, sizes)
        if weight is None:
            continue
        got, layer = _computed(node.name, math.prod(weight.dims), layers)
        wanted = _wanted(node, makers, sizes)
        found.append(Row(node.name, node.op_type, macs.get(node.name, 0), wanted, got, layer))
    return found


def _stored(name: str, makers: Mapping[str, Any], weights: Mapping[str, Any]) -> Any | None:
    """The initializer a weight is made of."""
    through = _CARRYING | {"QuantizeLinear", "DequantizeLinear", "Cast"}
    while name in makers and makers[name].op_type in through:
        name = makers[name].input[0]
    return weights.get(name)


def _wanted(node: Any, makers: Mapping[str, Any], weights: Mapping[str, Any]) -> str:
    types = [_pair_type(name, makers, weights) for name in node.input[:2]]
    if types == ["", "int4"]:
        return "int4"
    return types[0] if types[0] == types[1] else ""


def _pair_type(name: str, makers: Mapping[str, Any], weights: Mapping[str, Any]) -> str:
    import onnx

    while name in makers and makers[name].op_type in _CARRYING:
        name = makers[name].input[0]
    node = makers.get(name)
    if node is None or node.op_type != "DequantizeLinear":
        return ""
    tensor = weights.get(node.input[2] if len(node.input) > 2 else node.input[0])
    known = {onnx.TensorProto.INT8: "int8", onnx.TensorProto.UINT8: "int8",
             onnx.TensorProto.FLOAT8E4M3FN: "fp8", onnx.TensorProto.INT4: "int4"}  # fmt: skip
    return known.get(tensor.data_type, "") if tensor is not None else "int8"


def _computed(name: str, values: int, layers: Sequence[EngineLayer]) -> tuple[str, str]:
    """The type a weight of so many values is multiplied in, and the engine's layer.

    A generated kernel names all it was fused of, so it counts only where it reads the weight.
    """
    named = [layer for layer in layers if name in layer.nodes]
    for layer in named:
        if layer.kind in _COMPUTING:
            return _type(_operands(layer, values)), layer.name
    for layer in named:
        if layer.inputs and any(c.values >= values > 1 for c in layer.constants):
            return _type(_operands(layer, values)), layer.name
    largest = max((c.values for layer in named for c in layer.constants), default=values)
    return (FOLDED if largest * _FAR <= values else ""), ""


def _operands(layer: EngineLayer, values: int) -> list[EngineTensor]:
    """What is multiplied: the first input, and the constant that can hold the weight."""
    large = [constant for constant in layer.constants if constant.values >= values]
    return [*layer.inputs[:1], *(large[:1] or layer.inputs[1:2])]


def _type(operands: Iterable[EngineTensor]) -> str:
    """The wider of two: an INT8 weight beside float activations is multiplied in float.

    Of one in 4 bits it is the weight's that is told, which saves what such a product waits for.
    """
    types = {operand.dtype for operand in operands}
    if "int4" in types:
        return "int4"
    wide = types - {"int8", "fp8"}
    return min(wide or types, default="")


def reread(model: Any) -> list[Problem]:
    """Dequantizations from unsigned 8 bits.

    The parser takes their integers as INT8 with the same scale and says so in a warning alone: it
    builds, and computes other numbers.
    """
    import onnx

    unsigned = {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.UINT8}
    text = "UINT8 integers are read as INT8 with the same scale: the numbers would be wrong"
    return [
        Problem(node.name, text)
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and unsigned & {*node.input}
    ]


def counts(found: Sequence[Row]) -> dict[str, Any]:
    """Layers and MACs by the type they are multiplied in, and what is computed too wide."""
    by_type: dict[str, int] = {}
    for row in found:
        by_type[row.got or "unknown"] = by_type.get(row.got or "unknown", 0) + 1
    whole = sum(row.macs for row in found if row.got != FOLDED)
    shares = {}
    for kind in _ASKED:
        inside = sum(row.macs for row in found if row.got == kind)
        if kind == "int8" or kind in by_type:
            shares[f"{kind}_mac_share"] = round(inside / whole, 6) if whole else None
    return {
        "by_type": dict(sorted(by_type.items())),
        **shares,
        "fell_back": [row.node for row in found if row.fell_back],
    }


def problems(model: Any, outcome: Outcome, found: Sequence[Row]) -> list[Problem]:
    """All that keeps a model from running as it asks: refusals, rereadings, layers in float."""
    wide = [
        Problem(
            row.node,
            f"the model asks for {row.wanted}, the engine computes in {row.got or '?'}",
        )
        for row in found
        if row.fell_back and outcome.compiled
    ]
    return [*outcome.problems, *reread(model), *wide]


def proxy_check(
    path: Path,
    capabilities: Sequence[int],
    inputs: Inputs,
    macs: Mapping[str, int],
    *,
    limit_s: float = _LIMIT_S,
) -> dict[str, Any]:
    """What TensorRT-RTX makes of a model that is meant for TensorRT: `rtx` in `trt.json`.

    It has the same ONNX parser and fuses by the same rules, but has no code for Jetson and is not
    what runs there. No plan is kept.

    Args:
        path: the ONNX file.
        capabilities: of `_rtx_compile.CAPABILITIES`.
        inputs: names and shapes, for those with free dimensions.
        macs: node → multiply-accumulates, to weigh layers with.
        limit_s: longest time for it.
    """
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "proxy.rtx.plan"
        outcome = compile_plan(path, plan, capabilities, inputs, limit_s=limit_s)
    return described(path, outcome, capabilities, macs)


def described(
    path: Path, outcome: Outcome, capabilities: Sequence[int], macs: Mapping[str, int]
) -> dict[str, Any]:
    """The outcome for the model in `path` as plain JSON, the same every time."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    found = rows(model, outcome.layers, macs) if outcome.compiled else []
    return {
        "version": outcome.version,
        "compute_capabilities": list(capabilities),
        "compiled": outcome.compiled,
        "plan_bytes": outcome.plan_bytes,
        "layers": counts(found),
        "problems": [asdict(problem) for problem in problems(model, outcome, found)],
        "text": sentence(outcome, capabilities),
        "why_not": outcome.why_not,
    }


def sentence(outcome: Outcome, capabilities: Sequence[int]) -> str:
    """What was compiled, and that it is not what a Jetson runs."""
    if not outcome.compiled:
        return "not compiled with TensorRT-RTX; Orin/Thor engine not built"
    version = ".".join(outcome.version.split(".")[:3])
    targets = ", ".join(f"SM{number}" for number in capabilities)
    return f"compiled for {targets} with TensorRT-RTX {version}; Orin/Thor engine not built"


def in_a_sentence(found: Mapping[str, Any]) -> str:
    """A note for the user: what was compiled or why not, and how much of it in few bits."""
    if not found["compiled"]:
        return f"{found['text']} ({found['why_not']})"
    words = {"int8": "in INT8", "fp8": "in FP8", "int4": "with INT4 weights"}
    shares = {kind: found["layers"].get(f"{kind}_mac_share") for kind in words}
    told = [f"{share:.1%} {words[kind]}" for kind, share in shares.items() if share]
    inside = f" ({', '.join(told)} of the multiplications by weights)" if told else ""
    return f"{found['text']}{inside}"
