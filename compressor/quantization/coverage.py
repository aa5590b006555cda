"""Before any work: which nodes of an ONNX model a target will run in INT8, and why not the rest."""

from __future__ import annotations

from compressor.quantization.onnx_static import planned
from compressor.result import LayerRow
from exporters._onnx_cleanup import clean
from exporters._onnx_graph import load_model
from exporters.base import Keep, QuantScheme
from runtimes.types import Artifact

_FIXES = {
    "both operands are computed": "nothing to do: there is no weight to shrink",
    "a conversion would cost more": "nothing to do: it follows a float layer",
    "its input is float": "nothing to do: it follows a float layer",
    "keep.float": "drop the pattern from `keep`",
    "shared with": "keep the weight apart from the float layer, or store it with quantize_weights",
    "alpha, beta or transA": "fold the factors into the weight (simplify_graph)",
    "quantize_weights": "add quantize_weights: it stores these weights in 8 or 4 bits",
    "not float32": "export the model in float32",
    "no integer kernel": "use another operator, or accept float here",
}


def coverage(artifact: Artifact, scheme: QuantScheme, keep: Keep) -> list[LayerRow]:
    """A row per node of the main graph: `requested` is `int8` or `float32`, `reason` says why.

    `reason` ends with a fix where there is one. The target's own clean-up (batch norms folded) is
    applied first, so the names are those of the nodes that will be there.
    """
    model = load_model(artifact.path)
    clean(model)
    copy, _, plan = planned(model, scheme, keep)
    integer = set(plan.integer)
    rows = []
    for node in copy.graph.node:
        inside = node.name in integer
        reason = "" if inside else with_fix(plan.reasons.get(node.name, ""))
        precision = "int8" if inside else "float32"
        rows.append(LayerRow(node.name, node.op_type, precision, "", reason=reason))
    return rows


def with_fix(reason: str) -> str:
    """`reason` with what a user can do about it."""
    for part, fix in _FIXES.items():
        if part in reason:
            return f"{reason}; {fix}"
    return reason
