"""How wide the ranges of an OpenVINO model's quantized activations were on the way.

NNCF keeps its statistics to itself, so the float model runs over the data once more, and only
the smallest and largest value of these activations are read.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from compressor.quantization.calibration import count
from compressor.quantization.convergence import Widening
from compressor.quantization.openvino_ir import compiled_f32
from runtimes.base import Feeds


def widening(model: Any, made: Any, feeds: Iterable[Feeds], threads: int) -> Widening:
    """Ranges of what `made`, the quantized `model`, quantizes outside of bodies, over `feeds`."""
    names = _quantized(made)
    found = Widening()
    tapped = _tapped(model.clone(), names)
    if tapped is None:
        return found
    compiled = compiled_f32(tapped, threads)
    for batch in feeds:
        ends = [float(value) for value in compiled(dict(batch)).to_tuple()]
        pairs = zip(ends[::2], ends[1::2], strict=True)
        found.add(dict(zip(map(str, names), pairs, strict=True)), count([batch]))
    return found


def _quantized(made: Any) -> list[tuple[str, int]]:
    """Friendly name and port of every tensor behind which a FakeQuantize for activations stands."""
    found = []
    for op in made.get_ordered_ops():
        source = op.input_value(0) if op.get_type_name() == "FakeQuantize" else None
        if source is not None and source.get_node().get_type_name() != "Constant":
            found.append((source.get_node().get_friendly_name(), source.get_index()))
    return list(dict.fromkeys(found))


def _tapped(model: Any, names: list[tuple[str, int]]) -> Any:
    """`model` with the smallest and largest value of these tensors as its only results.

    Takes those that the float model lacks or whose rank is free out of `names`.
    """
    import numpy as np
    import openvino as ov
    from openvino import opset13

    ops = {op.get_friendly_name(): op for op in model.get_ordered_ops()}
    made = []
    for name, port in list(names):
        source = ops[name].output(port) if name in ops else None
        if source is None or source.get_partial_shape().rank.is_dynamic:
            names.remove((name, port))
            continue
        axes = opset13.constant(np.arange(source.get_partial_shape().rank.get_length()))
        made += [f(source, axes, False).output(0) for f in (opset13.reduce_min, opset13.reduce_max)]
    return ov.Model(made, model.get_parameters()) if made else None
