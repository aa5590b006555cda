"""Write 8-bit products and their biases as the one node that ONNX Runtime computes them with.

The last step of ONNX Runtime's INT8 candidates: answers stay the same to the bit, and it saves a
pass over each layer's outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

from compressor.quantization.fusion import fuse, products
from exporters._drop_in import require_drop_in
from exporters._onnx_graph import load_model, save_model
from exporters.base import Context, Env, Refusal, installed
from runtimes.types import Artifact

REV = 1
ACCEPTS = frozenset({"onnxruntime"})
PRODUCES = "onnxruntime"
NEEDS: frozenset[str] = frozenset()
USES: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Options:
    """There are none."""


def tools() -> dict[str, str]:
    """Versions of onnx and onnxruntime."""
    return installed(("onnx", "onnxruntime"), "fuse_products", "pip install onnxruntime")


def refusals(source: Artifact, options: Options, context: Context) -> list[Refusal]:
    """Models without such a product."""
    del options, context
    if source.format == "onnxruntime" and products(load_model(source.path)):
        return []
    why = "no MatMul of 8-bit tensors has a bias added to it"
    return [Refusal("model", why, "put it behind quantize_static, or leave it out")]


def run(source: Artifact, options: Options, env: Env) -> Artifact:
    """Fuse them; the artifact is a drop-in for `source`."""
    del options
    model = load_model(source.path)
    found = products(model)
    fuse(model, found)
    save_model(model, env.work / source.entry)
    note = f"{len(found)} products in INT8 add their biases by themselves"
    facts = {**source.facts, "notes": [*source.facts.get("notes", []), note]}
    made = Artifact.write(
        env.work, source.format, source.entry, source.inputs, source.outputs, facts
    )
    return require_drop_in(source, made)
