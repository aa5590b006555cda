"""Weights stored in 4 bits, rounded so that each layer's outputs move least on calibration data.

The same files as `quantize_weights` makes. Nearest rounding minimises the error of the weights;
here the error of what they are multiplied into is minimised (GPTQ's error feedback, then coordinate
descent and scales in closed form; see `compressor.quantization.reconstruction`). No labels and no
gradients. Which weights keep 8 bits is chosen by that error too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from compressor.quantization import storage
from compressor.quantization.blas import one_blas_thread
from exporters.base import Context, Env
from runtimes.errors import Refusal
from runtimes.types import Artifact

REV = 7
ACCEPTS = frozenset({"onnx", "onnxruntime", "openvino"})
PRODUCES = "same"
NEEDS = frozenset({"calibration"})
USES: frozenset[str] = frozenset({"calibration"})


@dataclass(frozen=True)
class Options:
    """How weights are stored.

    Attributes:
        bits: 4, or 8.
        share: of the weights' values, at least this much gets `bits` = 4; the rest, where 4 bits
            move the outputs most, stays at 8.
        least: smaller tensors (in values) are left as they are.
        bias_correction: undo the shift of each layer's mean output that is left.
        samples: of the calibration data.
        rows: of each layer's input to look at, over all samples (twice its columns if more).
        assign: weight or layer name → bits (4, 8, 16 for half, or 32 to leave it alone), over what
            `bits` and `share` say.
        block: columns of a weight that share a scale, where a float layer stores 4 bits and they
            divide evenly; 0 is one scale per output channel.
        blocks: weight or layer name → its `block`, over what that says.
        form: `folded` weights are expanded while the model loads; `computed` ones stay integers in
            memory and the engine multiplies with them, activations in INT8 by block (MatMulNBits
            of ONNX Runtime, compressed weights of OpenVINO) or in float (INT4 for TensorRT; 8 bits
            stay float there): MatMuls and Gemms whose columns divide into blocks of `block` (0: 32;
            for OpenVINO 128; for TensorRT the largest of 128, 64, 32 and 16 that does).
    """

    bits: Literal[4, 8] = 4
    share: float = 0.97
    least: int = 256
    bias_correction: bool = True
    samples: int = 300
    rows: int = 4096
    assign: Mapping[str, int] = field(default_factory=dict)
    block: int = 0
    blocks: Mapping[str, int] = field(default_factory=dict)
    form: Literal["folded", "computed"] = "folded"


def tools() -> dict[str, str]:
    """Versions of what reads and writes the models."""
    return storage.tools()


def refusals(source: Artifact, options: Options, context: Context) -> list[Refusal]:
    """Why this model's weights cannot be stored in fewer bits."""
    return storage.refusals(source, options, context)


@one_blas_thread()
def run(source: Artifact, options: Options, env: Env) -> Artifact:
    """Store the weights; raises `Unsupported` where there are none, or nothing shrank."""
    return storage.run(source, options, env, where="reconstruct_weights", reconstructed=True)
