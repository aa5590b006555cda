"""OpenVINO IR files with the same bytes every time, and as few of them as engines need.

OpenVINO numbers the nodes it makes with a counter of the process, so a second conversion writes
other names; `save_ir` renumbers them in the file's order. It also drops what the reader does not
read, infers again or assumes: indentation, names of inner tensors, shapes of ports, idle runtime
info, attributes at their defaults.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

_NUMBERED = re.compile(r"(.*?[A-Za-z\]])_\d+((?:/.*|_\D.*)?)")
_IDLE_INFO = frozenset({"fused_names"})
# What OpenVINO's operators are made with: an attribute that a file leaves out stays so.
_NUMPY = ("Add", "Subtract", "Multiply", "Divide", "Maximum", "Minimum", "Power", "FakeQuantize")
_WINDOWS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "MaxPool", "AvgPool")
_DEFAULTS = {
    **{kind: {"auto_broadcast": "numpy"} for kind in _NUMPY},
    **{kind: {"auto_pad": "explicit"} for kind in _WINDOWS},
    "MatMul": {"transpose_a": "false", "transpose_b": "false"},
}
_LIST = re.compile(r"-?\d+(, -?\d+)+")


def read_onnx(path: Path) -> Any:
    """An `openvino.Model` of an ONNX file, simplified, its source nodes under their own names.

    The transformations are those OpenVINO's converter applies. The converter itself is not used:
    it brings telemetry. Raises RuntimeError as OpenVINO does.
    """
    import openvino
    from openvino._offline_transformations import apply_moc_transformations

    model = openvino.Core().read_model(str(path))
    apply_moc_transformations(model, cf=False, smart_reshape=False)
    return model


def save_ir(
    model: Any,
    path: Path,
    *,
    given: Collection[str],
    prefix: str = "",
    half: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write `path` (.xml) and its .bin with canonical names.

    Args:
        model: an `openvino.Model`; it may be changed.
        path: the .xml file.
        given: node names to keep as they are; all other numbered ones are renumbered.
        prefix: marks source names instead (see `marked`); it is removed.
        half: store float32 weights as float16.
        metadata: the source's own key → value pairs, kept under rt_info `framework`.
    """
    import openvino

    openvino.save_model(model, str(path), compress_to_fp16=half)
    tree = ET.parse(path)  # noqa: S314 - see above
    root = tree.getroot()
    root.set("name", "model")
    rename = _renamer(frozenset(given), prefix)
    for layer in root.iter("layer"):
        layer.set("name", rename(layer.get("name", ""), layer.get("type", "")))
        _strip_layer(layer)
    _strip_ports(root, prefix)
    _set_metadata(root, metadata or {})
    for element in root.iter():
        element.text = element.text if element.text and element.text.strip() else None
        element.tail = None
    write_xml(root, path)


def write_xml(root: ET.Element, path: Path) -> None:
    """Write the text of an IR as short as its reader takes it; `root` is changed."""
    for layer in root.iter("layer"):
        if (data := layer.find("data")) is None:
            continue
        usual = _DEFAULTS.get(layer.get("type", ""), {})
        for name, value in list(data.items()):
            if usual.get(name) == value:
                del data.attrib[name]
            elif _LIST.fullmatch(value):
                data.set(name, value.replace(", ", ","))
        if not data.attrib:
            layer.remove(data)
    text = ET.tostring(root, encoding="unicode").replace(" />", "/>")
    path.write_text('<?xml version="1.0"?>' + text, encoding="utf-8")


def _renamer(given: frozenset[str], prefix: str) -> Callable[[str, str], str]:
    counts: dict[str, int] = {}
    seen: dict[str, int] = {}

    def rename(name: str, kind: str) -> str:
        if prefix and name.startswith(prefix):
            return _once(name.replace(prefix, ""), seen)
        if name in given:
            return name
        base = name.replace(prefix, "") if prefix else name
        numbered = _NUMBERED.fullmatch(base)
        if numbered is None and not base.isdigit():
            return _once(base, seen)
        stem = numbered.group(1) + numbered.group(2) if numbered else kind
        # A dot: OpenVINO itself never makes such a name, so a later step cannot mix them up.
        counts[stem] = counts.get(stem, -1) + 1
        return f"{stem}.{counts[stem]}"

    return rename


def _once(name: str, seen: dict[str, int]) -> str:
    seen[name] = seen.get(name, -1) + 1
    return name if not seen[name] else f"{name}.{seen[name]}"


def _strip_layer(layer: ET.Element) -> None:
    # Shapes of ports are inferred again when the file is read; inputs have their source's dtype.
    for port in (*layer.iterfind("input/port"), *layer.iterfind("output/port")):
        for dim in port.findall("dim"):
            port.remove(dim)
    for port in layer.iterfind("input/port"):
        port.attrib.pop("precision", None)
    for info in layer.findall("rt_info"):
        for attribute in list(info):
            if attribute.get("name") in _IDLE_INFO:
                info.remove(attribute)
        if not len(info):
            layer.remove(info)


def _strip_ports(root: ET.Element, prefix: str) -> None:
    """Keep tensor names at the model's boundary only: what feeds use and what results give."""
    for net in [root, *root.iter("body")]:
        layers = net.find("layers")
        edges = net.find("edges")
        if layers is None or edges is None:
            continue
        results = {x.get("id") for x in layers if x.get("type") == "Result"}
        boundary = {x.get("id") for x in layers if x.get("type") == "Parameter"}
        shown = {
            (e.get("from-layer"), e.get("from-port")) for e in edges if e.get("to-layer") in results
        }
        for layer in layers:
            for port in layer.iterfind("output/port"):
                keep = layer.get("id") in boundary or (layer.get("id"), port.get("id")) in shown
                _strip_port(port, keep and net is root, prefix)


def _strip_port(port: ET.Element, keep: bool, prefix: str) -> None:
    names = port.get("names")
    if names is None:
        return
    if keep:
        port.set("names", names.replace(prefix, "") if prefix else names)
    else:
        del port.attrib["names"]


def _set_metadata(root: ET.Element, metadata: Mapping[str, str]) -> None:
    for info in root.findall("rt_info"):
        root.remove(info)
    if metadata:
        framework = ET.SubElement(ET.SubElement(root, "rt_info"), "framework")
        for key in sorted(metadata):
            ET.SubElement(framework, "info", name=key, value=metadata[key])


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata `save_ir` wrote into an .xml file."""
    root = ET.parse(path).getroot()  # noqa: S314 - our own file
    found = {}
    for entry in root.iterfind("rt_info/framework/*"):
        found[entry.get("name") or entry.tag] = entry.get("value", "")
    return found


def layer_names(path: Path) -> frozenset[str]:
    """All layer names of an .xml file: the `given` of the step that works on it."""
    root = ET.parse(path).getroot()  # noqa: S314 - our own file
    return frozenset(layer.get("name", "") for layer in root.iter("layer"))


def marked(model: Any, prefix: str) -> None:
    """Put `prefix` before the names of all nodes and weights of an ONNX graph, in place.

    OpenVINO's own names (`Reshape_3`) may equal those of the user's nodes; marked ones cannot.
    """
    from exporters._onnx_graph import all_nodes, rename_reads

    for node in all_nodes(model):
        node.name = prefix + node.name
    boundary = {value.name for value in (*model.graph.input, *model.graph.output)}
    names = {t.name: prefix + t.name for t in model.graph.initializer if t.name not in boundary}
    for tensor in model.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    rename_reads(model.graph, names)
