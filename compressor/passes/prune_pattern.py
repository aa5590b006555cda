"""Set weights to zero in a pattern: any of them, whole blocks, or two of every four.

Shapes stay, so the model file and the engines' work do too (ONNX Runtime and OpenVINO multiply with
zeros): the coded package shrinks, and TensorRT skips two of four on sparse tensor cores. The other
weights are re-solved so that each layer's outputs move least on unlabelled data. `recover` and the
steps that round weights keep the zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from compressor.pruning.patterns import parse_pattern, parse_sparsity
from compressor.pruning.source import refusals as source_refusals
from compressor.pruning.source import tools as source_tools
from exporters.base import Context, Env, Refusal
from runtimes.errors import UsageError
from runtimes.types import Artifact

REV = 2
ACCEPTS = frozenset({"module", "onnx"})
PRODUCES = "same"
NEEDS: frozenset[str] = frozenset()
USES = frozenset({"training", "calibration"})
_MODULE_TOOLS = ("torch", "safetensors")


@dataclass(frozen=True)
class Options:
    """Which zeros, and how they are chosen.

    Attributes:
        pattern: "2:4" (in quotes), where two of every four input channels stay at each kernel
            position; `unstructured`; or a block of outputs x input channels that goes as one, such
            as 1x4, 4x1 or 4x4.
        sparsity: the share of the weights that are zero afterwards ("50%" or 0.5); 2:4 is half.
        saliency: `magnitude` looks at weights alone; `wanda` at their size times that of what they
            are multiplied with (arXiv 2306.11695); `reconstruction` at the layer's output error,
            and re-solves the other weights. The latter two need data, no labels. `auto` is
            reconstruction where there is data, else magnitude.
        scope: `global` shares the zeros over the layers by what each loses; `uniform` gives every
            layer the same share, as 2:4 does.
        floor: the least share of its weights that any layer keeps.
        least: smaller weights (in values) are left alone.
        samples: how many samples are looked at: three fifths to solve, the rest to choose and tell.
    """

    pattern: str | int = "unstructured"
    sparsity: str | float = "50%"
    saliency: Literal["auto", "magnitude", "wanda", "reconstruction"] = "auto"
    scope: Literal["global", "uniform"] = "global"
    floor: float = 0.1
    least: int = 256
    samples: int = 512

    def __post_init__(self) -> None:
        share = parse_sparsity(self.sparsity, parse_pattern(self.pattern))
        if not 0 <= self.floor <= 1 - share:
            raise UsageError(
                "layers cannot keep that much", where="prune_pattern floor",
                expected=f"between 0 and {1 - share:g}, the share that stays", got=f"{self.floor}",
            )  # fmt: skip
        if self.least < 0 or self.samples < 1:
            raise UsageError("least is at least 0, samples at least 1", where="prune_pattern")


def tools() -> dict[str, str]:
    """Versions of what reads, runs and writes the models."""
    return source_tools(_MODULE_TOOLS)


def refusals(source: Artifact, options: Options, context: Context) -> list[Refusal]:
    """Formats that hold neither module nor graph, quantized graphs, and what is not installed.

    Layers are looked at in `run`, once the model is there.
    """
    del options, context
    return source_refusals(source, "weights of {} cannot be set to zero", _MODULE_TOOLS)


def run(source: Artifact, options: Options, env: Env) -> Artifact:
    """Set weights of the module or graph in `source` to zero.

    Raises `Unsupported` naming every layer and reason where no weight can have the pattern,
    `UsageError` where no weight would become zero, where saliency lacks data, or where a `keep`
    matches nothing.
    """
    if source.format == "onnx":
        from compressor.pruning.pattern_onnx import run_onnx

        return run_onnx(source, options, env)
    from compressor.pruning.pattern_module import run_module

    return run_module(source, options, env)
