"""Which nodes of a graph ONNX Runtime's CPU provider and OpenVINO do not take, before any work."""

from __future__ import annotations

import re
from typing import Any

from exporters._onnx_graph import STANDARD_DOMAINS, all_nodes, load_model, opset_of
from runtimes.errors import Refusal
from runtimes.types import Artifact

_NODE = re.compile(r"(?:node with name|Node:|Node \()\s*'?([^')\s]+)")
_REWRITE = "write this part of the model with standard operators"


def unsupported_by_onnxruntime(source: Artifact) -> list[Refusal]:
    """One refusal a node that has no schema or no CPU kernel; empty where the model loads."""
    from exporters._check import onnx_session, ort_errors

    try:
        onnx_session(source.path, optimize=False)
    except ort_errors() as error:
        return _explain(source, str(error))
    return []


def _explain(source: Artifact, message: str) -> list[Refusal]:
    model = load_model(source.path)
    unknown = [node for node in all_nodes(model) if not _has_schema(model, node)]
    if unknown:
        return [
            Refusal(node.name, f"ONNX Runtime has no operator {_title(node)}", _REWRITE)
            for node in unknown
        ]
    last = message.strip().splitlines()[-1]
    if "Could not find an implementation" in message:
        return [
            Refusal(
                _place(last),
                "ONNX Runtime's CPU provider has no kernel for this operator at these types: "
                + last.rpartition(" : ")[2],
                "cast to float32 around it, or " + _REWRITE,
            )
        ]
    return [Refusal(_place(last), f"ONNX Runtime refuses the model: {last}", "")]


def _title(node: Any) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else str(node.op_type)


def _place(message: str) -> str:
    found = _NODE.search(message)
    return found.group(1) if found else "model"


def _has_schema(model: Any, node: Any) -> bool:
    import onnx
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    if node.domain in STANDARD_DOMAINS:
        domain = "" if node.domain == "ai.onnx" else node.domain
        versions = {o.domain: int(o.version) for o in model.opset_import}
        version = versions.get(node.domain, opset_of(model))
        return bool(onnx.defs.has(node.op_type, version, domain))
    known = {(schema.domain, schema.name) for schema in state.get_all_operator_schema()}
    return (node.domain, node.op_type) in known


def unsupported_by_openvino(source: Artifact) -> list[Refusal]:
    """One refusal a node that OpenVINO's ONNX frontend has no translation for."""
    import openvino

    try:
        openvino.Core().read_model(str(source.path))
    except RuntimeError as error:
        return _explain_openvino(source, str(error))
    return []


def _explain_openvino(source: Artifact, message: str) -> list[Refusal]:
    listed = re.search(r"No conversion rule found for operations: (.+)", message)
    wanted = {name.strip() for name in listed.group(1).split(",")} if listed else set()
    nodes = [n for n in all_nodes(load_model(source.path)) if _ov_names(n) & wanted]
    if nodes:
        return [Refusal(n.name, f"OpenVINO cannot convert {_title(n)}", _REWRITE) for n in nodes]
    return [Refusal(_place(message), f"OpenVINO cannot convert it: {openvino_lines(message)}", "")]


def _ov_names(node: Any) -> set[str]:
    domains = {node.domain} | ({"", "ai.onnx"} if node.domain in {"", "ai.onnx"} else set())
    return {f"{domain}.{node.op_type}" if domain else str(node.op_type) for domain in domains}


def openvino_lines(message: str, count: int = 3) -> str:
    """The lines of an OpenVINO error that speak of the model, without its source positions."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    told = [
        line for line in lines if not line.startswith(("Exception from", "Check ", "FrontEnd API"))
    ]
    told = [line for line in told if "docs.openvino.ai" not in line and line != "Summary:"]
    return " | ".join((told or lines)[-count:])[:600]
