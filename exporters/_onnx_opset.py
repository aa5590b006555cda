"""Bring a graph to the operator set we store weights in."""

from __future__ import annotations

from typing import Any

from exporters._memory import trim
from exporters._onnx_graph import OPSET, all_nodes, opset_of

PER_CHANNEL = 13  # the first operator set whose Q/DQ take one scale a channel
QUANTIZED_OPS = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger",
     "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM",
     "MatMulNBits", "GatherBlockQuantized", "QGemm", "QAttention", "QEmbedLayerNormalization"}
)  # fmt: skip


def quantized_ops(model: Any) -> list[str]:
    """Sorted op types that show the model was quantized before it came here."""
    found = {
        node.op_type
        for node in all_nodes(model)
        if node.op_type in QUANTIZED_OPS or node.op_type.startswith("QLinear")
    }
    return sorted(found)


def upgrade_opset(model: Any, opset: int = OPSET) -> tuple[Any, list[str]]:
    """`model` at `opset` or above, checked against the original; else itself, and a note why.

    Where that fails for a model below 13, it is brought to 13, which has scales per channel.
    """
    have = opset_of(model)
    if have >= opset or not have:
        return model, []
    made, reason = _converted(model, opset)
    if not reason:
        return made, [f"operator set raised from {have} to {opset}"]
    notes = [_kept(have, opset, reason)]
    if have < PER_CHANNEL < opset:
        made, again = _converted(model, PER_CHANNEL)
        if not again:
            return made, [f"operator set raised from {have} to {PER_CHANNEL} only ({reason})"]
    return model, notes


def _converted(model: Any, opset: int) -> tuple[Any, str]:
    """The converted model, or why there is none to be trusted."""
    import onnx

    from exporters._onnx_session import with_weights, without_weights

    try:
        made = onnx.version_converter.convert_version(without_weights(model), opset)
        onnx.checker.check_model(made)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        return model, _first_line(error)
    with_weights(made, model)
    _keep_boundary(model, made)
    return made, _difference(model, made)


def _kept(have: int, opset: int, reason: str) -> str:
    return (
        f"the operator set stays {have}, because the conversion to {opset} failed ({reason}): "
        "weights cannot be stored in 4 bits"
    )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1][:200]


def _keep_boundary(model: Any, made: Any) -> None:
    # The converter drops metadata, and names of dimensions where its inference finds others.
    for field in ("input", "output"):
        values = {value.name: value for value in getattr(model.graph, field)}
        for value in getattr(made.graph, field):
            if value.name in values:
                value.CopyFrom(values[value.name])
    del made.metadata_props[:]
    made.metadata_props.extend(model.metadata_props)


def _difference(model: Any, made: Any) -> str:
    """Why the converted model is not to be trusted; empty where it computes the same."""
    from exporters._check import compare, ort_errors, run_onnx
    from exporters._onnx_graph import specs
    from exporters._onnx_session import session_of
    from exporters.base import example_feeds
    from runtimes.errors import BuildFailed

    inputs, _ = specs(model)
    feeds = example_feeds(inputs, {}, seed=0)
    try:
        want = run_onnx(session_of(model), feeds)
    except ort_errors():
        return ""  # these sizes do not suit the model: nothing to compare with
    trim()  # before the next engine holds its weights
    try:
        got = run_onnx(session_of(made), feeds)
        compare(want, got, 1e-4, "opset conversion")
    except BuildFailed as error:
        return _first_line(error)
    except ort_errors() as error:
        return _first_line(error)
    return ""
