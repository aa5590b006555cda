"""float32 constants of a model stored in half behind a cast (see `cast_half`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from compressor.quantization.half_keep import LARGEST
from compressor.quantization.half_typed import half_type
from compressor.quantization.keep import kept
from compressor.quantization.onnx_index import Names, index, take_over_names
from compressor.quantization.onnx_pass import require_smaller
from compressor.quantization.onnx_static import named_nodes
from exporters._drop_in import require_drop_in
from exporters._onnx_graph import drop_dead_weights, load_model, replace, save_model
from exporters._onnx_opset import upgrade_opset
from exporters.base import Env, Keep
from runtimes.types import Artifact


def castable(source: Artifact, least: int, keep: Keep, dtype: str = "float16") -> list[str]:
    """Names of the constants that would be cast to `dtype`."""
    if source.format == "openvino":
        from compressor.quantization.openvino_ir import read_ir

        return [c.get_friendly_name() for c in _constants(read_ir(source.path), least, keep)[0]]
    return _tensors(load_model(source.path), least, keep, dtype)[0]


def run(source: Artifact, options: Any, env: Env) -> Artifact:
    """Write the model with its constants cast; for OpenVINO, with a keep-list where asked for."""
    keep, path, more = env.context.keep, env.work / source.entry, list[str]()
    if source.format == "openvino":
        from compressor.quantization.openvino_ir import read_ir, write_ir

        model = read_ir(source.path)
        constants, beyond = _constants(model, options.least, keep)
        for constant in constants:
            _cast_constant(constant)
        write_ir(model, path, source)
        count = len(constants)
        if options.compute == "half":
            from compressor.quantization.half_openvino import keep_precise

            more = keep_precise(path, source, options, env)
    else:
        model = load_model(source.path)
        if options.dtype == "bfloat16":
            model, more = upgrade_opset(model, 13)
        names, beyond = _tensors(model, options.least, keep, options.dtype)
        _cast_tensors(model, set(names), options.dtype)
        save_model(model, path)
        count = len(names)
    notes = [*_notes(count, beyond, options.dtype), *more]
    facts = {**source.facts, "notes": [*source.facts.get("notes", []), *notes]}
    artifact = Artifact.write(
        env.work, source.format, source.entry, source.inputs, source.outputs, facts
    )
    require_smaller(source, artifact)
    return require_drop_in(source, artifact)


def _notes(count: int, beyond: Sequence[str], dtype: str) -> list[str]:
    notes = [f"{count} weights are stored as {dtype}"]
    if beyond:
        notes.append(f"kept float32, beyond float16's range: {', '.join(beyond[:5])}")
    return notes


def _fits(values: Any, dtype: str = "float16") -> bool:
    if dtype == "bfloat16":  # float32's own range
        return True
    peak = float(np.abs(values).max()) if values.size else 0.0
    return bool(np.isfinite(peak)) and peak <= LARGEST


def _tensors(model: Any, least: int, keep: Keep, dtype: str) -> tuple[list[str], list[str]]:
    """Initializers to cast, and those whose values float16 cannot hold."""
    import onnx

    graph = index(model)
    stay = kept(named_nodes(model), keep)
    fits: list[str] = []
    beyond: list[str] = []
    for name, tensor in graph.weights.items():
        readers = graph.consumers.get(name, [])
        if tensor.data_type != onnx.TensorProto.FLOAT or name in graph.outputs:
            continue
        if int(np.prod(tensor.dims)) < least or any(node.name in stay for node in readers):
            continue
        if any(node.op_type in {"QuantizeLinear", "DequantizeLinear"} for node in readers):
            continue
        values = onnx.numpy_helper.to_array(tensor)
        (fits if _fits(values, dtype) else beyond).append(name)
    return fits, beyond


def _cast_tensors(model: Any, chosen: set[str], dtype: str) -> None:
    import onnx

    names, casts, replaced, outs = Names(model.graph), [], {}, {}
    for tensor in list(model.graph.initializer):
        if tensor.name not in chosen:
            continue
        half = onnx.numpy_helper.to_array(tensor).astype(half_type(dtype))
        stored, outs[tensor.name] = names.new(tensor.name), names.new("h")
        replaced[stored] = tensor.name
        model.graph.initializer.append(onnx.numpy_helper.from_array(half, stored))
        made = onnx.helper.make_node(
            "Cast", [stored], [outs[tensor.name]], to=onnx.TensorProto.FLOAT
        )
        casts.append(made)
    _rename_reads(model.graph, outs)
    replace(model.graph.node, [*casts, *model.graph.node])
    drop_dead_weights(model.graph)
    take_over_names(model.graph, replaced)


def _rename_reads(graph: Any, names: dict[str, str]) -> None:
    from exporters._onnx_graph import rename_reads

    rename_reads(graph, names)


def _constants(model: Any, least: int, keep: Keep) -> tuple[list[Any], list[str]]:
    from compressor.quantization.openvino_names import named

    stay = kept(named(model), keep)
    fits: list[Any] = []
    beyond: list[str] = []
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or node.get_element_type().get_type_name() != "f32":
            continue
        readers = [port.get_node() for port in node.output(0).get_target_inputs()]
        if any(reader.get_friendly_name() in stay for reader in readers):
            continue
        values = node.get_data()
        if values.size < least or any(r.get_type_name() == "FakeQuantize" for r in readers):
            continue
        if _fits(values):
            fits.append(node)
        else:
            beyond.append(node.get_friendly_name())
    return fits, beyond


def _cast_constant(constant: Any) -> None:
    from openvino import opset13

    half = opset13.constant(constant.get_data().astype(np.float16))
    made = opset13.convert(half, "f32")
    for reader in list(constant.output(0).get_target_inputs()):
        reader.replace_source_output(made.output(0))
