"""Every place of a quantized model that breaks a rule of TensorRT's, and what becomes of each."""

from __future__ import annotations

from collections.abc import Sequence

from exporters._onnx_graph import load_model
from exporters._onnx_opset import quantized_ops
from exporters._trt_layers import Row, layers
from exporters._trt_normalise import normalised
from exporters._trt_profiles import Shapes
from exporters._trt_rules import Finding, findings
from runtimes.errors import Refusal
from runtimes.types import Artifact

_WORDS = {"error": "refused", "warning": "warning", "note": "note"}
MENDED = "mended"


def after_mending(source: Artifact, shapes: Shapes) -> list[Finding]:
    """What still breaks a rule when all that needs no data has been mended."""
    model = load_model(source.path)
    if quantized_ops(model):
        model, _ = normalised(model)
    return findings(model, source.inputs, shapes)


def errors(found: Sequence[Finding]) -> list[Refusal]:
    """What TensorRT refuses or misreads."""
    return [Refusal(f.node, f"{f.rule}: {f.text}", f.fix) for f in found if f.level == "error"]


def check_rows(source: Artifact, shapes: Shapes) -> list[dict[str, str]]:
    """Rows of `compress check` for a model that was quantized before it came here.

    One a layer that multiplies, with what it will compute in, and one for each place that breaks a
    rule: `refused` where TensorRT does not take it, `mended` where `to_tensorrt` changes it so that
    the rule holds.
    """
    model = load_model(source.path)
    ops = {node.name: node.op_type for node in model.graph.node}
    before = findings(model, source.inputs, shapes)
    model, _ = normalised(model)
    after = {(one.rule, one.node) for one in findings(model, source.inputs, shapes)}
    rows = [_row(one, ops, after) for one in before]
    for layer in layers(model, source.facts.get("dims", {}), ()):
        rows.append(
            {
                "layer": layer["name"],
                "op": layer["op"],
                "precision": layer["precision"],
                "reason": "" if _quantized(layer) else "its operands are not quantized",
                "fix": "",
            }
        )
    return rows


def _quantized(layer: Row) -> bool:
    return layer["precision"] in {"int8", "float8"} or "weights" in layer


def _row(one: Finding, ops: dict[str, str], after: set[tuple[str, str]]) -> dict[str, str]:
    holds = (one.rule, one.node) not in after
    return {
        "layer": one.node,
        "op": ops.get(one.node, ""),
        "precision": MENDED if holds else _WORDS[one.level],
        "reason": f"{one.rule}: {one.text}",
        "fix": "" if holds else one.fix,
    }
