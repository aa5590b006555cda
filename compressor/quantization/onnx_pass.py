"""From artifact to artifact for the ONNX side of `quantize_static`: checks, facts, files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from compressor.quantization import smooth
from compressor.quantization.calibration import batches
from compressor.quantization.calibration_memory import held
from compressor.quantization.conformance import onnx_violations, require_conforming
from compressor.quantization.convergence import convergence_facts, convergence_note
from compressor.quantization.onnx_branches import LAYERS, branches
from compressor.quantization.onnx_static import Quantized, planned, quantize
from compressor.result import INTEGERS
from exporters._drop_in import require_drop_in
from exporters._memory import release
from exporters._onnx_graph import (
    MICROSOFT,
    STANDARD_DOMAINS,
    all_nodes,
    load_model,
    opset_of,
    save_model,
)
from exporters._onnx_opset import quantized_ops
from exporters._schemes import ONNXRUNTIME
from exporters.base import Context, Env, Keep, QuantScheme
from runtimes.errors import Refusal, Unsupported
from runtimes.types import Artifact

_KNOWN_DOMAINS = STANDARD_DOMAINS | {MICROSOFT}


def scheme_of(context: Context) -> QuantScheme:
    """The target's scheme; in shared steps, that of ONNX Runtime."""
    return context.scheme or ONNXRUNTIME


def keep_of(context: Context, exclude: tuple[str, ...]) -> Keep:
    """The recipe's keep with this step's own patterns."""
    return replace(context.keep, float=(*context.keep.float, *exclude))


def model_refusals(model: Any) -> list[Refusal]:
    """What no quantization of ours takes: quantized models; custom operators, in bodies too."""
    done = quantized_ops(model)
    if done:
        why = f"the model is already quantized: it holds {', '.join(done)}"
        return [Refusal("model", why, "hand in the float model it was made from")]
    custom = [node for node in all_nodes(model) if node.domain not in _KNOWN_DOMAINS]
    return [
        Refusal(
            node.name,
            f"operator {node.domain}::{node.op_type} is custom: it cannot be calibrated",
            "export the model without custom operators",
        )
        for node in custom
    ]


def static_refusals(source: Artifact, exclude: tuple[str, ...], context: Context) -> list[Refusal]:
    """Reasons why `quantize_static` will not take an ONNX artifact."""
    model = load_model(source.path)
    found = model_refusals(model)
    if found:
        return found
    if opset_of(model) < 13:
        why = f"operator set {opset_of(model)}: scales per channel need 13"
        return [Refusal("model", why, "export with operator set 13 or above")]
    inside = branches(model)
    _, _, plan = planned(model, scheme_of(context), keep_of(context, exclude))
    if plan.weights or inside:
        return []
    why = "no layer can run in INT8"
    reasons = [Refusal(name, reason) for name, reason in plan.reasons.items()]
    fix = "use quantize_weights, which stores the weights of float layers in integers"
    return [Refusal("model", why, fix), *reasons]


def run_static(source: Artifact, options: Any, env: Env) -> Artifact:
    """Quantize, check that it is a smaller drop-in, and write it with its facts."""
    model, samples = load_model(source.path), env.data["calibration"]
    total = min(options.samples, len(samples))
    memory = held(model, env.context.dims, options.method, "onnxruntime")
    release()
    made = quantize(
        model,
        scheme_of(env.context),
        keep_of(env.context, options.exclude),
        lambda: batches(samples, source.inputs, options.samples, most=memory.samples),
        method=options.method,
        bias_correction=options.bias_correction != "off",
        smoothing=options.smooth != "off",
        threads=env.context.threads,
        said=lambda text: env.progress(0.5, text),
        told=lambda done: env.progress(min(1.0, done / total), f"calibrated on {done} samples"),
    )
    scheme = scheme_of(env.context)
    if not made.plan.weights:
        why = [Refusal(name, reason) for name, reason in made.plan.reasons.items()]
        raise Unsupported("no layer was quantized", why, where="quantize_static")
    require_conforming(onnx_violations(made.model, scheme, made.plan.reasons), "quantize_static")
    save_model(made.model, env.work / source.entry)
    facts = {**source.facts, **_facts(source, made, options, scheme, str(memory))}
    return require_drop_in(source, write_quantized(source, facts, env))


def write_quantized(source: Artifact, facts: dict[str, Any], env: Env) -> Artifact:
    """The artifact of an INT8 model; a note says so where its file grew.

    That is no error: the layers run in integers, and a later step may store the rest in fewer bits.
    """
    size = sum(path.stat().st_size for path in env.work.iterdir())
    if size >= source.size_bytes:
        grew = f"the INT8 file is no smaller: {size} bytes after {source.size_bytes}"
        facts = {
            **facts,
            "notes": [*facts["notes"], grew + " (scales and Q/DQ cost more than they save)"],
        }
    return Artifact.write(
        env.work, source.format, source.entry, source.inputs, source.outputs, facts
    )


def require_smaller(source: Artifact, artifact: Artifact) -> None:
    """Raise `Unsupported` where the step made the files no smaller."""
    if artifact.size_bytes < source.size_bytes:
        return
    why = f"the model got no smaller: {artifact.size_bytes} bytes after {source.size_bytes}"
    fix = "its weights are too small to pay for their scales: ship the float model"
    raise Unsupported("no effect", [Refusal("model", why, fix)], where=source.entry)


def _facts(
    source: Artifact, made: Quantized, options: Any, scheme: QuantScheme, memory: str
) -> Mapping[str, Any]:
    import onnxruntime

    return {
        "requested": requested(made),
        "notes": [*source.facts.get("notes", []), integers(scheme), memory, *_notes(made)],
        "quantization": {
            "tool": f"edge-compressor on onnxruntime {onnxruntime.__version__}",
            "method": options.method,
            "samples": made.statistics.samples,
            **convergence_facts(made.statistics.series, made.statistics.samples),
            "held_bytes": made.statistics.held_bytes,
            "weights": "int8 per channel" if scheme.weight_per_channel else "int8 per tensor",
            "activations": "int8" if scheme.activation_signed else "uint8",
            "reduce_range": scheme.reduce_range,
        },
    }


def integers(scheme: QuantScheme, activations: str = "") -> str:
    """The note on what the layers compute in: signs, scales and range, as the scheme has them.

    `activations` where they are not all of the scheme's sign.
    """
    weights = f"{'s' if scheme.weight_signed else 'u'}{scheme.weight_bits}"
    activations = (
        activations or f"{'s' if scheme.activation_signed else 'u'}{scheme.activation_bits}"
    )
    each = "channel" if scheme.weight_per_channel else "tensor"
    span = "7-bit weights: no VNNI" if scheme.reduce_range else "full range"
    return f"{INTEGERS}weights {weights} per {each}, activations {activations}, {span}"


def requested(made: Quantized) -> list[dict[str, str]]:
    """What was asked for, per node, with the reason where it is float."""
    rows = []
    for name, op in made.ops.items():
        if name in made.plan.reasons:
            reason = made.plan.reasons[name]
            rows.append({"layer": name, "op": op, "requested": "float32", "reason": reason})
        elif name in made.plan.integer:
            rows.append({"layer": name, "op": op, "requested": "int8", "reason": ""})
    return rows


def _notes(made: Quantized) -> list[str]:
    seen = made.statistics
    converged = convergence_note(seen.series, seen.samples)
    return [*converged, *smooth.note(made.smoothed), *_left_float(made)]


def _left_float(made: Quantized) -> list[str]:
    left = {name: why for name, why in made.plan.reasons.items() if made.ops[name] in LAYERS}
    return asked(len(made.plan.weights), left)


def asked(integer: int, left: Mapping[str, str]) -> list[str]:
    """Notes on how many layers with weights were asked to run in INT8, or why some were not."""
    if not left:
        return [f"all {integer} layers with weights were asked to run in INT8"]
    by_reason: dict[str, list[str]] = {}
    for name, reason in left.items():
        by_reason.setdefault(reason, []).append(name)
    return [f"kept float: {_some(names)} ({reason})" for reason, names in by_reason.items()]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more
