"""Pairs of activations as TensorRT takes them: INT8 around 0, one scalar scale, and where they pay.

Models of other quantizers come with unsigned activations, scales of shape [1], and pairs that keep
TensorRT from fusing. Every edit here is exact, but for the grid of unsigned activations, which has
half the levels once it is signed (their range stays), and for scales that get merged.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from exporters._onnx_graph import attribute
from exporters._trt_edit import Editor, point
from exporters._trt_graph import ACTIVATIONS, CONVOLUTIONS, DEQUANTIZE, MULTIPLYING, QUANTIZE, View

_POSITIVE = frozenset({"Relu", "Sigmoid", "HardSigmoid", "Softmax", "Abs", "Exp", "Softplus"})
_MOVING = frozenset(
    {"AveragePool", "Concat", "Flatten", "GlobalAveragePool", "MaxPool", "ReduceMean", "Reshape",
     "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)  # fmt: skip
_KEEPING = frozenset(
    {"DepthToSpace", "Flatten", "Gather", "MaxPool", "Relu", "Reshape", "Resize", "Slice", "Split",
     "Squeeze", "Transpose", "Unsqueeze"}
)  # fmt: skip


def recentre(edit: Editor) -> int:
    """Make unsigned activations INT8 around 0; returns how many Q and DQ nodes that were.

    UINT8 with zero point 0 covers [0, 255·s], INT8 does with 255/127·s; a Relu cuts what is below,
    as the unsigned grid did, where it is not known to be positive. UINT8 around 128 is INT8 around
    0. Other zero points stay, and the checker refuses them: what they cut off on one side, a
    symmetric grid would not.
    """
    found = [n for n in edit.view.nodes(QUANTIZE, DEQUANTIZE) if not _is_constant(edit.view, n)]
    plans = [(node, factor) for node in found if (factor := _widening(edit.view, node))]
    wider = [node for node, factor in plans if factor > 1 and node.op_type == QUANTIZE]
    positive = {node.name for node in wider if not _positive(edit.view, node.input[0])}
    scales: dict[tuple[str, float], str] = {}
    zero = edit.constant("zero", np.zeros((), np.int8)) if plans else ""
    for node, factor in plans:
        key = node.input[1], factor
        if key not in scales:
            scale = np.asarray(edit.view.scale(node))
            wide = (scale.astype(np.float64) * factor).astype(scale.dtype)
            scales[key] = edit.constant(node.input[1] + "/signed", wide)
        zeros = np.asarray(edit.view.zero(node))
        own = edit.constant("zeros", np.zeros(zeros.shape, np.int8)) if zeros.ndim else zero
        if node.name in positive:
            node.input[0] = edit.node("Relu", [node.input[0]], node.input[0] + "/positive")
        node.input[1:] = [scales[key], own]
    edit.changed()
    return len(plans)


def _is_constant(view: View, node: Any) -> bool:
    return node.input[0] in view.weights or (node.op_type == DEQUANTIZE and view.is_weight(node))


def _widening(view: View, node: Any) -> float:
    """By what its scale grows when its integers become signed; 0 where they are, or cannot."""
    kind, zero = view.kind(node), view.zero(node)
    if zero is None or view.scale(node) is None:
        return 0.0
    if (kind == "uint8" and not zero.any()) or (kind == "int8" and (zero == -128).all()):
        return 255 / 127
    return 1.0 if kind == "uint8" and (zero == 128).all() else 0.0


def _positive(view: View, name: str) -> bool:
    node = view.makers.get(name)
    if node is None:
        return False
    if node.op_type in _POSITIVE:
        return True
    if node.op_type == "Clip":
        low = view.array(node.input[1]) if len(node.input) > 1 and node.input[1] else None
        return low is not None and float(low) >= 0
    values = node.input if node.op_type == "Concat" else node.input[:1]
    return node.op_type in _MOVING and all(_positive(view, n) for n in values)


def one_scale(edit: Editor) -> list[str]:
    """Give each activation one scale without dimensions; names of those that had several.

    Several scales become the largest of them, which holds all channels.
    """
    merged = []
    made: dict[str, str] = {}
    for node in edit.view.nodes(QUANTIZE, DEQUANTIZE):
        scale, zero = edit.view.scale(node), edit.view.zero(node)
        if scale is None or zero is None or not scale.ndim or _is_constant(edit.view, node):
            continue
        if zero.any():
            continue  # the checker refuses it
        if scale.size > 1 and node.op_type == QUANTIZE:
            merged.append(node.input[0])
        old = node.input[1]
        if old not in made:
            made[old] = edit.constant(old + "/scalar", np.asarray(scale.max(), scale.dtype))
        given = edit.view.kind(node) in {"int8", "uint8"} or len(node.input) > 2
        kind = zero.dtype if given else None
        del node.input[1:]
        node.input.append(made[old])
        if kind is not None:
            node.input.append(edit.constant("zero", np.zeros((), kind)))
        keep = [a for a in node.attribute if a.name != "axis"]
        del node.attribute[:]
        node.attribute.extend(keep)
    edit.changed()
    return merged


def in_front(edit: Editor) -> int:
    """Repeat a pair in front of a product that reads it through nodes which only move values.

    What lies on the grid stays where it is; TensorRT sees that the product runs in integers.
    """
    count = 0
    for node in edit.view.nodes(*MULTIPLYING):
        if edit.view.weight(node.input[1]) is None or edit.view.pair(node.input[0]) is not None:
            continue
        made = _moved(edit.view, node.input[0])
        quantize = None if made is None else edit.view.quantizer(made)
        scale = None if made is None else edit.view.scale(made)
        if made is None or quantize is None or scale is None or scale.size > 1:
            continue
        source = node.input[0]
        integers = edit.node(QUANTIZE, [source, *quantize.input[1:]], source + "/q")
        node.input[0] = edit.node(DEQUANTIZE, [integers, *made.input[1:]], source + "/dq")
        count += 1
    edit.changed()
    return count


def _moved(view: View, name: str) -> Any | None:
    """The pair whose values `name` holds, behind one node or more that only move them."""
    node = view.maker(name, *_KEEPING)
    if node is None or (node.op_type == "Resize" and attribute(node, "mode", b"") != b"nearest"):
        return None
    made = view.pair(node.input[0])
    return made if made is not None else _moved(view, node.input[0])


def behind_activations(edit: Editor) -> int:
    """Leave no pair between a convolution and its activation, which are fused then.

    A Relu that products read gets the pair behind itself: the same numbers. Other activations, and
    those that a pair follows, read the convolution before it is rounded.
    """
    count = 0
    for node in edit.view.nodes(*ACTIVATIONS):
        made = edit.view.pair(node.input[0])
        quantize = None if made is None else edit.view.quantizer(made)
        layer = None if quantize is None else edit.view.maker(quantize.input[0], *CONVOLUTIONS)
        if made is None or quantize is None or layer is None:
            continue
        readers = edit.view.readers.get(node.output[0], [])
        followed = all(reader.op_type == QUANTIZE for reader in readers)
        if node.op_type == "Relu" and not followed and _around_zero(edit.view, made):
            integers = edit.node(QUANTIZE, [node.output[0], *quantize.input[1:]], node.name + "/q")
            paired = edit.node(DEQUANTIZE, [integers, *made.input[1:]], node.name + "/dq")
            for reader in readers:
                point(reader, node.output[0], paired)
        node.input[0] = layer.output[0]
        count += 1
    edit.drop_unread()
    return count


def _around_zero(view: View, node: Any) -> bool:
    zero = view.zero(node)
    return zero is not None and not zero.any()


def float_branches(edit: Editor) -> int:
    """Let a residual Add read the convolution before it, and not through a pair.

    TensorRT fuses the two; the other branch keeps its pair. Of two convolutions the later one is
    fused.
    """
    count = 0
    order = {node.name: i for i, node in enumerate(edit.graph.node)}
    for add in edit.view.nodes("Add"):
        pairs = {name: edit.view.pair(name) for name in add.input}
        if len(pairs) < 2 or any(made is None for made in pairs.values()):
            continue
        layers = {name: _branch(edit.view, made) for name, made in pairs.items()}
        found = {name: layer for name, layer in layers.items() if layer is not None}
        if not found:
            continue
        name, layer = max(found.items(), key=lambda pair: order[pair[1].name])
        point(add, name, layer.output[0])
        count += 1
    edit.drop_unread()
    return count


def _branch(view: View, made: Any) -> Any | None:
    """The convolution behind a pair that a single node reads."""
    quantize = None if made is None else view.quantizer(made)
    if quantize is None or view.only_reader(made.output[0]) is None:
        return None
    layer = view.maker(quantize.input[0], *CONVOLUTIONS)
    if layer is None or view.only_reader(layer.output[0]) is None:
        return None
    return layer if view.pair(layer.input[0]) is not None else None


def before_rounding(edit: Editor) -> int:
    """Let a Concat that a pair follows read tensors of other scales before they are quantized."""
    count = 0
    for node in edit.view.nodes("Concat"):
        behind = [r for r in edit.view.readers.get(node.output[0], []) if r.op_type == QUANTIZE]
        wanted = {_value(edit.view, made) for made in behind}
        for name in dict.fromkeys(node.input):
            made = edit.view.pair(name)
            quantize = None if made is None else edit.view.quantizer(made)
            if made is None or quantize is None or not behind:
                continue
            if {_value(edit.view, made)} != wanted:
                point(node, name, quantize.input[0])
                count += 1
    edit.drop_unread()
    return count


def _value(view: View, node: Any) -> float:
    scale = view.scale(node)
    return float(scale) if scale is not None and scale.size == 1 else float("nan")
