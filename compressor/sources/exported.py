"""`.pt2` files from `torch.export`: looked into before they are loaded, then their signature.

`torch.export.load` unpickles parts of the archive (sample inputs, constants, odd weights). Every
such part is read here first with torch's restricted reader, so that a file which would run code is
refused before anything of it runs.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compressor.sources.torch_probe import declared_inputs
from exporters._torch_call import output_names
from runtimes.errors import UsageError
from runtimes.types import Dim, TensorSpec


def load_exported(path: Path) -> Any:
    """The `ExportedProgram` of a checked file; `UsageError` where it is unsafe or damaged."""
    import torch

    check_archive(path)
    try:
        return torch.export.load(str(path))
    except (RuntimeError, ValueError, KeyError, AssertionError, TypeError, OSError) as error:
        raise UsageError(
            f"this torch cannot load the exported program: {_first_line(error)}",
            where=str(path),
            fix=f"export it again with torch {torch.__version__}, or hand in the module itself",
        ) from error


def check_archive(path: Path) -> None:
    """Raise `UsageError` where loading the archive would unpickle anything but tensors."""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                _check_member(archive, name, path)
    except zipfile.BadZipFile as error:
        raise UsageError(
            "the archive is truncated or damaged", where=str(path), fix="copy it again"
        ) from error


def _check_member(archive: zipfile.ZipFile, name: str, path: Path) -> None:
    # Weights and constants are raw bytes unless their config says otherwise; the rest that ends in
    # .pt (sample inputs, everything of older archives) is pickled.
    if name.endswith("_config.json"):
        _check_config(archive, name, path)
    elif name.endswith(".pt"):
        _check_pickle(archive.read(name), name, path)


def _check_config(archive: zipfile.ZipFile, name: str, path: Path) -> None:
    folder = name.rpartition("/")[0]
    for payload in json.loads(archive.read(name)).get("config", {}).values():
        member = f"{folder}/{payload['path_name']}"
        if not payload["path_name"].startswith(("weight_", "tensor_")):
            raise _unsafe(path, member)  # custom and opaque objects
        if payload.get("use_pickle"):
            _check_pickle(archive.read(member), member, path)


def _check_pickle(data: bytes, name: str, path: Path) -> None:
    import pickle

    import torch

    try:
        torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise _unsafe(path, name) from error


def _unsafe(path: Path, name: str) -> UsageError:
    return UsageError(
        "loading this file would run code from it",
        where=f"{path}, {name}",
        expected="nothing pickled but tensors",
        fix="export the module again without custom objects",
    )


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:300]


def exported_specs(
    program: Any, inputs: Mapping[str, Any], outputs: Sequence[str] | None, where: str
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Input and output specs of an exported program; a recipe may name its free dimensions."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    ins = list(program.graph_signature.user_inputs)
    shapes = {name: [_size(d) for d in values[name].shape] for name in ins}
    symbols = _symbol_names(shapes, inputs, where)
    specs = tuple(
        TensorSpec(n, _dtype(values[n]), tuple(_named(d, symbols, n, i) for i, d in enumerate(s)))
        for n, s in shapes.items()
    )
    results = [
        name for name in program.graph_signature.user_outputs if values.get(name) is not None
    ]
    names = list(outputs or _output_keys(program, len(results), ins))
    if len(names) != len(results):
        raise UsageError(
            "the output names do not fit the program", where=where,
            expected=f"{len(results)} names", got=", ".join(names),
        )  # fmt: skip
    found = tuple(
        TensorSpec(
            name,
            _dtype(values[result]),
            tuple(_named(_size(d), symbols, name, i) for i, d in enumerate(values[result].shape)),
        )
        for name, result in zip(names, results, strict=True)
    )
    return specs, found


def _dtype(value: Any) -> str:
    return str(value.dtype).removeprefix("torch.")


def _size(dim: Any) -> Dim:
    return dim if isinstance(dim, int) else str(dim)


def _symbol_names(
    shapes: Mapping[str, Sequence[Dim]], inputs: Mapping[str, Any], where: str
) -> dict[str, str]:
    firsts = {shape[0] if shape else None for shape in shapes.values()}
    shared = len(firsts) == 1 and isinstance(next(iter(firsts)), str)
    wanted = {s.name: s for s in declared_inputs(inputs, where)} if inputs else {}
    unknown = sorted(set(wanted) - set(shapes))
    if unknown:
        raise UsageError(
            "the program has no such input", where=f"{where}, input {unknown[0]}",
            expected=", ".join(shapes),
        )  # fmt: skip
    names: dict[str, str] = {}
    for name, shape in shapes.items():
        declared = wanted[name].shape if name in wanted else ()
        for axis, dim in enumerate(shape):
            given = declared[axis] if axis < len(declared) else None
            default = "batch" if shared and axis == 0 else f"{name}_dim{axis}"
            if isinstance(dim, str):
                names.setdefault(dim, given if isinstance(given, str) else default)
    return names


def _named(dim: Dim, symbols: Mapping[str, str], tensor: str, axis: int) -> Dim:
    if isinstance(dim, int):
        return dim
    return symbols.get(dim, f"{tensor}_dim{axis}")


def _output_keys(program: Any, count: int, inputs: Sequence[str]) -> list[str]:
    import torch
    from torch.utils import _pytree as pytree

    from exporters._torch_call import flatten

    leaves = [torch.zeros(0) for _ in range(program.call_spec.out_spec.num_leaves)]
    tree = pytree.tree_unflatten(leaves, program.call_spec.out_spec)
    keys = [key for key, _ in flatten(tree)]
    return output_names(keys if len(keys) == count else [""] * count, inputs)
