"""Half precision: weights stored as float16 or bfloat16, or the whole graph computing in it.

Stored (the default): CPU engines compute these layers in float32 (or in what the device does by
default), so the values are cast back, and engines fold that cast while they load: half the bytes at
no cost in speed.

`compute: half`, for devices that compute in half: an ONNX graph whose tensors are typed so, with
casts at its float32 border, as TensorRT 11 takes precision from types alone. Layers stay in float32
whose values leave float16's range on calibration data, and those whose loss is too large. For
OpenVINO, whose CPU plugin chooses bfloat16 by itself, such layers are marked in the IR.

Inputs and outputs do not change. Own code rather than onnxconverter-common: that one has no
range analysis, types by an op list, and stores what does not fit as clipped values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from exporters.base import Context, Env, where_installed
from runtimes.errors import Refusal, Unsupported
from runtimes.types import Artifact

REV = 3
ACCEPTS = frozenset({"onnx", "onnxruntime", "openvino"})
PRODUCES = "same"
NEEDS: frozenset[str] = frozenset()
USES = frozenset({"calibration"})


@dataclass(frozen=True)
class Options:
    """What is cast.

    Attributes:
        least: smaller stored tensors (in values) are left in float32: their cast would cost more
            bytes.
        dtype: `float16`, or `bfloat16`: float32's range, three digits fewer.
        compute: `float32` only stores weights in half; `half` types the graph itself (ONNX), or
            marks the layers that must not follow the device's half precision (OpenVINO).
        least_db: signal over error that outputs must keep on calibration data; layers go back to
            float32 until they do.
        samples: of the calibration data, for ranges and losses.
    """

    least: int = 64
    dtype: Literal["float16", "bfloat16"] = "float16"
    compute: Literal["float32", "half"] = "float32"
    least_db: float = 30.0
    samples: int = 32


def tools() -> dict[str, str]:
    """Versions of what reads and writes the models."""
    return where_installed(("onnx", "openvino"))


def refusals(source: Artifact, options: Options, context: Context) -> list[Refusal]:
    """A model without a float32 weight to cast, or without a layer that can compute in half."""
    from compressor.quantization import half

    if source.format == "openvino" and options.dtype == "bfloat16":
        why = "OpenVINO's files hold half weights as float16; computing in bfloat16 is the device's"
        return [Refusal("model", why, "drop dtype")]
    if source.format != "openvino" and options.compute == "half":
        from compressor.quantization import half_compute

        return half_compute.refusals(source, options, context)
    if half.castable(source, options.least, context.keep, options.dtype):
        return []
    why = f"no float32 weight of {options.least} values or more outside what `keep` names"
    return [Refusal("model", why, "ship it as it is")]


def run(source: Artifact, options: Options, env: Env) -> Artifact:
    """Cast and write the model.

    Raises `Unsupported` where there is nothing to cast, `BuildFailed` where the typed model
    computes something else.
    """
    from compressor.quantization import half

    found = refusals(source, options, env.context)
    if found:
        raise Unsupported(f"nothing to cast to {options.dtype}", found, where="cast_half")
    if source.format != "openvino" and options.compute == "half":
        from compressor.quantization import half_compute

        return half_compute.run(source, options, env)
    return half.run(source, options, env)
