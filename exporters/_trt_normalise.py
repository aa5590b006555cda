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
from exporters._onnx_graph import MICROSOFT, normalise
from exporters._onnx_opset import quantized_ops, upgrade_opset
from exporters._trt_edit import Editor
from exporters._trt_graph import DEQUANTIZE, QUANTIZE

LEAST_OPSET = 17  # the first with LayerNormalization; below 13 there are no scales per channel
HALF_OPSET = 19  # the first whose Q/DQ take scales in float16


def normalised(model: Any) -> tuple[Any, list[str]]:
    """`model` in TensorRT's form, and a note on every kind of edit; it may be changed itself."""
    counts = clean(model)
    if quantized_ops(model):
        counts |= _quantized(model)
    model, _ = normalise(model, copy=False)
    model, raised = upgrade_opset(model, LEAST_OPSET)
    return model, [*(f"{number} {what}" for what, number in counts.items() if number), *raised]


def _quantized(model: Any) -> dict[str, int]:
    _standard(model)
    edit = Editor(model)
    edits: dict[str, Callable[[Editor], int]] = {
        "constants computed from their stored form": weights.fold_storage,
        "quantized weights turned": weights.turn_weights,
        "pairs repeated in front of a layer": activations.in_front,
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
