"""Fixed point for an FPGA: symmetric integers whose scales are powers of two, trained as such.

With training data the model is trained in fixed point without labels: the original's outputs are
the aim (as in `recover`), rounding lets gradients through, and weights are zeroed gradually where
`zeros` asks for it, since on an FPGA each one is an adder less. Zeros that are there stay. With
calibration data alone it is only rounded (post-training), which few bits do not survive: the
accuracy gate judges it.

What comes out is a specification to the last bit (`fixed.json`, `weights.npz`; see
`runtimes/fixed/spec.py`) and runs in numpy. A back end then builds the same integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from compressor.recovery.schedule import check_budget, out_of_range
from exporters.base import Context, Env, Refusal, installed
from runtimes.errors import UsageError
from runtimes.types import Artifact

REV = 1
ACCEPTS = frozenset({"onnx"})
PRODUCES = "fixed"
NEEDS: frozenset[str] = frozenset()
USES = frozenset({"training", "calibration"})


@dataclass(frozen=True)
class Options:
    """Into how many bits, how sparse, and how long to train.

    Attributes:
        weight_bits: of weights, the sign included; 1 allows nothing but zero, so at least 2.
        activation_bits: of what is computed between layers (behind ReLU without a sign).
        input_bits: of the model's inputs, whose integer bits calibration finds.
        input_format: instead, [signed, integer, fraction] bits, such as [0, 0, 4] for sixteen steps
            from 0 up to 1.
        zeros: share of the weights that is zero in the end, 0 to below 1 (unstructured).
        per_channel: a weight has a scale for each output channel, which costs nothing where
            multiplications are adders; some back ends want one a tensor.
        rounding: RND adds half before it cuts, TRN only cuts (cheaper, and biased).
        overflow: SAT keeps the largest value, WRAP drops the upper bits (cheaper); with WRAP,
            calibration data that overflows is an error.
        lut_budget: LUTs by da4ml's count that the network may take. Layers get fewer bits one by
            one until they fit, where that costs least, and are trained on so. 0: no budget.
        aim: what counts as close to the original: the `outputs`, or of class `scores` their
            probabilities as well.
        epochs: passes over the training data (may be a fraction); 30 where nothing else is said.
        minutes: instead of epochs, a budget on this machine; it becomes a number of steps.
        steps: instead of both, the number of optimizer steps.
        batch: samples a step.
        lr: highest learning rate (AdamW, one cycle).
        patience: epochs without improvement on the held-out samples before it stops, in the second
            half only.
        held_out: fraction of the training data that only chooses the best weights.
        samples: calibrate on at most this many.
    """

    weight_bits: int = 6
    activation_bits: int = 6
    input_bits: int = 6
    input_format: tuple[int, ...] = ()
    zeros: float = 0.0
    per_channel: bool = True
    rounding: Literal["RND", "TRN"] = "RND"
    overflow: Literal["SAT", "WRAP"] = "SAT"
    lut_budget: int = 0
    aim: Literal["outputs", "scores"] = "outputs"
    epochs: float = 0
    minutes: float = 0
    steps: int = 0
    batch: int = 64
    lr: float = 5e-3
    patience: int = 10
    held_out: float = 0.05
    samples: int = 512

    def __post_init__(self) -> None:
        check_budget(self, "quantize_fixed")
        for name, low, high in (
            ("weight_bits", 2, 16), ("activation_bits", 1, 16), ("input_bits", 1, 16),
            ("samples", 1, 1 << 30), ("lut_budget", 0, 1 << 30),
        ):  # fmt: skip
            if not low <= getattr(self, name) <= high:
                where = f"quantize_fixed.{name}"
                raise out_of_range(where, f"{low} to {high}", getattr(self, name))
        if not 0 <= self.zeros < 1:
            raise out_of_range("quantize_fixed.zeros", "0 to below 1", self.zeros)
        given = self.input_format
        if given and (len(given) != 3 or given[0] not in (0, 1) or not 1 <= sum(given) <= 16):
            raise UsageError(
                "not a format", where="quantize_fixed.input_format", got=str(given),
                expected="[0 or 1, integer bits, fraction bits], 1 to 16 in all",
            )  # fmt: skip


def tools() -> dict[str, str]:
    """Torch and onnx; MissingTool where one is not installed."""
    return installed(
        ("torch", "onnx", "onnxruntime"), "quantize_fixed", "pip install 'edge-compressor[torch]'"
    )


def refusals(source: Artifact, options: Options, context: Context) -> list[Refusal]:
    """Every node that has no fixed-point form, with what to change."""
    from compressor.fixed.fit import refusals as found

    return found(source, options, context)


def run(source: Artifact, options: Options, env: Env) -> Artifact:
    """Calibrate, train where there is data for it, and write the specification.

    Raises `Unsupported` with the nodes that cannot be built, `UsageError` without any data or where
    calibration data overflows, `BuildFailed` where training diverged.
    """
    from compressor.fixed.fit import run as fit

    return fit(source, options, env)
