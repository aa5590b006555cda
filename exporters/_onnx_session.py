"""A model in memory whose large weights need not be copied: for sessions, checks and conversions.

Serialised whole, the weights would be there four times while an engine loads (and past 2 GiB not at
all): sessions get them in a temporary file, and what looks at the graph alone gets it without them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from exporters._check import onnx_session
from exporters._onnx_graph import drop, needed, replace, save_model, weight_bytes

_OUTSIDE = 1 << 20  # larger tensors go to a file, which the engine maps
_SMALL = 1 << 12  # tensors that may hold shapes and axes, which inference and converters read
_LARGE = 64 << 20  # smaller models are handed over in memory


def session_of(model: Any, threads: int = 1) -> Any:
    """A session on `model` as it is."""
    return tapped_session(model, (), model.graph.output, threads)


def tapped_session(model: Any, nodes: Sequence[Any], outputs: Sequence[Any], threads: int) -> Any:
    """A session on `model` (left as it is) with `nodes` added and only `outputs` computed.

    `nodes` replace those of the same name; the others stand right behind what they read, and run
    there, so that no tensor waits for them.
    """
    frame = _frame(model, nodes, outputs)
    if weight_bytes(model) < _LARGE:
        frame.graph.initializer.extend(model.graph.initializer)
        return onnx_session(frame.SerializeToString(), threads, in_order=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        _write(frame, model, path)
        return onnx_session(path, threads, in_order=True)


def save_for_engine(model: Any, path: Path) -> None:
    """Write `model`, whose notes on values are left out, for an engine to read.

    Large weights go to the file `weights` beside it, without a copy of them in memory.
    """
    if weight_bytes(model) < _LARGE:
        save_model(model, path)
        return
    frame = _frame(model, (), model.graph.output)
    frame.graph.name = model.graph.name
    _write(frame, model, path)


def _write(frame: Any, model: Any, path: Path) -> None:
    with (path.parent / "weights").open("wb") as file:
        for tensor in model.graph.initializer:
            frame.graph.initializer.append(_outside(tensor, file))
    path.write_bytes(frame.SerializeToString())


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
    there = {node.name for node in model.graph.node}
    own = [changed.get(node.name, node) for node in model.graph.node]
    added = [node for node in nodes if not node.name or node.name not in there]
    wanted = (value.name for value in outputs)
    frame.graph.node.extend(needed(list(_placed(own, added)), wanted))
    frame.graph.sparse_initializer.extend(model.graph.sparse_initializer)
    return frame


def _placed(own: Sequence[Any], added: Sequence[Any]) -> Iterator[Any]:
    """All nodes in order, each of `added` behind the last node it reads from."""
    made = {name: i for i, node in enumerate(own) for name in node.output if name}
    behind: dict[int, list[Any]] = {}
    for node in added:
        place = max((made.get(name, -1) for name in node.input), default=-1)
        behind.setdefault(place, []).append(node)
        made.update(dict.fromkeys(node.output, place))
    yield from behind.get(-1, [])
    for i, node in enumerate(own):
        yield node
        yield from behind.get(i, [])


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


def without_weights(model: Any) -> Any:
    """`model` with its large weights as inputs, of which only the types are left."""
    import onnx

    light = onnx.ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    light.graph.name = model.graph.name
    for field in ("node", "input", "output", "value_info", "sparse_initializer"):
        getattr(light.graph, field).extend(getattr(model.graph, field))
    given = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) < _SMALL:
            light.graph.initializer.append(tensor)
        elif tensor.name not in given:
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            light.graph.input.append(info)
    return light


def with_weights(light: Any, model: Any, skip: Collection[str] = ()) -> None:
    """Give `light`, made from `without_weights(model)`, its weights but for `skip`, in place."""
    taken = {t.name for t in model.graph.initializer if len(t.raw_data) >= _SMALL}
    own = {tensor.name: tensor for tensor in light.graph.initializer}
    wanted = taken.difference(skip)
    back = [own.pop(t.name, t if t.name in wanted else None) for t in model.graph.initializer]
    replace(light.graph.initializer, [t for t in back if t is not None] + list(own.values()))
    given = {value.name for value in model.graph.input}
    drop(light.graph.input, lambda value: value.name in taken and value.name not in given)


def check_model(model: Any) -> None:
    """Onnx's checker without a copy of the weights; raises its `ValidationError`."""
    import onnx

    onnx.checker.check_model(without_weights(model))
    for tensor in model.graph.initializer:
        onnx.checker.check_tensor(tensor)
