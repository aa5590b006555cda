"""Names in an exported graph as the user's module has them: `head.fc/Gemm`, `head.fc.weight`."""

from __future__ import annotations

import ast
import re
from typing import Any

from exporters._onnx_graph import all_nodes, rename_reads, unique

_SCOPES = "pkg.torch.onnx.name_scopes"
_WRAPPER = "model"  # the attribute of the wrapper every module is exported in
_LAYER = ("", "weight", "bias")
_ROLES = {
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm", "MatMul"), _LAYER),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), ("", "W", "R", "B")),
}
_ANONYMOUS = re.compile(r"onnx::.*|val_\d+.*|\d+|/.*")


def name_nodes_after_modules(model: Any, wrapped: bool) -> None:
    """Rename nodes to `<module path>/<op>`, in place.

    Reads the scopes both exporters leave (metadata of the dynamo one, node names of the other), so
    it must run before the graph is stripped.
    """
    taken: set[str] = set()
    for node in all_nodes(model):
        scope = _scope(node)
        scope = _unwrapped(scope) if wrapped else scope
        node.name = unique(f"{scope}/{node.op_type}" if scope else node.op_type, taken)
        taken.add(node.name)


def _scope(node: Any) -> str:
    """Dotted path of the module a node comes from; empty for the root."""
    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            parts = [part for part in ast.literal_eval(entry.value)[:-1] if part]
            return parts[-1] if parts and not parts[-1].startswith("_empty_nn") else ""
    if not node.name.startswith("/"):
        return ""
    path: list[str] = []
    for part in node.name.strip("/").split("/")[:-1]:
        # Children of containers repeat their parent's name: /features/features.0
        path.append(part.removeprefix(path[-1].rpartition(".")[2] + ".") if path else part)
    return ".".join(path)


def _unwrapped(name: str) -> str:
    return "" if name == _WRAPPER else name.removeprefix(_WRAPPER + ".")


def name_weights_after_modules(model: Any, wrapped: bool) -> None:
    """Give weights their parameter names, in place; nodes must have been named before.

    A layer that had a batch norm folded into it gets its own name back. A weight no parameter
    stands for (a transposed one, a constant) is named after the first node that reads it:
    `stem/Conv` reads `stem.weight` and `stem.bias`.
    """
    _name_layers_after_weights(model, wrapped)
    reader: dict[str, str] = {}
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            reader.setdefault(name, _read_as(node, i))
    taken = {value.name for value in (*model.graph.input, *model.graph.output)}
    taken |= {name for node in all_nodes(model) for name in node.output}
    named = {t.name for t in model.graph.initializer if not _ANONYMOUS.fullmatch(t.name)}
    renamed: dict[str, str] = {}
    for tensor in sorted(model.graph.initializer, key=lambda t: t.name not in named):
        wanted = _unwrapped(tensor.name) if wrapped else tensor.name
        if tensor.name not in named:
            wanted = reader.get(tensor.name, wanted)
        renamed[tensor.name] = unique(wanted, taken)
        taken.add(renamed[tensor.name])
    for tensor in model.graph.initializer:
        tensor.name = renamed[tensor.name]
    rename_reads(model.graph, renamed)


def _name_layers_after_weights(model: Any, wrapped: bool) -> None:
    weights = {tensor.name for tensor in model.graph.initializer}
    taken = {node.name for node in all_nodes(model)}
    for node in model.graph.node:
        weight = node.input[1] if len(node.input) > 1 else ""
        if node.op_type in _ROLES and weight in weights and weight.endswith(".weight"):
            layer = _unwrapped(weight) if wrapped else weight
            wanted = f"{layer.removesuffix('.weight')}/{node.op_type}"
            taken.discard(node.name)
            node.name = node.name if node.name.startswith(wanted) else unique(wanted, taken)
            taken.add(node.name)


def _read_as(node: Any, place: int) -> str:
    roles = _ROLES.get(node.op_type, ())
    if place < len(roles) and roles[place]:
        return f"{node.name.rpartition('/')[0] or node.name}.{roles[place]}"
    return f"{node.name}.{place}"
