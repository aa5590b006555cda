"""Quantization-aware training: the very Q/DQ graph that ships, trained without labels.

The model is quantized as `quantize_static` (and `quantize_weights`, for 4 bits) would, for the
target's scheme. That graph then runs in torch with rounding that lets gradients through and scales
that are learned (LSQ, Esser et al., arXiv 1902.08153, 2020), and is drawn towards the original's
outputs (distillation, as in `recover`). Integers and scales are written back into it, so that what
was trained is what the engine runs. Batch norms were folded before, with their statistics.

Why not NNCF's, torchao's or torch's own fake quantization: they place their rounding by rules of
their own, which an export has to translate, and know nothing of 4-bit storage under INT8 kernels;
torch's is on its way out (torch.ao.quantization moves to torchao). The graph of an ONNX file also
trains where there is no torch module.

In a target's list: `[to_onnxruntime, train_quantized]`, or after steps that quantize; for OpenVINO
`[train_quantized, to_openvino: {container: onnx}]`, since an IR would hold 4-bit weights in 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from compressor.recovery.schedule import check_budget, out_of_range
from exporters.base import Context, Env, Refusal, installed
from runtimes.errors import Unsupported
from runtimes.types import Artifact

REV = 4
ACCEPTS = frozenset({"onnx", "onnxruntime"})
PRODUCES = "same"
NEEDS = frozenset({"training"})
USES = frozenset({"training", "calibration"})


@dataclass(frozen=True)
class Options:
    """How long, and into how many bits.

    Attributes:
        weight_bits: 8, or 4 under INT8 arithmetic. A model that earlier steps quantized is trained
            as they left it.
        share: with 4 bits, the least part of the weights' values that gets them; where they hurt
            most, 8 stay.
        epochs: passes over the training data (may be a fraction); 2 where nothing else is said.
        minutes: instead of epochs, a budget on this machine; it becomes a number of steps.
        steps: instead of both, the number of optimizer steps.
        batch: samples a step.
        lr: highest learning rate (AdamW, one cycle), relative to the size of the weights.
        patience: epochs without improvement on the held-out samples before it stops, in the second
            half only: a plateau at the high learning rate of the first is no reason to.
        held_out: fraction of the training data that only chooses the best weights.
        method: how activation ranges are found first, as in `quantize_static`.
        samples: calibrate on at most this many.
    """

    weight_bits: Literal[8, 4] = 8
    share: float = 0.97
    epochs: float = 0
    minutes: float = 0
    steps: int = 0
    batch: int = 64
    lr: float = 2e-3
    patience: int = 5
    held_out: float = 0.02
    method: Literal["minmax", "mse"] = "minmax"
    samples: int = 300

    def __post_init__(self) -> None:
        check_budget(self, "train_quantized")
        if not 0 <= self.share <= 1:
            raise out_of_range("train_quantized.share", "between 0 and 1", self.share)


def tools() -> dict[str, str]:
    """Versions of what calibrates and trains; MissingTool where one is not installed."""
    return installed(
        ("torch", "onnx", "onnxruntime"), "train_quantized", "pip install 'edge-compressor[torch]'"
    )


def refusals(source: Artifact, options: Options, context: Context) -> list[Refusal]:
    """Nodes without a gradient, and what `quantize_static` would refuse."""
    from compressor.training import quantized

    return quantized.refusals(source, options, context)


def run(source: Artifact, options: Options, env: Env) -> Artifact:
    """Quantize, train, write back.

    Raises `Unsupported` where the model cannot be quantized or trained, `UsageError` where training
    changed nothing for the better, `BuildFailed` where it diverged or where the written model
    computes something else than the trained one.
    """
    found = refusals(source, options, env.context)
    if found:
        raise Unsupported("cannot be trained in integers", found, where="train_quantized")
    from compressor.training import quantized

    return quantized.run(source, options, env)
