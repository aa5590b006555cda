"""Post-training INT8 of an OpenVINO model: NNCF on the IR itself, quietly, with canonical bytes.

Against NNCF's defaults, measured on trained networks (benchmarks/quantization_engines): ranges are
the largest seen instead of means of each sample's, +3 to +20 dB; no bias correction, which took
3 to 12 dB away from convolutional networks; batches instead of single samples, which is faster.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterator
from typing import Any

from compressor.quantization.calibration import batches
from compressor.quantization.keep import kept
from compressor.quantization.onnx_pass import keep_of, write_quantized
from compressor.quantization.openvino_ir import read_ir, write_ir
from compressor.quantization.openvino_names import named
from compressor.quantization.openvino_weights import RECURRENT_TYPES, WEIGHTED_TYPES, weight_bits
from exporters._drop_in import require_drop_in
from exporters.base import Env
from runtimes.errors import MissingTool, Refusal, Unsupported
from runtimes.types import Artifact


def refusals(source: Artifact) -> list[Refusal]:
    """Why NNCF will not take this model: it is quantized already, or nothing in it can be."""
    import openvino as ov

    model = ov.Core().read_model(str(source.path))
    types = {op.get_type_name() for op in model.get_ops()}
    bits = {weight_bits(op) for op in model.get_ops()} - {None}
    if "FakeQuantize" in types or bits & {4, 8}:
        why = "the model is already quantized"
        return [Refusal("model", why, "hand in the float model it was made from")]
    if not types & WEIGHTED_TYPES:
        why = "it holds no convolution and no matrix product: nothing to quantize"
        return [Refusal("model", why, "use quantize_weights or ship the float model")]
    return []


def run(source: Artifact, options: Any, env: Env) -> Artifact:
    """Quantize with NNCF and write the IR."""
    model = read_ir(source.path)
    stay = kept(named(model), keep_of(env.context, options.exclude))
    made = _quantize(model, sorted(stay), source, options, env)
    path = env.work / source.entry
    write_ir(made, path, source)
    rows = requested(made, stay)
    if not any(row["requested"] == "int8" for row in rows):
        left = [Refusal(row["layer"], row["reason"]) for row in rows]
        raise Unsupported("no layer was quantized", left, where="quantize_static")
    facts = {**source.facts, **_facts(source, rows, options, env)}
    return require_drop_in(source, write_quantized(source, facts, env))


def _quantize(model: Any, ignored: list[str], source: Artifact, options: Any, env: Env) -> Any:
    nncf = quiet_nncf()
    samples = env.data["calibration"]
    feeds = _Feeds(samples, source, options.samples)
    dataset = nncf.Dataset(feeds)
    sets = nncf.quantization.range_estimator.RangeEstimatorParametersSet
    advanced = nncf.AdvancedQuantizationParameters(
        disable_bias_correction=options.bias_correction != "on",
        activations_range_estimator_params=_estimator(sets, options.method),
    )
    # NNCF calibrates a recurrent state as if it were one tensor: an LSTM came out at 2 dB.
    types = sorted(RECURRENT_TYPES)
    scope = nncf.IgnoredScope(names=ignored, types=types, validate=False)
    env.progress(0.0, f"NNCF calibrates on {min(options.samples, len(samples))} samples")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return nncf.quantize(
            model,
            dataset,
            subset_size=sum(1 for _ in feeds),
            fast_bias_correction=True,
            ignored_scope=scope,
            advanced_parameters=advanced,
        )


def _estimator(sets: Any, method: str) -> Any:
    # NNCF has no least-squares estimator; quantiles are what it offers against outliers.
    return sets.MINMAX if method == "minmax" else sets.MEDIAN_MINMAX


class _Feeds:
    """A fresh pass over the calibration feeds whenever NNCF asks."""

    def __init__(self, samples: Any, source: Artifact, limit: int) -> None:
        self._args = samples, source.inputs, limit, source.facts.get("bounds")

    def __iter__(self) -> Iterator[Any]:
        return (dict(feeds) for feeds in batches(*self._args))


def quiet_nncf() -> Any:
    """The `nncf` module without telemetry and without its progress messages."""
    before = os.environ.get("NNCF_CI")
    os.environ["NNCF_CI"] = "1"  # read once, at import: no telemetry object is made
    try:
        import nncf
        import nncf.quantization.range_estimator
    except ImportError as error:
        raise MissingTool(
            "nncf is not installed",
            where="quantize_static",
            fix="pip install edge-compressor[openvino]",
        ) from error
    finally:
        if before is None:
            del os.environ["NNCF_CI"]
        else:
            os.environ["NNCF_CI"] = before
    nncf.set_log_level(logging.ERROR)
    return nncf


def requested(model: Any, stay: dict[str, str]) -> list[dict[str, str]]:
    """What was asked for, per layer with weights, and for every layer the user keeps float."""
    rows = []
    for op in model.get_ordered_ops():
        name, kind = op.get_friendly_name(), op.get_type_name()
        layer = name.removesuffix("/WithoutBiases")
        if kind in WEIGHTED_TYPES:
            integer = weight_bits(op) in {4, 8}
            why = "" if integer else stay.get(name, _left(op))
            precision = "int8" if integer else "float32"
            rows.append({"layer": layer, "op": kind, "requested": precision, "reason": why})
        elif kind in RECURRENT_TYPES:
            why = stay.get(name, "a recurrent state is not quantized; use quantize_weights")
            rows.append({"layer": layer, "op": kind, "requested": "float32", "reason": why})
        elif name in stay:
            rows.append({"layer": layer, "op": kind, "requested": "float32", "reason": stay[name]})
    return rows


def _left(op: Any) -> str:
    if weight_bits(op) is None:
        return "both operands are computed: no weight to store"
    return "NNCF left it float"


def _facts(source: Artifact, rows: list[dict[str, str]], options: Any, env: Env) -> dict[str, Any]:
    import nncf
    import openvino as ov

    left = [f"{row['layer']} ({row['reason']})" for row in rows if row["requested"] == "float32"]
    count = sum(row["requested"] == "int8" for row in rows)
    note = (
        f"kept float: {', '.join(left)}"
        if left
        else f"all {count} layers with weights were asked to run in INT8"
    )
    used = min(options.samples, len(env.data["calibration"]))
    return {
        "requested": rows,
        "container": "ir",
        "notes": [*source.facts.get("notes", []), note],
        "quantization": {
            "tool": f"nncf {nncf.__version__} on openvino {ov.__version__.split('-')[0]}",
            "method": options.method,
            "samples": used,
            "weights": "int8 per channel",
            "activations": "int8 and uint8",
            "reduce_range": False,
        },
    }
