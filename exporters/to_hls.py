"""Step `to_hls`: a fixed-point specification → a project of hls4ml for a vendor's HLS tool.

For what is too large to unroll, and for parts of AMD, Intel, Siemens' and Microchip's flows. Beside
the C++ lies an emulator, which g++ compiles: it has to give the integers of the numpy reference
before anything is handed out. Resources and latency are formulas, told as such, until the vendor's
tool ran; with Vitis HLS on PATH it runs, and its report takes their place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from exporters.base import Context, Env, Refusal
from runtimes.errors import UsageError
from runtimes.types import Artifact

REV = 1
ACCEPTS = frozenset({"fixed"})
PRODUCES = "fpga"
NEEDS: frozenset[str] = frozenset()
USES = frozenset({"calibration", "training"})


@dataclass(frozen=True)
class Options:
    """For which vendor's tool, how much hardware is shared, and how much is compared.

    Attributes:
        vendor: whose tool takes the project: `vitis` (AMD), `quartus` (Intel), `catapult`
            (Siemens), `libero` (Microchip; written only where SmartHLS is installed).
        part: the part as the vendor writes it; empty: hls4ml's own default.
        clock_mhz: the clock asked of the vendor's tool.
        strategy: `latency` unrolls multiplications, `resource` shares multipliers and keeps weights
            in memory.
        reuse_factor: products that share a multiplier. Where it does not divide a layer hls4ml
            takes another; the one in effect is recorded.
        io_type: `io_parallel` holds whole tensors in registers, `io_stream` passes places one by
            one, for pictures.
        vectors: compared at least: the ends of every input's range, calibration data, and random
            ones.
        limit_minutes: that one call of a tool may take.
    """

    vendor: Literal["vitis", "quartus", "catapult", "libero"] = "vitis"
    part: str = ""
    clock_mhz: float = 200
    strategy: Literal["latency", "resource"] = "latency"
    reuse_factor: int = 1
    io_type: Literal["io_parallel", "io_stream"] = "io_parallel"
    vectors: int = 256
    limit_minutes: float = 60

    def __post_init__(self) -> None:
        for name, least in (("clock_mhz", 1), ("reuse_factor", 1), ("vectors", 1),
                            ("limit_minutes", 0.01)):  # fmt: skip
            got = getattr(self, name)
            if got < least:
                raise UsageError(
                    "out of range", where=f"to_hls.{name}", expected=f">= {least}", got=str(got)
                )


def tools() -> dict[str, str]:
    """Version of hls4ml; MissingTool where it or g++ is not there."""
    from exporters.fpga import hls

    return hls.tools()


def refusals(source: Artifact, options: Options, context: Context) -> list[Refusal]:  # noqa: ARG001
    """Layers that hls4ml would build wrongly or not at all, all at once."""
    if source.format not in ACCEPTS:
        return []
    from exporters.fpga.hls_graph import refused
    from runtimes.fixed.spec import read_spec

    return refused(read_spec(source.root), options.io_type == "io_stream")


def run(source: Artifact, options: Options, env: Env) -> Artifact:
    """Write the project, compile its emulator, and compare it with the reference.

    Raises:
        Unsupported: layers that would come out wrong.
        BadArtifact: the emulator gives other integers than the reference; the first layer is named.
        BuildFailed: g++ or the vendor's tool failed or took too long.
        MissingTool: hls4ml, g++ or SmartHLS is not there.
    """
    from exporters.fpga.hls import build

    return build(source, options, env)
