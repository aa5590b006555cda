"""What operators without layers of weights do to channels: keep, tie, join, move or freeze them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from compressor.pruning.onnx_trace import Shape, Tracer
from compressor.pruning.onnx_units import Ids, Label, numbers
from exporters._onnx_graph import attribute

Rule = Callable[[Tracer, Any], None]


def same(t: Tracer, node: Any) -> None:
    """Values change one by one; further inputs are single numbers."""
    label = t.label(node.input[0])
    if label is None:
        return
    if any(np.prod(t.shapes[name]) > 1 for name in node.input[1:] if name):
        t.refuse(label, node, "takes more than one number beside its input")
    t.mark(node.output[0], label.axis, label.ids)


def elementwise(t: Tracer, node: Any) -> None:
    """Broadcast operators: channels of all inputs are tied, constants shrink with them."""
    rank = len(t.shapes[node.output[0]])
    found = [(name, label) for name in node.input if (label := t.label(name)) is not None]
    if not found:
        return
    places = {label.axis + rank - len(t.shapes[name]) for name, label in found}
    wide = max(len(label.ids) for _, label in found)
    if len(places) > 1:
        for _, label in found:
            t.refuse(label, node, "meets these channels along different axes")
        return
    (axis,) = places
    full = [label for _, label in found if len(label.ids) == wide]
    for _, label in found:
        if len(label.ids) < wide:
            t.refuse(label, node, "broadcasts them over others")
    for label in full[1:]:
        t.trace.units.tie(full[0].ids, label.ids)
    for name in node.input:
        if t.label(name) is None:
            _beside(t, node, name, axis - rank, full[0])
    t.mark(node.output[0], axis, full[0].ids)


def _beside(t: Tracer, node: Any, name: str, back: int, label: Label) -> None:
    """An input without channels of its own meets them at axis `back`, counted from the end."""
    shape = t.shapes[name] if name else ()
    if len(shape) < -back or shape[back] == 1:
        return
    if name in t.weights and shape[back] == len(label.ids):
        t.cut(name, len(shape) + back, label.ids, node, "pass")
    else:
        t.refuse(label, node, f"combines them with {name}, whose width is fixed")


def batch_norm(t: Tracer, node: Any) -> None:
    """Scale, bias, mean and variance shrink; also those of an instance normalization."""
    label = t.label(node.input[0])
    if label is None:
        return
    if label.axis != 1 or any(name not in t.weights for name in node.input[1:]):
        t.refuse(label, node, "has statistics that are no constants, or another channel axis")
        return
    for name in node.input[1:]:
        t.cut(name, 0, label.ids, node, "pass")
    t.mark(node.output[0], 1, label.ids)


def pool(t: Tracer, node: Any) -> None:
    """Positions are reduced, channels stay."""
    label = t.label(node.input[0])
    if label is None:
        return
    if label.axis != 1 or any(node.output[1:]):
        t.refuse(label, node, "pools over them, or gives indices")
    t.mark(node.output[0], 1, label.ids)


def along(t: Tracer, node: Any) -> None:
    """Softmax and norms: they mix values along axes, which channels may not be."""
    label = t.label(node.input[0])
    if label is None:
        return
    flat = node.op_type != "LayerNormalization" and t.opset < 13
    axis = int(attribute(node, "axis", 1 if flat else -1)) % len(t.shapes[node.input[0]])
    behind = flat or node.op_type == "LayerNormalization"
    if label.axis == axis or (behind and label.axis > axis):
        t.refuse(label, node, "mixes them")
    t.mark(node.output[0], label.axis, label.ids)


def reduce(t: Tracer, node: Any) -> None:
    """Reductions over other axes."""
    label = t.label(node.input[0])
    if label is None:
        return
    rank = len(t.shapes[node.input[0]])
    axes = attribute(node, "axes", None)
    if axes is None and len(node.input) > 1 and node.input[1] in t.weights:
        axes = numbers(t.weights[node.input[1]])
    gone = sorted({int(a) % rank for a in axes or range(rank)})
    if label.axis in gone:
        t.refuse(label, node, "reduces over them")
        return
    kept = bool(attribute(node, "keepdims", 1))
    t.mark(node.output[0], label.axis - (0 if kept else sum(a < label.axis for a in gone)),
           label.ids)  # fmt: skip


def concat(t: Tracer, node: Any) -> None:
    """Channels stand one behind the other; along another axis they are tied."""
    labels = [t.label(name) for name in node.input]
    known = [label for label in labels if label is not None]
    if not known:
        return
    axis = int(attribute(node, "axis", 0)) % len(t.shapes[node.output[0]])
    if any(label.axis != known[0].axis for label in known):
        for label in known:
            t.refuse(label, node, "meets these channels along different axes")
    elif known[0].axis == axis:
        t.mark(node.output[0], axis, np.concatenate([_or_fixed(t, node, n) for n in node.input]))
    else:
        for name, other in zip(node.input, labels, strict=True):
            if other is None:
                t.refuse(known[0], node, f"joins them with {name}, whose width is fixed")
            else:
                t.trace.units.tie(known[0].ids, other.ids)
        t.mark(node.output[0], known[0].axis, known[0].ids)


def _or_fixed(t: Tracer, node: Any, name: str) -> Ids:
    label = t.label(name)
    if label is not None:
        return label.ids
    axis = int(attribute(node, "axis", 0))
    ids = t.trace.units.new(t.shapes[name][axis])
    t.trace.units.freeze(ids, node.name, f"{node.op_type} joins them with {name}: fixed width")
    return ids


def split(t: Tracer, node: Any) -> None:
    """Parts of the channels, or all of them at parts of the positions."""
    label = t.label(node.input[0])
    if label is None:
        return
    axis = int(attribute(node, "axis", 0)) % len(t.shapes[node.input[0]])
    if axis != label.axis:
        for name in filter(None, node.output):
            t.mark(name, label.axis, label.ids)
        return
    sizes = node.input[1] if len(node.input) > 1 else ""
    widths = [t.shapes[name][axis] for name in node.output]
    ends = np.cumsum([0, *widths])
    for i, name in enumerate(node.output):
        part = label.ids[ends[i] : ends[i + 1]]
        t.mark(name, axis, part)
        if sizes in t.weights:
            t.size(sizes, i, part)
    if sizes not in t.weights:
        t.refuse(label, node, "divides them by sizes that are no constant input")


def transpose(t: Tracer, node: Any) -> None:
    """The axis moves."""
    label = t.label(node.input[0])
    if label is None:
        return
    rank = len(t.shapes[node.input[0]])
    order = [int(a) for a in attribute(node, "perm", list(range(rank))[::-1])]
    t.mark(node.output[0], order.index(label.axis), label.ids)


def gather(t: Tracer, node: Any) -> None:
    """Indices along another axis."""
    for name in node.input[1:]:
        t.refuse(t.label(name), node, "takes them as indices")
    label = t.label(node.input[0])
    if label is None:
        return
    axis = int(attribute(node, "axis", 0)) % len(t.shapes[node.input[0]])
    if axis == label.axis:
        t.refuse(label, node, "picks some of them")
        return
    more = len(t.shapes[node.input[1]]) - 1 if axis < label.axis else 0
    t.mark(node.output[0], label.axis + more, label.ids)


def unmoved(t: Tracer, node: Any) -> None:
    """Padding, resizing and slicing along other axes; sizes in constants follow."""
    label = t.label(node.input[0])
    if label is None:
        return
    before, after = t.shapes[node.input[0]], t.shapes[node.output[0]]
    fixed = len(before) == len(after) and before[label.axis] == after[label.axis]
    if not fixed or (node.op_type == "Slice" and label.axis in _sliced(t, node, len(before))):
        t.refuse(label, node, "changes how many there are")
        return
    sizes = node.input[3] if node.op_type == "Resize" and len(node.input) > 3 else ""
    axes = attribute(node, "axes", None) if sizes else None
    if sizes and (sizes not in t.weights or axes is not None):
        t.refuse(label, node, "computes its sizes")
    elif sizes:
        t.size(sizes, label.axis, label.ids)
    t.mark(node.output[0], label.axis, label.ids)


def _sliced(t: Tracer, node: Any, rank: int) -> set[int]:
    """Axes a Slice may change: all where they are computed."""
    axes = attribute(node, "axes", None)
    if axes is None and len(node.input) > 3 and node.input[3] in t.weights:
        axes = numbers(t.weights[node.input[3]])
    return {int(a) % rank for a in (range(rank) if axes is None else axes)}


def reshape(t: Tracer, node: Any) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze: the block of axes that channels lie in."""
    label = t.label(node.input[0])
    if label is None:
        return
    found = regrouped(t.shapes[node.input[0]], t.shapes[node.output[0]], label)
    if found is None:
        t.refuse(label, node, "splits them, or mixes them with the batch")
        return
    if node.op_type == "Reshape":
        target = t.weights.get(node.input[1])
        if target is None:
            t.refuse(label, node, "computes its shape")
        elif numbers(target)[found.axis] > 0:
            t.size(target.name, found.axis, found.ids)
        elif numbers(target)[found.axis] == 0 and len(found.ids) != len(label.ids):
            t.refuse(label, node, "copies a size that changes")
    t.mark(node.output[0], found.axis, found.ids)


def regrouped(before: Shape, after: Shape, label: Label) -> Label | None:
    """Where channels stand after a reshape; None where they are split or mixed with the batch."""
    for ins, outs in _blocks(before, after):
        if label.axis not in ins:
            continue
        if len(outs) != 1 or (len(ins) > 1 and 0 in ins):
            return None
        left = int(np.prod([before[a] for a in ins if a < label.axis], dtype=np.int64))
        right = int(np.prod([before[a] for a in ins if a > label.axis], dtype=np.int64))
        return Label(outs[0], np.tile(np.repeat(label.ids, right), left))
    return None


def _blocks(before: Shape, after: Shape) -> list[tuple[list[int], list[int]]]:
    """Runs of axes (sizes of one left out) whose products are equal, as short as possible."""
    ins: Sequence[int] = [a for a, size in enumerate(before) if size != 1]
    outs: Sequence[int] = [a for a, size in enumerate(after) if size != 1]
    found = []
    i = j = 0
    while i < len(ins) and j < len(outs):
        first, second = [ins[i]], [outs[j]]
        left, right = before[ins[i]], after[outs[j]]
        while left != right:
            if left < right:
                i += 1
                first.append(ins[i])
                left *= before[ins[i]]
            else:
                j += 1
                second.append(outs[j])
                right *= after[outs[j]]
        found.append((first, second))
        i, j = i + 1, j + 1
    return found


def shape_of(t: Tracer, node: Any) -> None:
    """Sizes are read at run time: they follow by themselves."""


_SAME = (
    "Relu", "LeakyRelu", "Sigmoid", "Tanh", "Elu", "Celu", "Selu", "ThresholdedRelu", "HardSwish",
    "HardSigmoid", "Clip", "Erf", "Gelu", "Mish", "Softplus", "Softsign", "Sqrt", "Exp", "Log",
    "Abs", "Neg", "Reciprocal", "Sign", "Floor", "Ceil", "Round", "Identity", "Dropout", "Cast",
)  # fmt: skip
_ELEMENTWISE = ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Mean", "PRelu")
_POOLS = ("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
_REDUCTIONS = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2")
RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_SAME, same),
    **dict.fromkeys(_ELEMENTWISE, elementwise),
    **dict.fromkeys(_POOLS, pool),
    **dict.fromkeys(_REDUCTIONS, reduce),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), batch_norm),
    **dict.fromkeys(("Softmax", "LogSoftmax", "LayerNormalization"), along),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), reshape),
    **dict.fromkeys(("Pad", "Resize", "Upsample", "Slice"), unmoved),
    "Concat": concat,
    "Split": split,
    "Transpose": transpose,
    "Gather": gather,
    "Shape": shape_of,
}
