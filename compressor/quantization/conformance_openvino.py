"""Whether the integers of an OpenVINO model are what its scheme declares, as NNCF writes them.

Activations are `FakeQuantize` layers whose bounds are the same on both sides; weights are
`Constant(i8)` → `Convert` → `Multiply(scale)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from compressor.quantization.conformance import Violation
from compressor.quantization.openvino_branches import nested_ops
from compressor.quantization.openvino_weights import RECURRENT_TYPES, WEIGHTED_TYPES
from exporters.base import QuantScheme

_GROUPED = frozenset({"GroupConvolution", "GroupConvolutionBackpropData"})
_OFF_GRID = 0.02  # of a step: how far bounds in float32 may move the level of 0


def openvino_violations(model: Any, scheme: QuantScheme) -> list[Violation]:
    """Every layer of an `openvino.Model`, in bodies too, that breaks `scheme`."""
    found: list[Violation] = []
    for op in nested_ops(model):
        kind = op.get_type_name()
        if kind == "FakeQuantize":
            found += _activation(op, scheme)
        elif kind in WEIGHTED_TYPES:
            found += _weight(op, scheme)
        elif kind in RECURRENT_TYPES:
            found += _recurrent(op)
    return found


def _activation(op: Any, scheme: QuantScheme) -> Iterator[Violation]:
    source = op.input_value(0).get_node()
    where, levels = source.get_friendly_name(), 1 << scheme.activation_bits
    if op.get_levels() != levels:
        yield Violation(where, "levels", str(levels), str(op.get_levels()))
    low, high, *out = (_constant(op.input_value(port).get_node()) for port in range(1, 5))
    if low is None or high is None or not (np.isfinite(low).all() and np.isfinite(high).all()):
        yield Violation(where, "bounds", "finite constants", "others")
        return
    if not all(np.array_equal(a, b) for a, b in zip((low, high), out, strict=True)):
        yield Violation(where, "bounds", "the same on both sides", "others after rounding")
    readers = {port.get_node().get_type_name() for port in op.output(0).get_target_inputs()}
    if low.size > 1 and not readers <= _GROUPED:
        yield Violation(where, "bounds", "one scale for the tensor", f"{low.size} of them")
    yield from _holds_zero(where, low, high)


def _holds_zero(where: str, low: Any, high: Any) -> Iterator[Violation]:
    """Padding is 0, so 0 must be a level."""
    if (low > 0).any() or (high < 0).any() or (low >= high).any():
        yield Violation(where, "bounds", "low ≤ 0 ≤ high", f"{low.min():g} to {high.max():g}")
        return
    level = -low.astype(np.float64) * 255 / (high.astype(np.float64) - low)
    if (np.abs(level - np.rint(level)) > _OFF_GRID).any():
        yield Violation(where, "zero", "a whole level", f"{float(level.reshape(-1)[0]):.3f}")


def _constant(node: Any) -> Any:
    return np.array(node.data) if node.get_type_name() == "Constant" else None


def _weight(op: Any, scheme: QuantScheme) -> Iterator[Violation]:
    where, zero, scale = op.get_friendly_name(), None, None
    node = op.input_value(1).get_node()
    while node.get_type_name() in {"Convert", "Multiply", "Subtract", "Reshape", "Transpose"}:
        other = node.input_value(1).get_node() if node.get_input_size() > 1 else None
        if node.get_type_name() == "Multiply":
            scale = _constant(other)
        elif node.get_type_name() == "Subtract":
            zero = _constant(_behind_convert(other))
        node = node.input_value(0).get_node()
    integers = _constant(node)
    if integers is None or integers.dtype.kind not in "iu":
        return
    if integers.dtype != np.int8:
        yield Violation(where, "weight type", "int8", integers.dtype.name)
    if scheme.weight_symmetric and zero is not None and zero.any():
        yield Violation(where, "weight zero point", "0", "others")
    peak = int(np.abs(integers.astype(np.int32)).max(initial=0))
    limit = _limit(op, scheme)
    if peak > limit:
        yield Violation(where, "weight range", f"±{limit}", str(peak))
    yield from _scales(where, op, integers.shape, scale)


def _limit(op: Any, scheme: QuantScheme) -> int:
    """The largest magnitude of the weights of `op`.

    NNCF's 7 bits reach -64, with which two products still sum to less than 2^15; it leaves those of
    depthwise convolutions in 8, which have no products of two channels to sum.
    """
    if not scheme.reduce_range:
        return scheme.weight_limit
    shape = op.input_value(1).get_partial_shape()
    if op.get_type_name() == "GroupConvolution" and shape[2].is_static and shape[2] == 1:
        return 127
    return 64


def _behind_convert(node: Any) -> Any:
    return node.input_value(0).get_node() if node.get_type_name() == "Convert" else node


def _scales(where: str, op: Any, shape: tuple[int, ...], scale: Any) -> Iterator[Violation]:
    if scale is None or not np.isfinite(scale).all() or not (scale > 0).all():
        yield Violation(where, "scale", "positive, finite numbers", "others or none")
        return
    kind, rank = op.get_type_name(), len(shape)
    if kind == "MatMul":
        axes = {rank - 2 if op.get_attributes().get("transpose_b") else rank - 1}
    elif kind in _GROUPED:
        axes = {0, 1} if kind == "GroupConvolution" else {0, 2}
    else:
        axes = {0} if kind == "Convolution" else {1}
    wanted = tuple(size if axis in axes else 1 for axis, size in enumerate(shape))
    if scale.size > 1 and scale.shape != wanted:
        yield Violation(where, "weight scales", f"shape {wanted}", str(scale.shape))
    elif scale.size != int(np.prod(wanted)):
        yield Violation(where, "weight scales", f"{int(np.prod(wanted))}", str(scale.size))


def _recurrent(op: Any) -> Iterator[Violation]:
    for port in range(op.get_input_size()):
        node = op.input_value(port).get_node()
        if node.get_type_name() == "FakeQuantize":
            name = op.get_friendly_name()
            yield Violation(name, "never in integers", "a float recurrent layer", "8-bit inputs")
