"""What becomes of a model's recurrent layers on a target, said before anything runs."""

from __future__ import annotations

from typing import Any

from compressor.quantization.onnx_dynamic import choose
from compressor.quantization.onnx_dynamic_loop import GATES
from exporters._onnx_graph import graphs
from exporters.base import Context

RECURRENT = ("LSTM", "GRU", "RNN")


def recurrent_plan(model: Any, context: Context, dynamic: Any = None) -> list[str]:
    """One sentence for each fate that recurrent layers of `model` meet, with their names.

    Args:
        model: an `onnx.ModelProto` in normal form.
        context: of the target: its name, and the layers that the user keeps float.
        dynamic: `Options` of a planned `quantize_dynamic`; None where none is planned.
    """
    nodes = [n for g in graphs(model.graph) for n in g.node if n.op_type in RECURRENT]
    if not nodes:
        return []
    taken: set[str] = set()
    reasons: dict[str, str] = {}
    if dynamic is not None:
        chosen, reasons = choose(model, dynamic, context)
        taken = {layer.node.name for layer in chosen}
    fates: dict[tuple[str, str], list[str]] = {}
    for node in nodes:
        fate = _fate(node, node.name in taken, reasons.get(node.name, ""), str(context.target))
        fates.setdefault((node.op_type, fate), []).append(node.name)
    return [f"{op} {_some(names)}: {fate}" for (op, fate), names in fates.items()]


def _fate(node: Any, taken: bool, reason: str, target: str) -> str:
    if taken and node.op_type in GATES:
        return "dynamic INT8, as a loop over integer products"
    if taken:
        return "dynamic INT8"
    stored = "weights stored in 8 or 4 bits, computed in float"
    if reason.startswith("keep.float"):
        return f"kept float ({reason})"
    if not reason:
        engine = {"openvino": "OpenVINO"}.get(target, target)
        reason = f"no integer {node.op_type} of {engine} is used"
    return f"{stored} ({reason})"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more
