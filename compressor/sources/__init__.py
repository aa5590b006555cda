"""What a user may hand in → the first artifact.

An ONNX file becomes an `onnx` artifact, a `.pt2` an `exported` one, and a torch factory
(`package.module:function`, with weights) or an `nn.Module` a `module` one. The user's files are
only read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compressor.sources.kinds import kind_of, missing_file
from runtimes.errors import UsageError
from runtimes.types import Artifact, sha256_of

_TF2ONNX = "export it to ONNX with tf2onnx and hand in the file"
_OBJECT_FIXES = {
    "keras": _TF2ONNX,
    "tensorflow": _TF2ONNX,
    "torch.export.": "torch.export.save(program, 'model.pt2') and hand in the file",
    "onnx.": "onnx.save(model, 'model.onnx') and hand in the file",
}
_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


@dataclass(frozen=True)
class SourceSpec:
    """A model as the recipe or the API names it.

    Attributes:
        model: path of an ONNX or `.pt2` file, `package.module:function`, or an `nn.Module`.
        weights: safetensors or torch state dict for a factory; relative to `base_dir`.
        inputs: input name → {"shape": [batch, 3, …], "dtype": "float32"}; needed for modules,
            for files they name or pin free dimensions.
        outputs: output names in order; None takes the model's own.
        base_dir: the recipe's folder: where paths and imports start.
        shapes: input name → free dimension → (min, opt, max); one with a single size is fixed.
        state: recurrent state, input name → output name.
    """

    model: Any
    weights: str | Path | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)
    outputs: Sequence[str] | None = None
    base_dir: Path = field(default_factory=Path.cwd)
    shapes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    state: Mapping[str, str] = field(default_factory=dict)


def source_kind(spec: SourceSpec) -> str:
    """`instance`, `factory`, `onnx` or `exported`; raises `UsageError` for anything else."""
    if not isinstance(spec.model, (str, Path)):
        return _instance_kind(spec.model)
    text = str(spec.model)
    if _REFERENCE.fullmatch(text) and not _path(spec, spec.model).exists():
        return "factory"
    kind = kind_of(_path(spec, spec.model))
    if spec.weights is not None:
        raise UsageError(
            "weights belong to a factory; this file holds its own",
            where=text,
            fix="drop `weights`, or name the function that builds the module as the source",
        )
    return kind


def _instance_kind(model: Any) -> str:
    # Without torch imported there can be no torch object.
    import sys

    torch = sys.modules.get("torch")
    if torch is not None and isinstance(model, torch.jit.ScriptModule):
        raise UsageError(
            "this is a TorchScript module",
            where=type(model).__name__,
            expected="an nn.Module",
            fix="hand in the Python module it was compiled from",
        )
    if torch is not None and isinstance(model, torch.nn.Module):
        return "instance"
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    raise UsageError(
        "not a model we take",
        where="model",
        expected="a path, `module:function`, or an nn.Module",
        got=kind,
        fix=next((fix for start, fix in _OBJECT_FIXES.items() if kind.startswith(start)), ""),
    )


def _path(spec: SourceSpec, value: str | Path) -> Path:
    path = Path(value).expanduser()
    return path if path.is_absolute() else spec.base_dir / path


def _weights(spec: SourceSpec) -> Path | None:
    return None if spec.weights is None else _path(spec, spec.weights)


def identify(spec: SourceSpec) -> dict[str, Any]:
    """What the source is, as plain JSON of digests: equal when and only when it gives the same.

    Files are hashed with their external data, a factory with the code it imports from its own
    folder, an `nn.Module` by structure and weights. Nothing is built or run.
    """
    kind = source_kind(spec)
    asked = {
        "inputs": {name: _plain(value) for name, value in spec.inputs.items()},
        "order": list(spec.inputs),
        "outputs": None if spec.outputs is None else list(spec.outputs),
        "shapes": {name: {d: _plain(b) for d, b in v.items()} for name, v in spec.shapes.items()},
    }
    state = {"state": dict(spec.state)} if spec.state else {}
    return {**_content(spec, kind), **asked, **state}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _content(spec: SourceSpec, kind: str) -> dict[str, Any]:
    if kind == "onnx":
        from compressor.sources.onnx_file import identity

        return identity(_path(spec, spec.model))
    if kind == "exported":
        return {"kind": kind, "sha256": sha256_of(_path(spec, spec.model))}
    if kind == "instance":
        from compressor.sources.torch_module import module_identity

        return module_identity(spec.model)
    return _factory_identity(spec)


def _factory_identity(spec: SourceSpec) -> dict[str, Any]:
    from compressor.sources.code import code_digests

    weights = _weights(spec)
    if weights is not None and not weights.is_file():
        raise missing_file(weights, "weights")
    return {
        "kind": "factory",
        "factory": str(spec.model),
        "code": code_digests(str(spec.model), spec.base_dir),
        "weights": None if weights is None else sha256_of(weights),
    }


def open_source(spec: SourceSpec, root: Path) -> Artifact:
    """Read the source and write it into the empty folder `root` as the first artifact.

    Raises `UsageError` (not a model, damaged, unsafe, wrong inputs or state), `Unsupported`
    (operator set too new, inputs that are no tensors) or `MissingTool` (torch).
    """
    made = _open(spec, root)
    if not spec.state:
        return made
    from compressor.stateful import check_state

    check_state(spec.state, made.inputs, made.outputs)
    facts = {**made.facts, "state": dict(spec.state)}
    return Artifact.write(root, made.format, made.entry, made.inputs, made.outputs, facts)


def _open(spec: SourceSpec, root: Path) -> Artifact:
    kind = source_kind(spec)
    root.mkdir(parents=True, exist_ok=True)
    if kind == "onnx":
        return _open_onnx(spec, root)
    from compressor.sources import torch_module

    torch_module.need_torch(str(spec.model)[:80])
    if kind == "exported":
        return torch_module.open_exported(
            _path(spec, spec.model), root,
            inputs=spec.inputs, outputs=spec.outputs, shapes=spec.shapes,
        )  # fmt: skip
    reference = str(spec.model) if kind == "factory" else None
    notes: list[str] = []
    if reference is None:
        module = torch_module.private_copy(spec.model)
    else:
        module, notes = torch_module.build_module(_factory(spec), _weights(spec), reference)
    return torch_module.open_module(
        module, root, inputs=spec.inputs, outputs=spec.outputs, shapes=spec.shapes,
        factory=reference, notes=notes,
    )  # fmt: skip


def _open_onnx(spec: SourceSpec, root: Path) -> Artifact:
    from compressor.sources.onnx_file import open_onnx

    path = _path(spec, spec.model)
    made = open_onnx(path, root, spec.inputs, spec.shapes)
    names = [output.name for output in made.outputs]
    if spec.outputs is not None and list(spec.outputs) != names:
        raise UsageError(
            "an ONNX file's outputs keep their names",
            where=str(path),
            expected=", ".join(names),
            got=", ".join(spec.outputs),
            fix="drop `outputs`",
        )
    return made


def _factory(spec: SourceSpec) -> Callable[[], Any]:
    from compressor.modules import import_reference

    return import_reference(str(spec.model), spec.base_dir)


def source_factory(spec: SourceSpec) -> Callable[[], Any] | None:
    """A callable that builds the untouched torch module; None for files."""
    kind = source_kind(spec)
    if kind == "factory":
        return _factory(spec)
    if kind == "instance":
        from compressor.sources.torch_module import private_copy

        return lambda: private_copy(spec.model)
    return None
