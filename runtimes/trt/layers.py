"""What an engine's layers compute in, from the inspector's JSON of 8.6 to 11.x.

8.6 and 10.x name inputs and outputs of the engine `Bindings` and give each tensor one text,
`Format/Datatype` ("Channel major INT8 …"); 11.x has `I/O Tensors` and both apart.
"""

from __future__ import annotations

import json
import re
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Sequence, Tuple

from .errors import FAILED, TrtError

_KINDS: Tuple[Tuple[str, str], ...] = (
    (r"\bfp8|\be4m3", "float8"),
    (r"\bint4|\bfp4", "int4"),
    (r"\bint8|\buint8", "int8"),
    (r"\bbfloat16|\bbf16", "bfloat16"),
    (r"\bhalf|\bfp16|\bfloat16", "float16"),
    (r"\bfloat|\bfp32", "float32"),
    (r"\bint64|\bint32|\bbool", "integer"),
)
_ONNX_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=\s*(?:\[|\x1e|$))", re.DOTALL)
_JOINS = re.compile(r" \+ |\|\||, |\{|\}|\.\.\.|\[|\]")


class Layer(NamedTuple):
    """One executed layer; `nodes` are the ONNX nodes in it, `precision` is that of its input."""

    name: str
    kind: str
    precision: str
    nodes: Tuple[str, ...]

    @property
    def reformats(self) -> bool:
        """Whether it only converts to another precision or memory layout."""
        words = (self.kind + " " + self.name).lower()
        return "reformat" in words or self.kind.lower() == "nooplayer"


def read_layers(text: str) -> List[Layer]:
    """The layers of an inspector's JSON; `TrtError` where it is no such thing."""
    try:
        rows = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise TrtError(f"the inspector's answer is not understood: {error!r}", FAILED) from error
    return [_layer(row) for row in rows]


def _layer(row: Any) -> Layer:
    if not isinstance(row, Mapping):  # names alone: the engine was not built with details
        return Layer(str(row), "", "unknown", _named_in(str(row)))
    name = str(row.get("Name", ""))
    nodes = tuple(_ONNX_NODE.findall(str(row.get("Metadata", "")))) or _named_in(name)
    return Layer(name, str(row.get("LayerType", "")), _precision(row), nodes)


def _named_in(name: str) -> Tuple[str, ...]:
    return tuple(part for part in map(str.strip, _JOINS.split(name)) if part)


def _precision(row: Mapping[str, Any]) -> str:
    """Of the first input; of a layer without inputs, of its output."""
    tensors = list(row.get("Inputs") or []) + list(row.get("Outputs") or [])
    for tensor in tensors:
        keys = ("Datatype", "DataType", "Format/Datatype", "Format")
        text = " ".join(str(tensor[key]) for key in keys if key in tensor).lower()
        for pattern, kind in _KINDS:
            if re.search(pattern, text):
                return kind
    return "unknown"


def count(layers: Sequence[Layer], wanted: Iterable[Mapping[str, Any]]) -> Dict[str, Any]:
    """Layers by precision, reformats, and which of the nodes `wanted` in 8 bits run in float.

    A node that no layer names was folded or renamed by the builder: it is listed as not found.
    """
    found: Dict[str, int] = {"int8": 0, "float16": 0, "float32": 0}
    computing = [layer for layer in layers if not layer.reformats]
    for layer in computing:
        found[layer.precision] = found.get(layer.precision, 0) + 1
    ran: Dict[str, List[str]] = {}
    for layer in computing:
        for node in layer.nodes:
            ran.setdefault(node, []).append(layer.precision)
    kinds = {str(row["name"]): str(row.get("precision")) for row in wanted}
    names = [name for name, kind in kinds.items() if kind in ("int8", "float8")]
    fell = [name for name in names if name in ran and kinds[name] not in ran[name]]
    return {
        **found,
        "on_dla": sum("dla" in layer.kind.lower() for layer in layers),
        "reformats": len(layers) - len(computing),
        "fell_back": [name for name in fell if set(ran[name]) != {"unknown"}],
        "not_found": [name for name in names if name not in ran],
    }
