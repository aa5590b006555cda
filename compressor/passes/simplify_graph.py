"""Fewer nodes, same results: constant folding and fusions by onnxslim, checked against the input.

The result is refused where it computes something else, grows, or changes nothing.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import Any

from exporters.base import Context, Env, installed
from runtimes.errors import BuildFailed, Refusal, Unsupported
from runtimes.types import Artifact

REV = 1
ACCEPTS = frozenset({"onnx"})
PRODUCES = "onnx"
NEEDS: frozenset[str] = frozenset()
USES: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Options:
    """How far the result may be from the input.

    Attributes:
        tolerance: largest difference, relative to an output's largest magnitude.
    """

    tolerance: float = 1e-4


def tools() -> dict[str, str]:
    """Version of onnxslim; `MissingTool` naming the extra."""
    return installed(
        ("onnx", "onnxslim"), "simplify_graph", "pip install edge-compressor[optimize]"
    )


def refusals(source: Artifact, options: Options, context: Context) -> list[Refusal]:
    """Quantized models: folding would undo their integer weights."""
    del options, context
    from exporters._onnx_graph import load_model
    from exporters._onnx_opset import quantized_ops

    found = quantized_ops(load_model(source.path))
    if not found:
        return []
    why = f"the model is quantized ({', '.join(found)}): folding would turn its weights to float"
    return [Refusal("model", why, "simplify before you quantize")]


def run(source: Artifact, options: Options, env: Env) -> Artifact:
    """Simplify, check on example feeds of several sizes, write `model.onnx`."""
    from exporters._drop_in import require_drop_in
    from exporters._onnx_graph import load_model, normalise, opset_of, save_model

    model = load_model(source.path)
    made, _ = normalise(_slim(model))
    _restore_boundary(model, made, source)
    before, after = len(model.graph.node), len(made.graph.node)
    size = len(model.SerializeToString()), len(made.SerializeToString())
    _require_effect(before, after, *size)
    path = env.work / source.entry
    save_model(made, path)
    _require_same(source, path, options.tolerance, env)
    note = f"{before - after} of {before} nodes were folded or fused"
    facts = {
        **source.facts,
        "opset": opset_of(made),
        "notes": [*source.facts.get("notes", []), note],
    }
    artifact = Artifact.write(
        env.work, source.format, source.entry, source.inputs, source.outputs, facts
    )
    return require_drop_in(source, artifact)


def _slim(model: Any) -> Any:
    import onnxslim

    copy = type(model)()
    copy.CopyFrom(model)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        made = onnxslim.slim(copy)
    if made is None:
        raise BuildFailed("onnxslim gave no model back", where="simplify_graph")
    return made


def _restore_boundary(model: Any, made: Any, source: Artifact) -> None:
    from exporters._onnx_dims import set_specs

    set_specs(made, source.inputs, source.outputs)
    del made.metadata_props[:]
    made.metadata_props.extend(model.metadata_props)


def _require_effect(before: int, after: int, bytes_before: int, bytes_after: int) -> None:
    if bytes_after > bytes_before:
        why = f"the simplified model is larger: {bytes_after} bytes after {bytes_before}"
    elif after >= before and bytes_after == bytes_before:
        why = "nothing to simplify: every node is still there"
    else:
        return
    raise Unsupported("no effect", [Refusal("model", why, "drop the step")], where="simplify_graph")


def _require_same(source: Artifact, path: Any, tolerance: float, env: Env) -> None:
    from exporters._check import compare, onnx_session, ort_errors, run_onnx, sizes_to_try
    from exporters.base import example_feeds

    want, got = (
        onnx_session(source.path, env.context.threads),
        onnx_session(path, env.context.threads),
    )
    dims = {**source.facts.get("dims", {}), **env.context.dims}
    for number, sizes in enumerate(sizes_to_try(source.inputs, dims)):
        feeds = example_feeds(source.inputs, sizes, env.context.seed + number)
        try:
            expected = run_onnx(want, feeds)
        except ort_errors():
            continue  # the model itself does not take these sizes
        compare(expected, run_onnx(got, feeds), tolerance, "simplify_graph")
