"""Step `to_qonnx`: a fixed-point specification → a QONNX file, for FINN and whoever else reads it.

Quant nodes with one power of two each and zero points of 0, beside a folding configuration for FINN
with cycles by formula. FINN, Vitis AI and FPGA AI Suite are not run: this is a hand-off. The file
is executed, by qonnx where it is installed, and has to give the integers of the numpy reference.
"""

from __future__ import annotations

from dataclasses import dataclass

from exporters.base import Context, Env, Refusal, where_installed
from runtimes.errors import UsageError
from runtimes.types import Artifact

REV = 1
ACCEPTS = frozenset({"fixed"})
PRODUCES = "fpga"
NEEDS: frozenset[str] = frozenset()
USES = frozenset({"calibration", "training"})


@dataclass(frozen=True)
class Options:
    """How fast FINN's layers are to be, and how much is compared.

    Attributes:
        cycles: that the slowest layer may take for one input; folding is chosen for it, with as
            few multipliers as that allows.
        vectors: compared at least: the ends of every input's range, calibration data, and random
            ones.
        limit_minutes: that qonnx may take.
    """

    cycles: int = 1024
    vectors: int = 64
    limit_minutes: float = 20

    def __post_init__(self) -> None:
        for name in ("cycles", "vectors", "limit_minutes"):
            got = getattr(self, name)
            if got <= 0:
                raise UsageError(
                    "out of range", where=f"to_qonnx.{name}", expected="> 0", got=str(got)
                )


def tools() -> dict[str, str]:
    """Versions of onnx, which writes the file, and of qonnx where it is installed."""
    return where_installed(("onnx", "qonnx"))


def refusals(source: Artifact, options: Options, context: Context) -> list[Refusal]:  # noqa: ARG001
    """Layers whose integers float32 or a Quant node cannot hold, all at once."""
    if source.format not in ACCEPTS:
        return []
    from exporters.fpga.qonnx import refused
    from runtimes.fixed.spec import read_spec

    return refused(read_spec(source.root))


def run(source: Artifact, options: Options, env: Env) -> Artifact:
    """Write `model.qonnx.onnx` and `folding.json`, and compare the file with the reference.

    Raises:
        Unsupported: layers that QONNX cannot say exactly.
        BadArtifact: the file gives other integers than the reference.
        BuildFailed: qonnx failed or took too long.
    """
    from exporters.fpga.handoff import build

    return build(source, options, env)
