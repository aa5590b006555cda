"""What each layer that multiplies is to compute in, its share of the work, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from exporters._onnx_macs import inferred, macs_of, shapes_of
from exporters._trt_graph import MULTIPLYING, View

_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
_TYPES = {"FLOAT": "float32", "FLOAT16": "float16", "BFLOAT16": "bfloat16", "DOUBLE": "float64"}
Row = dict[str, Any]


def layers(
    model: Any, dims: Mapping[str, int], requested: Sequence[Mapping[str, Any]]
) -> list[Row]:
    """A row a layer: name, op, precision, MACs of one sample (0 where not known), reason.

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
        integer = _in_integers(view, node)
        rows.append(
            {
                "name": node.name,
                "op": node.op_type,
                "precision": "int8" if integer else types.get(node.output[0], "float32"),
                "macs": int(macs_of(node, shapes) or 0),
                "reason": "" if integer else why.get(node.name, ""),
            }
        )
    return rows


def _in_integers(view: View, node: Any) -> bool:
    if node.op_type not in MULTIPLYING:
        return False
    right = node.input[1]
    left = view.pair(node.input[0]) is not None
    return left and (view.weight(right) is not None or view.pair(right) is not None)


def _types(graph: Any) -> dict[str, str]:
    import onnx

    names = onnx.TensorProto.DataType
    values = [*graph.input, *graph.value_info, *graph.output]
    found = {v.name: _TYPES.get(names.Name(v.type.tensor_type.elem_type)) for v in values}
    return {name: kind for name, kind in found.items() if kind}


def precision_of(rows: Sequence[Row]) -> str:
    """The variant's name: `int8` or `fp16` where any layer is, else `fp32`."""
    found = {row["precision"] for row in rows}
    return "int8" if "int8" in found else "fp16" if "float16" in found else "fp32"


def in_words(rows: Sequence[Row]) -> str:
    """How much of the multiplications runs in which precision."""
    total = sum(row["macs"] for row in rows)
    shares: dict[str, int] = {}
    for row in rows:
        shares[row["precision"]] = shares.get(row["precision"], 0) + row["macs"]
    if not total:
        return "no layer that multiplies, or shapes that cannot be inferred"
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    return "of the multiplications " + ", ".join(f"{n / total:.1%} in {p}" for p, n in ordered)
