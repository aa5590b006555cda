"""From artifact to artifact for `cast_half` with `compute: half`: an ONNX graph typed in half."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from compressor.quantization.calibration import batches
from compressor.quantization.half_keep import Observer, by_loss, by_rule, decibels
from compressor.quantization.half_typed import (
    BFLOAT16_OPSET,
    HEAVY,
    PAIRS,
    PAIRS_OPSET,
    computes,
    requested,
    settle,
    typed,
)
from compressor.quantization.keep import kept
from compressor.quantization.onnx_index import Index, index
from compressor.quantization.onnx_static import named_nodes
from exporters._check import onnx_session, ort_errors, run_onnx
from exporters._drop_in import require_drop_in
from exporters._onnx_graph import load_model, name_nodes, opset_of, save_model
from exporters._onnx_opset import upgrade_opset
from exporters.base import Context, Env, Refusal
from runtimes.base import Feeds
from runtimes.errors import BuildFailed, Unsupported
from runtimes.types import Artifact

_BATCH = 4  # every tensor of a batch is looked at


def refusals(source: Artifact, options: Any, context: Context) -> list[Refusal]:
    """A model of which nothing heavy can compute in half."""
    model, _ = _loaded(source, options)
    graph = index(model)
    reasons = by_rule(graph, model, options.dtype, kept(named_nodes(model), context.keep), {})
    heavy = [n for n in graph.graph.node if n.op_type in HEAVY and computes(graph, n)]
    if any(node.name not in reasons for node in heavy):
        return []
    why = f"no layer with weights can compute in {options.dtype}"
    left = [Refusal(node.name, reasons[node.name]) for node in heavy]
    return [Refusal("model", why, "ship it as it is"), *left]


def run(source: Artifact, options: Any, env: Env) -> Artifact:
    """Decide what stays in float32, type the rest, run both, and write the model."""
    model, notes = _loaded(source, options)
    if options.dtype == "bfloat16" and opset_of(model) < BFLOAT16_OPSET:
        raise Unsupported("the model cannot be raised to operator set 22: " + " ".join(notes),
                          where="cast_half")  # fmt: skip
    graph = index(model)
    user = kept(named_nodes(model), env.context.keep)
    observer = _observer(source, options, env)
    if observer is None:
        reasons = by_rule(graph, model, options.dtype, user, None)
        half = settle(
            graph, {n.name for n in graph.graph.node if computes(graph, n)} - set(reasons)
        )
        reached = None
    else:
        names = [n for n in sorted(graph.floats) if n not in graph.weights]
        env.progress(0.1, "ranges")
        reasons = by_rule(graph, model, options.dtype, user, observer.peaks(model, names))
        env.progress(0.4, "losses")
        half, reached = by_loss(model, graph, reasons, options.dtype, options.least_db, observer)
    _require_some(half, reasons)
    made = typed(model, half, options.dtype)
    notes += _check(model, made, observer, options)
    save_model(made, env.work / source.entry)
    facts = _facts(source, graph, half, reasons, options, reached)
    facts["notes"] += notes
    facts["opset"] = opset_of(made)
    artifact = Artifact.write(
        env.work, source.format, source.entry, source.inputs, source.outputs, facts
    )
    return require_drop_in(source, artifact)


def _loaded(source: Artifact, options: Any) -> tuple[Any, list[str]]:
    """The model at an operator set in which its nodes can be typed, each node with a name."""
    model, notes = load_model(source.path), list[str]()
    name_nodes(model)
    if options.dtype == "bfloat16":
        return upgrade_opset(model, BFLOAT16_OPSET)
    if any(node.op_type in PAIRS for node in model.graph.node):
        return upgrade_opset(model, PAIRS_OPSET)
    return model, notes


def _observer(source: Artifact, options: Any, env: Env) -> Observer | None:
    data = env.data.get("calibration")
    if data is None:
        return None
    feeds: list[Feeds] = []
    for given in batches(data, source.inputs, options.samples):
        count = len(next(iter(given.values())))
        size = count if isinstance(source.inputs[0].shape[0], int) else _BATCH
        feeds += [
            {name: array[at : at + size] for name, array in given.items()}
            for at in range(0, count, size)
        ]
    return Observer(feeds, env.context.threads)


def _require_some(half: set[str], reasons: Mapping[str, str]) -> None:
    if half:
        return
    left = [Refusal(name, why) for name, why in list(reasons.items())[:8]]
    raise Unsupported("no layer is left to compute in half", left, where="cast_half")


def _check(model: Any, made: Any, observer: Observer | None, options: Any) -> list[str]:
    """Load the typed model, run it on the same samples, and say how far it is off."""
    import onnx

    try:
        onnx.checker.check_model(made, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise BuildFailed(f"the typed model is not valid: {error}", where="cast_half") from error
    # Of pairs in float16 ONNX Runtime's own rewriting (1.31) makes something else: they run as is.
    plain = any(node.op_type in PAIRS for node in made.graph.node)
    try:
        session = onnx_session(made.SerializeToString(), optimize=not plain)
    except ort_errors() as error:
        if options.dtype == "float16":
            raise BuildFailed(
                f"ONNX Runtime cannot load the typed model: {error}", where="cast_half"
            ) from error
        return ["ONNX Runtime's CPU does not run bfloat16: checked by rounding to it in float32"]
    if observer is None:
        return ["not judged: no calibration data"]
    before = onnx_session(model.SerializeToString(), optimize=not plain)
    noise = signal = 0.0
    for feeds in observer.feeds:
        want, got = run_onnx(before, feeds), run_onnx(session, feeds)
        for name, value in want.items():
            if value.dtype.kind == "f":
                finite = np.isfinite(value)
                off = (got[name].astype(np.float64) - value)[finite]
                noise += float((off**2).sum()) if np.isfinite(off).all() else np.inf
                signal += float((value[finite].astype(np.float64) ** 2).sum())
    reached = decibels(noise / max(signal, 1e-30))
    if reached < min(options.least_db, 20.0):
        raise BuildFailed(
            "the typed model computes something else than the source",
            where="cast_half",
            expected=f"outputs within {options.least_db:g} dB",
            got=f"{reached:.1f} dB in ONNX Runtime",
            fix="keep more layers in float32 (keep: float), or use compute: float32",
        )
    return [f"as ONNX Runtime runs it, its outputs have {reached:.0f} dB over their error"]


def _facts(
    source: Artifact,
    graph: Index,
    half: set[str],
    reasons: Mapping[str, str],
    options: Any,
    reached: float | None,
) -> dict[str, Any]:
    rows = requested(graph, half, reasons, options.dtype)
    integer = {
        row["layer"]: row
        for row in source.facts.get("requested", [])
        if row["requested"] not in {"float32", options.dtype}
    }
    why = {row["layer"]: row["reason"] for row in source.facts.get("requested", [])}
    for row in rows:
        if row["op"] in HEAVY and not row["reason"]:  # why it is no integer is still true
            row["reason"] = why.get(row["layer"], "")
    rows = [integer.get(row["layer"], row) for row in rows]
    done = sum(row["requested"] == options.dtype for row in rows)
    told = f"{done} of {len(rows)} layers compute in {options.dtype}"
    if reached is not None:
        told += f"; outputs have {reached:.0f} dB over their error on calibration data"
    return {
        **source.facts,
        "precision": options.dtype,
        "requested": rows,
        "notes": [*source.facts.get("notes", []), told, *left(rows)],
    }


def left(rows: list[dict[str, str]]) -> list[str]:
    """What stayed in float32, by reason."""
    by_reason: dict[str, list[str]] = {}
    for row in rows:
        if row["requested"] == "float32":
            by_reason.setdefault(row["reason"], []).append(row["layer"])
    notes = []
    for reason, names in by_reason.items():
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        notes.append(f"kept float32: {', '.join(names[:4])}{more} ({reason})")
    return notes
