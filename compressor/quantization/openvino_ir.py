"""OpenVINO IR with canonical bytes and nothing in it that no engine reads.

OpenVINO writes every shape twice, indents, numbers its helpers from a counter of the process, and
repeats equal constants: 145 kB of text for a network of 14 layers. The reader needs a quarter of it;
it infers shapes again. Checked with OpenVINO 2026.4.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET  # noqa: S405 - only parses what OpenVINO has just written
from pathlib import Path
from typing import Any

# Layers that hold or convert a constant; people never look for them by name.
HELPERS = frozenset({"Const", "Convert", "FakeQuantize"})
_COUNTED = re.compile(r"^[A-Za-z]+_\d+$")


def read_ir(path: Path) -> Any:
    """The `openvino.Model` in an IR file."""
    import openvino as ov

    return ov.Core().read_model(str(path))


def fold(model: Any) -> None:
    """Fold what is constant, in place: OpenVINO's own clean-up, and a no-op where it was done.

    Not for a model that holds integer weights: they would be folded back into floats.
    """
    from openvino._offline_transformations import apply_moc_transformations

    apply_moc_transformations(model, cf=True)


def write_ir(model: Any, path: Path) -> None:
    """Save `model` as `path` (.xml) and its .bin, compacted; the same model gives the same bytes."""
    import openvino as ov

    ov.save_model(model, str(path), compress_to_fp16=False)
    compact(path)


def compact(path: Path) -> None:
    """Rewrite an IR file in place without runtime info, inner shapes, helper names and white space."""
    root = ET.parse(path).getroot()  # noqa: S314
    layers, edges = _part(root, "layers"), _part(root, "edges")
    _drop_runtime_info(root)
    root.set("name", "model")
    merged = _merge_constants(layers)
    for edge in edges:
        source = edge.get("from-layer", "")
        edge.set("from-layer", merged.get(source, source))
    _renumber(layers, edges)
    names = _names_to_keep(layers, edges)
    for layer in layers:
        _slim(layer, names)
    for element in root.iter():
        element.text = element.tail = None
    path.write_bytes(b"<?xml version='1.0'?>" + ET.tostring(root, "utf-8"))


def _part(root: ET.Element, name: str) -> ET.Element:
    found = root.find(name)
    return found if found is not None else ET.SubElement(root, name)


def _drop_runtime_info(root: ET.Element) -> None:
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in {"rt_info", "meta_data"}:
                parent.remove(child)


def _merge_constants(layers: ET.Element) -> dict[str, str]:
    """Keep one of equal constants; dropped layer id → the id that stays."""
    first: dict[str, str] = {}
    merged = {}
    for layer in list(layers):
        data = layer.find("data")
        if layer.get("type") != "Const" or data is None:
            continue
        key = repr(sorted(data.items()))
        kept = first.setdefault(key, layer.get("id", ""))
        if kept != layer.get("id"):
            merged[layer.get("id", "")] = kept
            layers.remove(layer)
    return merged


def _names_to_keep(layers: ET.Element, edges: ET.Element) -> set[tuple[str, str]]:
    """(layer id, port id) of the tensors whose names are the model's interface."""
    results = {layer.get("id") for layer in layers if layer.get("type") == "Result"}
    return {
        (edge.get("from-layer", ""), edge.get("from-port", ""))
        for edge in edges
        if edge.get("to-layer") in results
    }


def _renumber(layers: ET.Element, edges: ET.Element) -> None:
    """Count the layers that are left from 0."""
    numbers = {layer.get("id", ""): str(i) for i, layer in enumerate(layers)}
    for layer in layers:
        layer.set("id", numbers[layer.get("id", "")])
    for edge in edges:
        for end in ("from-layer", "to-layer"):
            edge.set(end, numbers[edge.get(end, "")])


def _slim(layer: ET.Element, names: set[tuple[str, str]]) -> None:
    kind, number = layer.get("type", ""), layer.get("id", "")
    if kind in HELPERS or _COUNTED.match(layer.get("name", "")):
        layer.set("name", number)
    for side in ("input", "output"):
        ports = layer.find(side)
        for port in ports if ports is not None else ():
            for dim in list(port):
                port.remove(dim)
            if kind != "Parameter" and (number, port.get("id", "")) not in names:
                port.attrib.pop("names", None)
