"""INT8 weights and activations from calibration data, placed where the target's engine gains.

ONNX and ONNX Runtime artifacts get Q/DQ pairs by our own placement, which follows what ONNX Runtime
fuses; OpenVINO artifacts go through NNCF on the OpenVINO model itself. Measured side by side in
benchmarks/quantization_engines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from compressor.quantization.blas import one_blas_thread
from exporters.base import Context, Env, where_installed
from runtimes.errors import Refusal, Unsupported
from runtimes.types import Artifact

REV = 10
ACCEPTS = frozenset({"onnx", "onnxruntime", "openvino"})
PRODUCES = "same"
NEEDS = frozenset({"calibration"})
USES = frozenset({"calibration"})


@dataclass(frozen=True)
class Options:
    """How ranges are found.

    Attributes:
        method: `minmax` clips nothing; `percentile` leaves out 0.01 % of the values at each end;
            `mse` takes the range of least squared error; `entropy` the one whose distribution
            diverges least. For OpenVINO these are NNCF's, which has no `entropy` and takes `mse`.
        samples: calibrate on at most this many.
        bias_correction: undo the shift that rounded weights give each layer's mean output. `auto`:
            our own correction for ONNX, none for OpenVINO, where NNCF's cost more than it gave.
        smooth: SmoothQuant: outlier channels of a transformer's activations lend their range to the
            weights. `auto` applies it to the products whose rounding noise it lowers.
        exclude: node names (globs) to leave float in this step, beside the recipe's `keep`.
        dtype: `int8`, or `float8` (E4M3, for TensorRT): ranges from `minmax`, never smoothed.
    """

    method: Literal["minmax", "percentile", "mse", "entropy"] = "minmax"
    samples: int = 300
    bias_correction: Literal["auto", "on", "off"] = "auto"
    smooth: Literal["auto", "on", "off"] = "auto"
    exclude: tuple[str, ...] = ()
    dtype: Literal["int8", "float8"] = "int8"


def tools() -> dict[str, str]:
    """Versions of what calibrates: ONNX Runtime; NNCF and OpenVINO where they are installed."""
    return where_installed(("onnx", "onnxruntime", "nncf", "openvino"))


def refusals(source: Artifact, options: Options, context: Context) -> list[Refusal]:
    """Why this model cannot be quantized: it is already, or holds nothing to quantize."""
    from compressor.quantization import onnx_pass

    if found := onnx_pass.number_refusals(options, context):
        return found
    if source.format == "openvino":
        from compressor.quantization import openvino_static

        return openvino_static.refusals(source)
    scheme = onnx_pass.asked_scheme(options, context)
    return onnx_pass.static_refusals(source, options.exclude, context, scheme)


@one_blas_thread()
def run(source: Artifact, options: Options, env: Env) -> Artifact:
    """Quantize; raises `Unsupported` with a reason per node where nothing could be."""
    found = refusals(source, options, env.context)
    if found:
        raise Unsupported("cannot be quantized", found, where="quantize_static")
    if source.format == "openvino":
        from compressor.quantization import openvino_static

        return openvino_static.run(source, options, env)
    from compressor.quantization import onnx_pass

    return onnx_pass.run_static(source, options, env)
