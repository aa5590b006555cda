"""What TensorRT takes of a model with Q/DQ pairs, node by node, from the file alone.

An `error` is refused by TensorRT's parser or, worse, read as something else; a `warning` blocks a
fusion, so that a layer runs in float; a `note` is for the user to know. The rules are those of
TensorRT's documentation on explicit quantization and of its ONNX parser; those on scales of shape
[1], on what a Concat joins and on operators were seen in TensorRT-RTX 1.7.1, whose parser it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from exporters._onnx_graph import STANDARD_DOMAINS, all_nodes, attribute, output_axis
from exporters._trt_graph import ACTIVATIONS, CONVOLUTIONS, DEQUANTIZE, MULTIPLYING, QUANTIZE, View
from exporters._trt_profiles import Shapes, shape_flag, without_range
from exporters._trt_weights import weight_alone
from runtimes.types import TensorSpec

# Operators of ONNX that TensorRT's parser has no importer for (asked of TensorRT-RTX 1.7.1's).
UNSUPPORTED = frozenset(
    {"AffineGrid", "Bernoulli", "BitCast", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr",
     "BitwiseXor", "CenterCropPad", "Col2Im", "Compress", "ConcatFromSequence", "ConvInteger",
     "CumProd", "DFT", "DeformConv", "Det", "DynamicQuantizeLinear", "ImageDecoder",
     "MatMulInteger", "MaxRoiPool", "MaxUnpool", "MelWeightMatrix", "Multinomial",
     "NegativeLogLikelihoodLoss", "Optional", "OptionalGetElement", "OptionalHasElement",
     "QLinearConv", "QLinearMatMul", "RegexFullMatch", "SequenceAt", "SequenceConstruct",
     "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength", "SequenceMap",
     "SoftmaxCrossEntropyLoss", "SplitToSequence", "StringConcat", "StringNormalizer",
     "StringSplit", "SwiGLU", "TfIdfVectorizer", "Unique"}
)  # fmt: skip
_WEIGHT_KINDS = frozenset({"int8", "int4", "float8e4m3fn", "float4e2m1"})
_KINDS = frozenset({"int8", "float8e4m3fn"})
_FOUR_BITS = frozenset({"int4", "uint4", "float4e2m1"})
_SMALLEST = 2.0**-17  # float16 holds 7 bits of it, and fewer of what is smaller
Level = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One place where a rule does not hold: what is there, and what to change."""

    rule: str
    level: Level
    node: str
    text: str
    fix: str = ""

    def to_json(self) -> dict[str, str]:
        """As `trt.json` holds it."""
        text = f"{self.text}; {self.fix}" if self.fix else self.text
        return {"rule": self.rule, "level": self.level, "node": self.node, "text": text}


_Rule = Callable[[View], Iterator[Finding]]


def findings(
    model: Any, inputs: Sequence[TensorSpec] = (), shapes: Shapes | None = None
) -> list[Finding]:
    """Every place of `model` where a rule does not hold, in the order of the rules.

    Args:
        model: the `onnx.ModelProto`.
        inputs: its inputs, whose free dimensions need a range.
        shapes: ranges that are known, as in `Context.shapes`.
    """
    view = View(model)
    found = [*_operators(model)]
    for rule in _RULES:
        found += rule(view)
    found += _free(inputs, shapes or {})
    return sorted(found, key=lambda one: one.rule)


def _operators(model: Any) -> Iterator[Finding]:
    for node in all_nodes(model):
        standard = node.domain in STANDARD_DOMAINS
        if standard and node.op_type not in UNSUPPORTED and not node.op_type.startswith("QLinear"):
            continue
        fix = "write this part of the model with standard operators"
        if "Integer" in node.op_type or node.op_type.startswith(("QLinear", "DynamicQuantize")):
            fix = "hand in the float model, or one quantized in QDQ format"
        name = node.op_type if standard else f"{node.domain}::{node.op_type}"
        yield Finding("R01", "error", node.name, f"TensorRT has no operator {name}", fix)


def _constants(view: View) -> Iterator[Finding]:
    for node in view.nodes(QUANTIZE, DEQUANTIZE):
        if view.scale(node) is None or view.zero(node) is None:
            text = "its scale or zero point is computed, and TensorRT takes constants"
            yield Finding("R02", "error", node.name, text, "quantize statically, with calibration")


def _zero_points(view: View) -> Iterator[Finding]:
    for node in view.nodes(QUANTIZE, DEQUANTIZE):
        zero = view.zero(node)
        if zero is not None and zero.astype(np.float32).any():
            values = np.unique(zero.astype(np.int64)).tolist()
            text = f"zero point {', '.join(map(str, values[:3]))}, and TensorRT takes 0 only"
            fix = "quantize symmetrically (ONNX Runtime: ActivationSymmetric, WeightSymmetric)"
            yield Finding("R03", "error", node.name, text, fix)


def _types(view: View) -> Iterator[Finding]:
    for node in view.nodes(QUANTIZE, DEQUANTIZE):
        kind = view.kind(node)
        weight = node.op_type == DEQUANTIZE and view.is_weight(node)
        if kind == "int32" and weight:
            continue  # R11
        if kind not in (_WEIGHT_KINDS if weight else _KINDS):
            more = ", which it reads as INT8 with the same scale" if kind == "uint8" else ""
            text = f"{kind.upper() or 'an unknown type'}{more}"
            yield Finding("R04", "error", node.name, text, "quantize to INT8, signed")


def _opset(view: View) -> Iterator[Finding]:
    for node in view.nodes(QUANTIZE, DEQUANTIZE):
        scale = view.scale(node)
        need = 13 if scale is not None and scale.ndim else 10
        kind = view.kind(node)
        if (scale is not None and scale.dtype != np.float32) or kind.startswith("float8"):
            need = 19
        if kind in _FOUR_BITS or attribute(node, "block_size", 0):
            need = 21
        if view.opset < need:
            text = f"operator set {view.opset}, and what it does needs {need}"
            yield Finding("R05", "error", node.name, text, f"export with operator set {need}")


def _scales(view: View) -> Iterator[Finding]:
    for node in view.nodes(QUANTIZE, DEQUANTIZE):
        scale = view.scale(node)
        if scale is None:
            continue
        values = scale.astype(np.float64)
        if not (np.isfinite(values) & (values > 0)).all():
            text = "a scale that is zero, negative or no number"
            yield Finding("R06", "error", node.name, text, "calibrate again, on other data")
        elif scale.dtype == np.float16 and (values < _SMALLEST).any():
            text = f"a scale of {values.min():.2g}, of which float16 holds fewer than 7 bits"
            yield Finding("R06", "warning", node.name, text, "keep this layer in float32")


def _per_tensor(view: View) -> Iterator[Finding]:
    for node in view.nodes(QUANTIZE):
        scale = view.scale(node)
        if scale is not None and scale.size > 1 and node.input[0] not in view.weights:
            text = f"{scale.size} scales for one activation"
            fix = "one scale per tensor (NNCF: QuantizationParameters(per_channel=False))"
            yield Finding("R07", "error", node.name, text, fix)


def _weights(view: View) -> Iterator[tuple[Any, Any, Any]]:
    """(layer, DequantizeLinear, integers) of every quantized weight."""
    for node in view.nodes(*MULTIPLYING):
        made = view.weight(node.input[1])
        if made is not None:
            yield node, made, view.array(made.input[0])


def _axes(view: View) -> Iterator[Finding]:
    for node, made, integers in _weights(view):
        scale = view.scale(made)
        if scale is None or scale.size == 1 or attribute(made, "block_size", 0):
            continue
        rank = scale.ndim if integers is None else integers.ndim
        have, want = attribute(made, "axis", 1) % max(rank, 1), output_axis(node, rank)
        if integers is not None and have != want:
            text = f"scales of its weight on axis {have}, and output channels are on {want}"
            yield Finding("R08", "error", node.name, text, "one scale per output channel")


def _range(view: View) -> Iterator[Finding]:
    for node, _, integers in _weights(view):
        if integers is not None and integers.dtype == np.int8 and (integers == -128).any():
            yield Finding("R09", "note", node.name, "a weight of -128, outside [-127, 127]")


def _both_sides(view: View) -> Iterator[Finding]:
    for node in view.nodes(*MULTIPLYING):
        if weight_alone(view, node):
            continue  # R20
        left, right = view.pair(node.input[0]), view.maker(node.input[1], DEQUANTIZE)
        if (left is None) == (right is None):
            continue
        one = "its input" if left is None else "its weight"
        text = f"runs in float: {one} is not quantized, and its other operand is"
        yield Finding("R10", "warning", node.name, text, "quantize both, or neither")


def _biases(view: View) -> Iterator[Finding]:
    for node in view.nodes(DEQUANTIZE):
        if view.kind(node) == "int32":
            text = "INT32 behind a DequantizeLinear, which TensorRT does not read"
            fix = "keep biases in float (ONNX Runtime: QuantizeBias=False)"
            yield Finding("R11", "error", node.name, text, fix)


def _activations(view: View) -> Iterator[Finding]:
    for node in view.nodes(*ACTIVATIONS):
        pair = view.pair(node.input[0])
        quantizer = None if pair is None else view.quantizer(pair)
        layer = None if quantizer is None else view.maker(quantizer.input[0], *CONVOLUTIONS)
        if layer is not None:
            text = f"a pair between {layer.name} and its activation, which are not fused for it"
            yield Finding("R12", "warning", node.name, text, "put the pair behind the activation")


def _norms(view: View) -> Iterator[Finding]:
    for node in view.nodes("BatchNormalization"):
        layer = view.maker(node.input[0], *CONVOLUTIONS)
        if layer is not None and layer.input[1] not in view.weights:
            text = f"not folded into {layer.name}, whose weight is quantized"
            yield Finding("R13", "warning", node.name, text, "fold it before quantizing")


def _groups(view: View) -> Iterator[Finding]:
    for node in view.nodes("Conv"):
        groups = attribute(node, "group", 1)
        pair = view.pair(node.input[0])
        if groups > 1 and pair is not None:
            kind = "INT8" if view.kind(pair) == "int8" else "8 bits"
            text = f"{groups} groups in {kind}: FP16 may be as fast, time both on the device"
            yield Finding("R14", "note", node.name, text)


def _residuals(view: View) -> Iterator[Finding]:
    for node in view.nodes("Add"):
        branches = [n for n in node.input if _integer_convolution(view, view.makers.get(n))]
        if not branches:
            for name in node.input:
                pair = view.pair(name)
                quantizer = None if pair is None else view.quantizer(pair)
                made = None if quantizer is None else view.makers.get(quantizer.input[0])
                if made is not None and _integer_convolution(view, made):
                    text = f"a pair between {made.name} and it, so that they are not fused"
                    fix = "leave the branch float, and quantize the skip branch alone"
                    yield Finding("R15", "warning", node.name, text, fix)
                    break
            continue
        others = [n for n in node.input if n != branches[0] and n not in view.weights]
        if others and not any(view.pair(name) for name in others) and not _broadcast(view, others):
            text = "its skip branch is float, and so is what the fused convolution gives"
            yield Finding("R15", "warning", node.name, text, "quantize the skip branch")


def _integer_convolution(view: View, node: Any) -> bool:
    return (
        node is not None
        and node.op_type in CONVOLUTIONS
        and view.pair(node.input[0]) is not None
        and view.only_reader(node.output[0]) is not None
    )


def _broadcast(view: View, names: Sequence[str]) -> bool:
    """Is it, say, a vector from an embedding, which is no skip branch?"""
    return any(view.maker(name, "Unsqueeze", "Reshape", "Expand") for name in names)


def _joined(view: View) -> Iterator[Finding]:
    for node in view.nodes("Concat"):
        makers = [view.pair(name) for name in node.input if name not in view.weights]
        scales = {_bytes(view.scale(made)) for made in makers if made is not None}
        behind = [r for r in view.readers.get(node.output[0], []) if r.op_type == QUANTIZE]
        if not scales or not behind:
            continue
        scales |= {_bytes(view.scale(made)) for made in behind}
        if len(scales) > 1:
            text = "it joins integers of different scales: what reads it next runs in float"
            fix = "one scale for all, or read them before they are quantized"
            yield Finding("R16", "warning", node.name, text, fix)


def _bytes(scale: Any) -> bytes:
    return b"" if scale is None else np.float32(scale).tobytes()


def _free(inputs: Sequence[TensorSpec], shapes: Shapes) -> Iterator[Finding]:
    for spec, dim in without_range(inputs, shapes):
        text = f"its dimension {dim} is free, and an engine is built for a range of sizes"
        yield Finding("R17", "error", spec.name, text, f"add {shape_flag(spec, shapes)}")


def _scalars(view: View) -> Iterator[Finding]:
    for node in view.nodes(QUANTIZE, DEQUANTIZE):
        scale = view.scale(node)
        own = node.op_type == DEQUANTIZE and view.is_weight(node)
        if scale is not None and scale.ndim and scale.size == 1 and not own:
            text = f"a scale of shape {list(scale.shape)}: the layer it feeds runs in float"
            yield Finding("R18", "warning", node.name, text, "a scalar without dimensions")


def _one_kind(view: View) -> Iterator[Finding]:
    kinds = {node.name: view.kind(node) for node in view.nodes(QUANTIZE)}
    if "int8" in kinds.values():
        for name, kind in kinds.items():
            if kind == "float8e4m3fn":
                text = "FP8 in a model that has INT8 as well: nobody documents what becomes of both"
                yield Finding("R19", "warning", name, text, "quantize all layers to one of them")


def _four_bits(view: View) -> Iterator[Finding]:
    for node, made, integers in _weights(view):
        if view.kind(made) not in _FOUR_BITS:
            continue
        if not weight_alone(view, node):
            text = "weights in 4 bits, which MatMul and Gemm of a matrix with floats alone multiply"
            yield Finding("R20", "warning", node.name, text, "keep it in float, or use INT8")
        elif attribute(made, "block_size", 0) in {0, max(integers.shape)}:
            text = "a scale for all columns of a channel: INT4 is written out anew at every call"
            fix = "scales by blocks of 128, 64, 32 or 16 columns"
            yield Finding("R20", "warning", node.name, text, fix)


_RULES: tuple[_Rule, ...] = (
    _constants, _zero_points, _types, _opset, _scales, _per_tensor, _axes, _range, _both_sides,
    _biases, _activations, _norms, _groups, _residuals, _joined, _scalars, _one_kind, _four_bits,
)  # fmt: skip
