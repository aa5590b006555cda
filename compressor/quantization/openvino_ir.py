"""OpenVINO IR of quantized models: as small as its reader allows, the same bytes every time.

On top of what `exporters._openvino_ir` leaves out, constants that lie at the same place of the .bin
become one layer (a FakeQuantize names each bound twice), and helper layers get short names: of
145 kB of text that OpenVINO 2026.4 writes for an INT8 network of 14 layers a third is left.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from exporters._openvino_ir import layer_names, save_ir, write_xml
from runtimes.types import Artifact

# Layers that hold or convert a constant; people never look for them by name.
HELPERS = frozenset({"Const", "Convert", "FakeQuantize"})


def read_ir(path: Path) -> Any:
    """The `openvino.Model` in an IR file."""
    import openvino as ov

    return ov.Core().read_model(str(path))


def compiled_f32(model: Any, threads: int = 1) -> Any:
    """`model` compiled for the CPU in float32, whatever the device's default is."""
    import openvino as ov

    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    return ov.Core().compile_model(model, "CPU", config)


def write_ir(model: Any, path: Path, source: Artifact) -> None:
    """Save `model`, made from `source`, as `path` (.xml) and its .bin, compacted.

    The same model gives the same bytes; source names and metadata stay.
    """
    metadata = source.facts.get("metadata") or {}
    save_ir(model, path, given=layer_names(source.path), metadata=metadata)
    compact(path)


def compact(path: Path) -> None:
    """Rewrite an IR file in place without repeated constants and long names of helpers."""
    root = ET.parse(path).getroot()  # noqa: S314 - our own file
    layers, edges = _part(root, "layers"), _part(root, "edges")
    merged = _merge_constants(layers)
    for edge in edges:
        source = edge.get("from-layer", "")
        edge.set("from-layer", merged.get(source, source))
    _renumber(layers, edges)
    for layer in layers:
        if layer.get("type") in HELPERS:
            layer.set("name", layer.get("id", ""))
    write_xml(root, path)


def _part(root: ET.Element, name: str) -> ET.Element:
    found = root.find(name)
    return found if found is not None else ET.SubElement(root, name)


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


def _renumber(layers: ET.Element, edges: ET.Element) -> None:
    """Count the layers that are left from 0."""
    numbers = {layer.get("id", ""): str(i) for i, layer in enumerate(layers)}
    for layer in layers:
        layer.set("id", numbers[layer.get("id", "")])
    for edge in edges:
        for end in ("from-layer", "to-layer"):
            edge.set(end, numbers[edge.get(end, "")])
