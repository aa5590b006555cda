"""An ONNX Runtime session on inner tensors of a model, without a second copy of its weights."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from exporters._check import onnx_session

_OUTSIDE = 1 << 20  # larger tensors go to a file, which the engine maps
_LARGE = 64 << 20  # smaller models are handed over in memory


def tapped_session(model: Any, nodes: Sequence[Any], outputs: Sequence[Any], threads: int) -> Any:
    """A session on `model` (left as it is) with `nodes` added and only `outputs` computed.

    `nodes` replace those of the same name. Weights of a large model pass through a temporary file
    with external data: serialised whole, they would be there four times while the engine loads
    (and past 2 GiB not at all).
    """
    frame = _frame(model, nodes, outputs)
    if model.ByteSize() < _LARGE:
        frame.graph.initializer.extend(model.graph.initializer)
        return onnx_session(frame.SerializeToString(), threads)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        with (path.parent / "weights").open("wb") as file:
            for tensor in model.graph.initializer:
                frame.graph.initializer.append(_outside(tensor, file))
        path.write_bytes(frame.SerializeToString())
        return onnx_session(path, threads)


def _frame(model: Any, nodes: Sequence[Any], outputs: Sequence[Any]) -> Any:
    """The model without its weights."""
    import onnx

    frame = onnx.ModelProto(ir_version=model.ir_version)
    frame.opset_import.extend(model.opset_import)
    frame.functions.extend(model.functions)
    frame.graph.name = "tapped"
    frame.graph.input.extend(model.graph.input)
    frame.graph.output.extend(outputs)
    changed = {node.name: node for node in nodes if node.name}
    frame.graph.node.extend(changed.get(node.name, node) for node in model.graph.node)
    there = {node.name for node in model.graph.node}
    frame.graph.node.extend(node for node in nodes if not node.name or node.name not in there)
    return frame


def _outside(tensor: Any, file: Any) -> Any:
    """`tensor`, or one whose values were appended to `file`."""
    import onnx

    if len(tensor.raw_data) < _OUTSIDE:
        return tensor
    start = file.tell() + -file.tell() % 4096  # maps begin at pages
    file.seek(start)
    file.write(tensor.raw_data)
    made = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    made.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (
        ("location", "weights"),
        ("offset", start),
        ("length", len(tensor.raw_data)),
    ):
        made.external_data.add(key=key, value=str(value))
    return made
