"""INT8 without calibration: activations get their scales while the model runs.

ONNX Runtime has such kernels for LSTM (`DynamicQuantizeLSTM`) and for products with a constant
matrix (`DynamicQuantizeMatMul`); a large GRU or RNN becomes a loop over the latter. On one thread
of a CPU with VNNI they took 0.3 to 0.5 of the float kernels' time, and their weights may lie in the
file in 4 bits at no cost: INT4 → `Cast`(INT8) is folded before the kernels pack them
(benchmarks/quantization_recurrent). It takes what `quantize_static` left in float, so it comes
after that step and before `quantize_weights`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from typing import Literal

from compressor.quantization.blas import one_blas_thread
from exporters.base import Context, Env
from runtimes.errors import Refusal, Unsupported
from runtimes.types import Artifact

REV = 5
ACCEPTS = frozenset({"onnx", "onnxruntime"})
PRODUCES = "same"
NEEDS: frozenset[str] = frozenset()
USES = frozenset({"calibration"})


@dataclass(frozen=True)
class Options:
    """Which layers, and how their weights are stored.

    Attributes:
        ops: the kinds of layers to take: `LSTM`, `GRU`, `RNN`, `MatMul`, `Gemm`.
        exclude: node names (globs) to leave as they are in this step, beside the recipe's `keep`.
        store: bits of the weights in the file, 8 or 4; the kernels and their speed are the same.
        share: with `store: 4`, of these weights' values at least this much gets 4 bits; the rest,
            where 4 bits hurt most, stays at 8.
        least: an LSTM with fewer weight values stays float, and so does a product with fewer than
            4 times, an RNN with fewer than 8 times and a GRU with fewer than 24 times as many
            (16 and 12 where sequences have one step): what surrounds the integer kernel would cost
            as much as it saves.
        reconstruct: with `store: 4` and calibration data, round so that each layer's outputs change
            least, and not its weights.
        bias_correction: undo the shift that rounded weights give each layer's mean output, given
            calibration data.
        samples: of the calibration data, for these two.
    """

    ops: tuple[str, ...] = ("LSTM", "GRU", "RNN", "MatMul", "Gemm")
    exclude: tuple[str, ...] = ()
    store: Literal[8, 4] = 8
    share: float = 0.97
    least: int = 16384
    reconstruct: bool = True
    bias_correction: bool = True
    samples: int = 300


def tools() -> dict[str, str]:
    """Versions of onnx and onnxruntime."""
    return {name: metadata.version(name) for name in ("onnx", "onnxruntime")}


def refusals(source: Artifact, options: Options, context: Context) -> list[Refusal]:
    """Why no layer of this model can run on ONNX Runtime's dynamic kernels."""
    from compressor.quantization import onnx_dynamic

    return onnx_dynamic.refusals(source, options, context)


@one_blas_thread()
def run(source: Artifact, options: Options, env: Env) -> Artifact:
    """Put the kernels in; raises `Unsupported` with a reason per layer where none could be."""
    from compressor.quantization import onnx_dynamic

    found = refusals(source, options, env.context)
    if found:
        raise Unsupported("nothing to run in dynamic INT8", found, where="quantize_dynamic")
    return onnx_dynamic.run(source, options, env)
