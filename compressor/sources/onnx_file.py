"""An ONNX file → the first artifact, in normal form; the user's file is only read."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compressor.nearby import closest_file
from exporters._memory import trim
from exporters._onnx_dims import fix_dims, fixed_sizes, infer_fixed_outputs, name_free_dims
from exporters._onnx_graph import (
    LARGEST,
    OPSET,
    all_nodes,
    count_parameters,
    normalise,
    opset_of,
    save_model,
    specs,
    subgraphs,
)
from exporters._onnx_opset import quantized_ops, upgrade_opset
from exporters._onnx_session import check_model
from runtimes.errors import Refusal, Unsupported, UsageError
from runtimes.types import Artifact, sha256_of

Shapes = Mapping[str, Mapping[str, Any]]


def open_onnx(path: Path, root: Path, inputs: Mapping[str, Any], shapes: Shapes) -> Artifact:
    """Read, repair and validate the file at `path` and write it into `root` as an artifact.

    Raises `UsageError` for a file that is no valid ONNX model or whose external data is missing,
    `Unsupported` for operator sets newer than the installed onnx and onnxruntime, and for inputs
    or outputs that are no tensors.
    """
    size = given_bytes(path)
    model = read_onnx(path)
    _check_opset(model, path)
    _check_boundary(model, path)
    model, notes = normalise(model, copy=False)
    _declare_inputs(model, inputs, path)
    name_free_dims(model)
    _narrow(model, shapes)
    _validate(model, path)
    model, raised = upgrade_opset(model)
    model, _ = normalise(model, copy=False)
    facts = _facts(model, [*notes, *raised, *_graph_notes(model)])
    facts["given_bytes"] = size
    trim()  # the model before its conversion, and the engines that compared the two
    save_model(model, root / "model.onnx")
    return Artifact.write(root, "onnx", "model.onnx", *specs(model), facts)


def read_onnx(path: Path) -> Any:
    """The file's `ModelProto` with its external data; `UsageError` where either is damaged."""
    import onnx

    model = _parse(path)
    _check_external(external_files(model, path), path)
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except (onnx.checker.ValidationError, ValueError, OSError, RuntimeError) as error:
        raise UsageError(
            f"external data cannot be read: {_first_line(error)}",
            where=str(path),
            fix="copy all files of the model again, or save it in one file",
        ) from error
    return model


def _parse(path: Path) -> Any:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    _check_size(path, [path])
    data = path.read_bytes()
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError as error:
        onnx_like = path.suffix == ".onnx" or data[:1] == b"\x08"
        raise UsageError(
            "the ONNX file is truncated or damaged" if onnx_like else "this is not a model",
            where=str(path),
            got=f"{len(data)} bytes that do not parse",
            fix="copy or export the file again",
        ) from error
    if not model.graph.node and not model.graph.output:
        raise UsageError(
            "this is not an ONNX model: it holds no graph",
            where=str(path),
            got=f"{len(data)} bytes",
            fix="export the model again",
        )
    return model


def external_files(model: Any, path: Path) -> list[str]:
    """Relative names of the external data files; refuses any that lies outside the folder."""
    from exporters._onnx_graph import tensors

    found: set[str] = set()
    for tensor in tensors(model):
        for entry in tensor.external_data:
            if entry.key == "location":
                found.add(entry.value)
    for name in found:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UsageError(
                "external data outside the model's own folder",
                where=str(path),
                got=name,
                fix="save the model with its data file beside it",
            )
    return sorted(found)


def _check_external(names: Sequence[str], model: Path) -> None:
    for name in names:
        _check_there(model.parent / name, model)
    _check_size(model, [model, *(model.parent / name for name in names)])


def _check_size(model: Path, files: Sequence[Path]) -> None:
    """Refuse what protobuf cannot hold in one message, before it is read."""
    size = sum(file.stat().st_size for file in files)
    if size > LARGEST:
        why = f"it takes {size / 1e9:.2f} GB; more than {LARGEST / 1e9:.2f} GB cannot be handled"
        fix = "split the model into parts that fit, and hand them in one by one"
        raise Unsupported("the model is too large", [Refusal("model", why, fix)], where=str(model))


def _check_there(data: Path, model: Path) -> None:
    if not data.is_file():
        close = closest_file(data)
        raise UsageError(
            f"the model's weights lie in {data.name}, which is missing",
            where=str(model),
            expected=str(data),
            fix="copy that file beside the model"
            + (f", under this name ({close.name}?)" if close and close != model else ""),
        )


def identity(path: Path) -> dict[str, Any]:
    """Digests of the file and of its external data, by name."""
    names = external_files(_parse(path), path)
    _check_external(names, path)
    external = {name: sha256_of(path.parent / name) for name in names}
    return {"kind": "onnx", "sha256": sha256_of(path), "external": external}


def given_bytes(path: Path) -> int:
    """Bytes of the file as the user gave it, external data included."""
    names = external_files(_parse(path), path)
    _check_external(names, path)
    return sum(file.stat().st_size for file in (path, *(path.parent / name for name in names)))


def newest_opset() -> int:
    """The newest operator set that both the installed onnx and onnxruntime run."""
    import onnx

    from exporters._check import onnx_session, ort_errors

    newest = int(onnx.defs.onnx_opset_version())
    value = onnx.helper.make_tensor_value_info("x", 1, [1])
    out = onnx.helper.make_tensor_value_info("y", 1, [1])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "probe", [value], [out])
    for opset in range(newest, OPSET, -1):
        ids = [onnx.helper.make_opsetid("", opset)]
        model = onnx.helper.make_model(graph, opset_imports=ids, ir_version=10)
        try:
            onnx_session(model.SerializeToString())
        except ort_errors():
            continue
        return opset
    return OPSET


def _check_opset(model: Any, path: Path) -> None:
    import onnx

    have = opset_of(model)
    if have <= OPSET:
        return
    newest = newest_opset()
    if have > newest:
        fix = f"export with opset {newest} or lower, or upgrade onnx and onnxruntime"
        reason = (
            f"the model uses opset {have}; onnx {onnx.__version__} and the installed onnxruntime "
            f"run up to {newest}"
        )
        raise Unsupported("operator set too new", [Refusal("opset", reason, fix)], where=str(path))


def _check_boundary(model: Any, path: Path) -> None:
    refusals = []
    for kind, values in (("input", model.graph.input), ("output", model.graph.output)):
        for value in values:
            what = value.type.WhichOneof("value")
            if what != "tensor_type":
                why = f"this {kind} is a {str(what).removesuffix('_type')}, not a tensor"
                fix = "scikit-learn models: convert with options={'zipmap': False}"
                refusals.append(Refusal(value.name, why, fix))
            elif value.type.tensor_type.elem_type == 8:
                refusals.append(Refusal(value.name, f"this {kind} holds strings", ""))
    if refusals:
        raise Unsupported("only tensors of numbers can go in and out", refusals, where=str(path))


def _declare_inputs(model: Any, inputs: Mapping[str, Any], path: Path) -> None:
    """Apply what the recipe says of the inputs: sizes and names of free dimensions."""
    values = {value.name: value for value in model.graph.input}
    for name, given in inputs.items():
        if name not in values:
            close = difflib.get_close_matches(name, values, n=1)
            fix = f"did you mean {close[0]}?" if close else "use the model's own input names"
            raise UsageError(
                "the model has no such input",
                where=f"{path}, input {name}",
                expected=", ".join(values),
                fix=fix,
            )
        shape = given["shape"] if isinstance(given, Mapping) else given
        _declare(values[name], list(shape), path)
    for value in values.values():
        if not value.type.tensor_type.HasField("shape"):
            raise UsageError(
                "the model does not say how many dimensions this input has",
                where=f"{path}, input {value.name}",
                fix=f"say it: `inputs: {{{value.name}: [batch, …]}}`",
            )


def _declare(value: Any, shape: list[Any], path: Path) -> None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        tensor.shape.dim.extend(type(tensor.shape).Dimension() for _ in shape)
    dims = tensor.shape.dim
    clash = len(dims) != len(shape) or any(
        isinstance(size, int) and 0 < dim.dim_value != size
        for dim, size in zip(dims, shape, strict=False)
    )
    if clash:
        raise UsageError(
            "the declared shape is not the model's",
            where=f"{path}, input {value.name}",
            expected=str([d.dim_param or d.dim_value or "?" for d in dims]),
            got=str(shape),
        )
    for dim, size in zip(dims, shape, strict=True):
        if isinstance(size, int) and size > 0:
            dim.dim_value = size
        elif isinstance(size, str) and not dim.dim_param and dim.dim_value <= 0:
            dim.dim_param = size


def _narrow(model: Any, shapes: Shapes) -> None:
    sizes = fixed_sizes(shapes)
    fix_dims(model, sizes)
    if sizes:
        infer_fixed_outputs(model)


def _validate(model: Any, path: Path) -> None:
    import onnx

    try:
        check_model(model)
    except onnx.checker.ValidationError as error:
        raise UsageError(
            f"the ONNX graph is not valid: {_first_line(error)}",
            where=str(path),
            fix="export the model again; onnx.checker.check_model tells the same",
        ) from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:300]


def _graph_notes(model: Any) -> list[str]:
    notes = []
    nested = [node.name for node in all_nodes(model) if any(True for _ in subgraphs(node))]
    if nested:
        notes.append(
            f"{len(nested)} node(s) hold subgraphs ({', '.join(nested[:3])}): "
            "what is inside them stays as it is"
        )
    quantized = quantized_ops(model)
    if quantized:
        notes.append(
            f"the model is already quantized ({', '.join(quantized)}): its twin is this model as "
            "given, and quantizing it again may cost accuracy; hand in the float model if you can"
        )
    return notes


def _facts(model: Any, notes: list[str]) -> dict[str, Any]:
    return {
        "opset": opset_of(model),
        "parameters": count_parameters(model),
        "quantized": bool(quantized_ops(model)),
        "metadata": {entry.key: entry.value for entry in model.metadata_props},
        "notes": notes,
    }
