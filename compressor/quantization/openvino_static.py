"""Post-training INT8 of an OpenVINO model: NNCF on the IR itself, quietly, with canonical bytes.

Against NNCF's defaults, measured on trained networks (benchmarks/quantization_engines): ranges are
the largest seen instead of means of each sample's, +3 to +20 dB; no bias correction, which took
3 to 12 dB away from convolutional networks; batches instead of single samples, which is faster;
asymmetric activations where they have both signs and the model convolutions (a MobileNetV3:
+2.6 dB); weights in the full range where the CPU cannot overflow, and all of them in half of it
where it can (NNCF: the first convolutions, on either); SmoothQuant of our own.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np

from compressor.quantization import openvino_smooth, smooth
from compressor.quantization.calibration import BATCH, batches
from compressor.quantization.calibration_memory import Held, held_by_nncf
from compressor.quantization.calibration_ranges import PERCENTILE
from compressor.quantization.conformance import require_conforming
from compressor.quantization.conformance_openvino import openvino_violations
from compressor.quantization.convergence import convergence_facts, convergence_note
from compressor.quantization.keep import kept
from compressor.quantization.onnx_pass import asked, integers, keep_of, write_quantized
from compressor.quantization.onnx_static import SMOOTHING_BATCHES
from compressor.quantization.openvino_branches import (
    condition_ops,
    has_branches,
    nested_ops,
    quantize_branches,
)
from compressor.quantization.openvino_ir import read_ir, write_ir
from compressor.quantization.openvino_names import named
from compressor.quantization.openvino_ranges import widening
from compressor.quantization.openvino_smooth import has_attention
from compressor.quantization.openvino_weights import RECURRENT_TYPES, WEIGHTED_TYPES, weight_bits
from exporters._drop_in import require_drop_in
from exporters._schemes import OPENVINO
from exporters.base import Env, QuantScheme
from runtimes.errors import BuildFailed, MissingTool, Refusal, Unsupported
from runtimes.types import Artifact

ACTIVATIONS = "s8 and u8"  # as NNCF finds signs in them, whatever the CPU


def scheme_of(env: Env) -> QuantScheme:
    """The target's scheme, which the CPU's instruction set decides; outside of a target, VNNI's."""
    return env.context.scheme or OPENVINO


def refusals(source: Artifact) -> list[Refusal]:
    """Why NNCF will not take this model: it is quantized already, or nothing in it can be."""
    import openvino as ov

    model = ov.Core().read_model(str(source.path))
    types = {op.get_type_name() for op in nested_ops(model)}
    bits = {weight_bits(op) for op in nested_ops(model)} - {None}
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
    smoothed = _smooth(model, set(stay), source, options, env)
    feeds = _feeds(model, source, options, env)
    made, left = _quantize(model, sorted(stay), feeds, options, env)
    done = smooth.note(smoothed)
    if smoothed and not _runs_as_written(made, source, env):
        # The engine's own transformations broke what the file says; seen where factors met a mean.
        model = read_ir(source.path)
        feeds = _feeds(model, source, options, env)
        made, left = _quantize(model, sorted(stay), feeds, options, env)
        done = ["SmoothQuant was undone: OpenVINO computed something else with it"]
    scheme = scheme_of(env)
    require_conforming(openvino_violations(made, scheme), "quantize_static")
    seen = widening(model, made, feeds, env.context.threads)
    write_ir(made, env.work / source.entry, source)
    rows = requested(made, {**left, **stay})
    if not any(row["requested"] == "int8" for row in rows):
        why = [Refusal(row["layer"], row["reason"]) for row in rows]
        raise Unsupported("no layer was quantized", why, where="quantize_static")
    series = seen.series()
    notes = [integers(scheme, ACTIVATIONS), *_replaced(options.method), str(feeds.held)]
    notes += [*convergence_note(series, seen.samples), *done]
    facts = {**source.facts, **_facts(source, rows, options, env, notes)}
    facts["quantization"].update(convergence_facts(series, seen.samples))
    return require_drop_in(source, write_quantized(source, facts, env))


def _smooth(model: Any, stay: set[str], source: Artifact, options: Any, env: Env) -> list[Any]:
    if options.smooth == "off" or not (options.smooth == "on" or has_attention(model)):
        return []
    feeds = _Feeds(env.data["calibration"], source, options.samples)
    return openvino_smooth.smooth(model, stay, islice(iter(feeds), SMOOTHING_BATCHES))


def _runs_as_written(model: Any, source: Artifact, env: Env) -> bool:
    """Whether integer kernels compute what the model's FakeQuantize layers say, to 15 dB."""
    import openvino as ov

    feeds = next(iter(_Feeds(env.data["calibration"], source, 8)))
    found = []
    for integer in (True, False):
        config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "LP_TRANSFORMS_MODE": integer}
        config["INFERENCE_NUM_THREADS"] = 1
        compiled = ov.Core().compile_model(model, "CPU", config)
        found.append([np.array(v, np.float64) for v in compiled(dict(feeds)).to_tuple()])
    noise = sum(float(((a - b) ** 2).sum()) for a, b in zip(*found, strict=True))
    signal = sum(float((b**2).sum()) for b in found[1])
    return noise <= signal * 10**-1.5


def _quantize(
    model: Any, ignored: list[str], data: _Feeds, options: Any, env: Env
) -> tuple[Any, dict[str, str]]:
    """`model` in INT8 with the branches that the data takes; why layers in others stay float."""
    total = min(options.samples, len(env.data["calibration"]))
    env.progress(0.0, f"NNCF calibrates on {total} samples")

    def quantize(part: Any, feeds: Iterable[Any]) -> tuple[Any, dict[str, str]]:
        made = _by_nncf(part, ignored, feeds, options, scheme_of(env).reduce_range)
        return made, quantize_branches(part, made, feeds, quantize, env.context.threads)

    return quantize(model, data)


def _by_nncf(
    model: Any, ignored: list[str], feeds: Iterable[Any], options: Any, narrow: bool
) -> Any:
    """`model` in INT8, what stands in bodies left alone."""
    nncf = quiet_nncf()
    # `nncf.quantize` of a model without an If, which would also enter the branches of one.
    from nncf.openvino.quantization.quantize_model import native_quantize_impl

    call = native_quantize_impl if has_branches(model) else nncf.quantize
    advanced = nncf.AdvancedQuantizationParameters(
        smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1),
        disable_bias_correction=options.bias_correction != "on",
        activations_range_estimator_params=_estimator(nncf, options.method),
        overflow_fix=nncf.OverflowFix.ENABLE if narrow else nncf.OverflowFix.DISABLE,
    )
    # NNCF calibrates a recurrent state as if it were one tensor: an LSTM came out at 2 dB.
    types = sorted(RECURRENT_TYPES)
    names = sorted({*ignored, *condition_ops(model)})
    scope = nncf.IgnoredScope(names=names, types=types, validate=False)
    preset, attention = nncf.QuantizationPreset.MIXED, has_attention(model)
    if not attention and not _has_convolutions(model):
        # Zero points cost convolutions nothing, and products a sixth of their speed.
        preset = nncf.QuantizationPreset.PERFORMANCE
    # NNCF places symmetric quantizers around products of a transformer; where such a product meets
    # another layer in a Concat it then fails, and its placement for other models does not.
    kinds = [nncf.ModelType.TRANSFORMER, None] if attention else [None]
    for kind in kinds:
        try:
            with _silence():
                return call(
                    model,
                    nncf.Dataset(feeds),
                    subset_size=sum(1 for _ in feeds),
                    fast_bias_correction=True,
                    ignored_scope=scope,
                    preset=preset,
                    model_type=kind,
                    advanced_parameters=advanced,
                )
        except _errors(nncf) as error:
            failed = error
    raise BuildFailed(
        f"NNCF cannot quantize the model: {' '.join(str(failed).split())[:300]}",
        where="quantize_static",
        expected="a graph that NNCF can place its quantizers in",
        fix="keep other layers float, or none of those that share a scale with a float one",
    ) from failed


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _has_convolutions(model: Any) -> bool:
    return any("Convolution" in op.get_type_name() for op in model.get_ops())


def _errors(nncf: Any) -> tuple[type[Exception], ...]:
    """What NNCF raises where it cannot do a model; its errors have no base class of their own."""
    own = (e for e in vars(nncf.errors).values() if isinstance(e, type))
    return (RuntimeError, *(e for e in own if issubclass(e, Exception)))


def _replaced(method: str) -> list[str]:
    return ["entropy is not there in NNCF: mse is used"] if method == "entropy" else []


def _estimator(nncf: Any, method: str) -> Any:
    """NNCF's own for each method; it has none by entropy, whose place least squares take."""
    kinds = nncf.quantization.range_estimator
    if method == "minmax":
        return kinds.RangeEstimatorParametersSet.MINMAX
    if method in {"mse", "entropy"}:
        return kinds.RangeEstimatorParametersSet.HISTOGRAM
    part = kinds.StatisticsCollectorParameters(
        statistics_type=kinds.StatisticsType.QUANTILE,
        aggregator_type=kinds.AggregatorType.MEAN,
        quantile_outlier_prob=1 - PERCENTILE,
    )
    return kinds.RangeEstimatorParameters(min=part, max=part)


def _held(model: Any, source: Artifact, env: Env, method: str) -> Held:
    """What NNCF will hold: activations of as many samples at once as fit."""
    most = 1 if has_branches(model) else BATCH  # each sample takes its own branch
    copy = model.clone()
    feeds = env.data["calibration"].feeds([0])
    with contextlib.suppress(RuntimeError):  # a model that takes other sizes only
        copy.reshape({name: list(array.shape) for name, array in feeds.items()})
    made = [
        out for op in copy.get_ops() for out in op.outputs() if op.get_type_name() != "Constant"
    ]
    shapes = [out.get_partial_shape() for out in made]
    sizes = [4 * math.prod(shape.to_shape()) for shape in shapes if shape.is_static]
    return held_by_nncf(sizes, most, method, source.size_bytes, len(shapes) - len(sizes))


def _feeds(model: Any, source: Artifact, options: Any, env: Env) -> _Feeds:
    """The calibration data, as many samples at once as their activations allow."""
    held = _held(model, source, env, options.method)
    return _Feeds(env.data["calibration"], source, options.samples, held)


class _Feeds:
    """A fresh pass over the calibration feeds whenever NNCF asks, in batches as `held` says."""

    def __init__(
        self, samples: Any, source: Artifact, limit: int, held: Held | None = None
    ) -> None:
        self.held, most = held, BATCH if held is None else held.samples
        self._args = samples, source.inputs, limit, source.facts.get("bounds"), most

    def __iter__(self) -> Iterator[Any]:
        return (dict(feeds) for feeds in batches(*self._args))


def quiet_nncf() -> Any:
    """The `nncf` module without telemetry and without its progress messages."""
    before = os.environ.get("NNCF_CI")
    os.environ["NNCF_CI"] = "1"  # read once, at import: no telemetry object is made
    try:
        import nncf
        import nncf.errors
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
    for op in nested_ops(model):
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


def _facts(
    source: Artifact, rows: list[dict[str, str]], options: Any, env: Env, notes: list[str]
) -> dict[str, Any]:
    import nncf
    import openvino as ov

    left = {row["layer"]: row["reason"] for row in rows if row["requested"] == "float32"}
    count = sum(row["requested"] == "int8" for row in rows)
    used = min(options.samples, len(env.data["calibration"]))
    return {
        "requested": rows,
        "container": "ir",
        "notes": [*source.facts.get("notes", []), *notes, *asked(count, left)],
        "quantization": {
            "tool": f"nncf {nncf.__version__} on openvino {ov.__version__.split('-')[0]}",
            "method": "mse" if options.method == "entropy" else options.method,
            "samples": used,
            "weights": "int8 per channel",
            "activations": "int8 and uint8",
            "reduce_range": scheme_of(env).reduce_range,
        },
    }
