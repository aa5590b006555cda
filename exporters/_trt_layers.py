"""What each layer that multiplies is to compute in, its share of the work, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from exporters._onnx_macs import inferred, macs_of, shapes_of
from exporters._trt_graph import DEQUANTIZE, MULTIPLYING, View
from exporters._trt_weights import weight_alone

_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
_TYPES = {"FLOAT": "float32", "FLOAT16": "float16", "BFLOAT16": "bfloat16", "DOUBLE": "float64"}
_VARIANTS = {"float8": "fp8", "int8": "int8", "int4": "int4", "bfloat16": "bf16", "float16": "fp16"}
Row = dict[str, Any]


def layers(
    model: Any, dims: Mapping[str, int], requested: Sequence[Mapping[str, Any]]
) -> list[Row]:
    """A row a layer: name, op, precision, MACs of one sample (0 where not known), reason.

    `precision` is what it multiplies in, `weights` what its weight is stored in where that differs.

    Args:
        model: in TensorRT's form.
        dims: free dimension → a typical size.
        requested: what the passes asked for, with their reasons.
    """
    view, found = View(model), inferred(model, dims).graph
    shapes, types = shapes_of(found), _types(found)
    why = {row["layer"]: str(row.get("reason", "")) for row in requested}
    rows = []
    for node in model.graph.node:
        if node.op_type not in MULTIPLYING | _RECURRENT:
            continue
        number, alone = _number(view, node), weight_alone(view, node)
        row = {
            "name": node.name,
            "op": node.op_type,
            "precision": number or types.get(node.output[0], "float32"),
            "macs": int(macs_of(node, shapes) or 0),
            "reason": "" if number or alone else why.get(node.name, ""),
        }
        rows.append({**row, "weights": "int4"} if alone else row)
    return rows


def _number(view: View, node: Any) -> str:
    """`int8` or `float8` where both operands are; else empty."""
    if node.op_type not in MULTIPLYING:
        return ""
    left, right = view.pair(node.input[0]), view.maker(node.input[1], DEQUANTIZE)
    if left is None or right is None:
        return ""
    return "float8" if view.kind(left).startswith("float8") else "int8"


def _types(graph: Any) -> dict[str, str]:
    import onnx

    names = onnx.TensorProto.DataType
    values = [*graph.input, *graph.value_info, *graph.output]
    found = {v.name: _TYPES.get(names.Name(v.type.tensor_type.elem_type)) for v in values}
    return {name: kind for name, kind in found.items() if kind}


def precision_of(rows: Sequence[Row]) -> str:
    """The variant's name: the first of these types that any layer is in."""
    found = {row["precision"] for row in rows} | {row.get("weights") for row in rows}
    return next((name for kind, name in _VARIANTS.items() if kind in found), "fp32")


def in_words(rows: Sequence[Row]) -> str:
    """How much of the multiplications runs in which precision."""
    total = sum(row["macs"] for row in rows)
    shares: dict[str, int] = {}
    for row in rows:
        stored = f" with {row['weights']} weights" if "weights" in row else ""
        kind = row["precision"] + stored
        shares[kind] = shares.get(kind, 0) + row["macs"]
    if not total:
        return "no layer that multiplies, or shapes that cannot be inferred"
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    return "of the multiplications " + ", ".join(f"{n / total:.1%} in {p}" for p, n in ordered)
