"""Any model, quantized by whom it may be, as TensorRT wants to read it.

TensorRT reads UINT8 activations as INT8 with the same scale and says so in its log only, refuses
biases in INT32, and computes in float next to scales of shape [1]. All of that can be mended
without calibration data; what cannot is left as it is, for the checker to name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from exporters import _trt_activations as activations
from exporters import _trt_weights as weights
from exporters._onnx_cleanup import clean
from exporters._onnx_graph import MICROSOFT, all_nodes, normalise, opset_of
from exporters._onnx_opset import quantized_ops, upgrade_opset
from exporters._onnx_session import without_weights
from exporters._trt_edit import Editor
from exporters._trt_graph import DEQUANTIZE, QUANTIZE

LEAST_OPSET = 17  # the first with LayerNormalization; below 13 there are no scales per channel
DOCUMENTED = 20  # the last that TensorRT 10.3 names, which is JetPack 6.1's and 6.2's
_OTHERWISE = frozenset({"GroupNormalization"})  # what a later operator set computes in another way


def normalised(model: Any) -> tuple[Any, list[str]]:
    """`model` in TensorRT's form, and a note on every kind of edit; it may be changed itself."""
    counts = clean(model)
    if quantized_ops(model):
        counts |= _quantized(model)
    model, _ = normalise(model, copy=False)
    model, raised = upgrade_opset(model, LEAST_OPSET)
    raised += lower_opset(model, DOCUMENTED)
    return model, [*(f"{number} {what}" for what, number in counts.items() if number), *raised]


def lower_opset(model: Any, opset: int) -> list[str]:
    """Declare an older operator set in place, where `model` is valid in it just as it stands.

    Between 20 and 22 operators only took more types, but for those that are left alone here.
    """
    import onnx

    have = opset_of(model)
    if have <= opset or any(node.op_type in _OTHERWISE for node in all_nodes(model)):
        return []
    bare = without_weights(model)
    _declare(bare, opset)
    try:
        onnx.checker.check_model(bare, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return []
    _declare(model, opset)
    return [f"operator set lowered from {have} to {opset}, which TensorRT 10.3 documents"]


def _declare(model: Any, opset: int) -> None:
    import onnx

    for entry in model.opset_import:
        if entry.domain in {"", "ai.onnx"}:
            entry.version = opset
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import, True)


def _quantized(model: Any) -> dict[str, int]:
    _standard(model)
    edit = Editor(model)
    edits: dict[str, Callable[[Editor], int]] = {
        "constants computed from their stored form": weights.fold_storage,
        "quantized weights turned": weights.turn_weights,
        "pairs repeated in front of a layer": activations.in_front,
        "INT4 weights given scales by block": weights.in_blocks,
        "constants written in float": weights.expand,
        "weights written as INT8 around 0": weights.signed,
        "batch norms folded into scales": weights.fold_norms,
        "unsigned Q and DQ made INT8": activations.recentre,
        "activations with a scale per channel given one": lambda e: len(activations.one_scale(e)),
        "pairs between a convolution and its activation undone": activations.behind_activations,
        "residual branches read in float": activations.float_branches,
        "inputs of a Concat read before rounding": activations.before_rounding,
    }
    return {what: change(edit) for what, change in edits.items()}


def _standard(model: Any) -> None:
    """ONNX Runtime writes some Q/DQ in its own domain; they are ONNX's from operator set 21 on."""
    for node in model.graph.node:
        if node.op_type in {QUANTIZE, DEQUANTIZE} and node.domain == MICROSOFT:
            node.domain = ""
    if all(node.domain != MICROSOFT for node in model.graph.node):
        kept = [entry for entry in model.opset_import if entry.domain != MICROSOFT]
        del model.opset_import[:]
        model.opset_import.extend(kept)
