"""What pruning takes: torch modules and float ONNX graphs, and nothing that a pattern was given."""

from __future__ import annotations

from collections.abc import Sequence

from compressor.pruning.outcome import article
from exporters.base import Refusal, where_installed
from runtimes.types import Artifact


def tools(module_tools: Sequence[str]) -> dict[str, str]:
    """Versions of what reads, runs and writes the models, where it is installed."""
    return where_installed(("onnx", "onnxruntime", *module_tools))


def refusals(source: Artifact, what: str, module_tools: Sequence[str]) -> list[Refusal]:
    """Formats that hold neither module nor graph, quantized graphs, and what is not installed.

    `what` is what cannot be done to anything else: "channels … cannot be removed".
    """
    if source.format == "onnx":
        return _of_graph(source)
    if source.format == "module":
        there = tools(module_tools)
        missing = [name for name in module_tools if name not in there]
        fix = "pip install 'edge-compressor[torch]'"
        return [Refusal(name, "is not installed", fix) for name in missing]
    fix = "give the torch module (source: 'package.module:function' and weights), or its ONNX"
    return [Refusal(source.format, what.format(f"{article(source.format)} model"), fix)]


def _of_graph(source: Artifact) -> list[Refusal]:
    from exporters._onnx_graph import load_model
    from exporters._onnx_opset import quantized_ops

    done = quantized_ops(load_model(source.path))
    if not done:
        return []
    why = f"the model is quantized ({', '.join(done)}): its weights have scales"
    return [Refusal("model", why, "prune the float model, then quantize")]


def patterned(source: Artifact, fix: str) -> list[Refusal]:
    """That weights have a pattern of zeros, which another form of the layers would break."""
    kind = source.facts.get("pattern", {}).get("kind")
    if kind is None:
        return []
    return [Refusal("model", f"prune_pattern gave its weights zeros ({kind})", fix)]
