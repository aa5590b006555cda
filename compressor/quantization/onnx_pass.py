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
from exporters._onnx_opset import PER_CHANNEL, quantized_ops, upgrade_opset
from exporters._schemes import ONNXRUNTIME
from exporters.base import Context, Env, Keep, QuantScheme
from runtimes.errors import Refusal, Unsupported
from runtimes.types import Artifact

_KNOWN_DOMAINS = STANDARD_DOMAINS | {MICROSOFT}
_SPELLED = {"int8": "INT8", "float8": "FP8"}
_OPSETS = {"int8": PER_CHANNEL, "float8": 19}
_NEED = {"int8": "scales per channel", "float8": "Q and DQ of FP8"}


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


def asked_scheme(options: Any, context: Context) -> QuantScheme:
    """The target's scheme with the numbers that the step is to write."""
    return replace(scheme_of(context), number=options.dtype)


def static_refusals(
    source: Artifact, exclude: tuple[str, ...], context: Context, scheme: QuantScheme | None = None
) -> list[Refusal]:
    """Reasons why `quantize_static` will not take an ONNX artifact."""
    scheme = scheme or scheme_of(context)
    model, opset = load_model(source.path), _OPSETS[scheme.number]
    found = model_refusals(model)
    if found:
        return found
    if opset_of(model) < opset and scheme.number != "int8":
        model, _ = upgrade_opset(model, opset)
    if opset_of(model) < opset:
        why = f"operator set {opset_of(model)}: {_NEED[scheme.number]} need {opset}"
        return [Refusal("model", why, f"export with operator set {opset} or above")]
    inside = branches(model)
    _, _, plan = planned(model, scheme, keep_of(context, exclude))
    if plan.weights or inside:
        return []
    why = f"no layer can run in {_SPELLED[scheme.number]}"
    reasons = [Refusal(name, reason) for name, reason in plan.reasons.items()]
    fix = "use quantize_weights, which stores the weights of float layers in integers"
    return [Refusal("model", why, fix), *reasons]


def number_refusals(options: Any, context: Context) -> list[Refusal]:
    """An engine without FP8, and searches for ranges that only integers gain by."""
    scheme = asked_scheme(options, context)
    if scheme.number not in scheme.numbers:
        why = f"{context.target or 'a shared step'} multiplies in no {_SPELLED[scheme.number]}"
        return [Refusal("dtype", why, "move it to a target that does (tensorrt), or drop it")]
    if scheme.number == "float8" and options.method != "minmax":
        why = f"{options.method} picks a range for evenly spaced integers, and FP8 is no such grid"
        return [Refusal("method", why, "drop method")]
    return []


def run_static(source: Artifact, options: Any, env: Env) -> Artifact:
    """Quantize, check that it is a smaller drop-in, and write it with its facts."""
    model, samples = load_model(source.path), env.data["calibration"]
    scheme = asked_scheme(options, env.context)
    if scheme.number != "int8":
        model, _ = upgrade_opset(model, _OPSETS[scheme.number])
    total = min(options.samples, len(samples))
    memory = held(model, env.context.dims, options.method, "onnxruntime")
    release()
    made = quantize(
        model,
        scheme,
        keep_of(env.context, options.exclude),
        lambda: batches(samples, source.inputs, options.samples, most=memory.samples),
        method=options.method,
        bias_correction=options.bias_correction != "off",
        smoothing=options.smooth != "off" and scheme.number == "int8",
        threads=env.context.threads,
        said=lambda text: env.progress(0.5, text),
        told=lambda done: env.progress(min(1.0, done / total), f"calibrated on {done} samples"),
    )
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
        "requested": requested(made, scheme.number),
        "notes": [*source.facts.get("notes", []), integers(scheme), memory, *_notes(made, scheme)],
        "quantization": {
            "tool": f"edge-compressor on onnxruntime {onnxruntime.__version__}",
            "method": options.method,
            "samples": made.statistics.samples,
            **convergence_facts(made.statistics.series, made.statistics.samples),
            "held_bytes": made.statistics.held_bytes,
            "weights": f"{scheme.number} per {_each(scheme)}",
            "activations": scheme.number if scheme.activation_signed else "uint8",
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
    each = _each(scheme)
    if scheme.number == "float8":
        return f"FP8 (E4M3): weights with a scale per {each}, activations with one per tensor"
    span = "7-bit weights: no VNNI" if scheme.reduce_range else "full range"
    return f"{INTEGERS}weights {weights} per {each}, activations {activations}, {span}"


def _each(scheme: QuantScheme) -> str:
    return "channel" if scheme.weight_per_channel else "tensor"


def requested(made: Quantized, number: str = "int8") -> list[dict[str, str]]:
    """What was asked for, per node, with the reason where it is float."""
    rows = []
    for name, op in made.ops.items():
        if name in made.plan.reasons:
            reason = made.plan.reasons[name]
            rows.append({"layer": name, "op": op, "requested": "float32", "reason": reason})
        elif name in made.plan.integer:
            rows.append({"layer": name, "op": op, "requested": number, "reason": ""})
    return rows


def _notes(made: Quantized, scheme: QuantScheme) -> list[str]:
    seen = made.statistics
    converged = convergence_note(seen.series, seen.samples)
    left = {name: why for name, why in made.plan.reasons.items() if made.ops[name] in LAYERS}
    told = asked(len(made.plan.weights), left, _SPELLED[scheme.number])
    return [*converged, *smooth.note(made.smoothed), *told]


def asked(integer: int, left: Mapping[str, str], kind: str = "INT8") -> list[str]:
    """Notes on how many layers with weights were asked to run in `kind`, or why some were not."""
    if not left:
        return [f"all {integer} layers with weights were asked to run in {kind}"]
    by_reason: dict[str, list[str]] = {}
    for name, reason in left.items():
        by_reason.setdefault(reason, []).append(name)
    return [f"kept float: {_some(names)} ({reason})" for reason, names in by_reason.items()]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more
