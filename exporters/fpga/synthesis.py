"""Synthesis with yosys: counts, the netlist that is routed, and the same one as AND gates.

For the gate-level check, yosys puts the vendor's simulation models in the place of the cells and
turns all into AND gates, inverters and registers (AIGER; Biere et al., "AIGER 1.9", 2011), which
`runtimes/fpga/gates.py` simulates. What is checked is the very netlist that the router gets.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from exporters.fpga.devices import Device
from exporters.fpga.tools import run_python
from exporters.fpga.verilog import TOP
from runtimes.errors import BuildFailed

NETLIST, GATES, COUNTS = "serial.json", "gates.aig", "counts.json"
_CHILD = """
import sys
from pyosys import libyosys
design = libyosys.Design()
for line in open(sys.argv[1]):
    libyosys.run_pass(line.strip(), design)
"""
# The usual flow maps with abc9, which takes minutes for nets of this size: adders are carry chains
# already, and what is left between them `abc` maps in a second.
_ICE40 = (
    f"synth_ice40 -device {{part}} -top {TOP}_serial -run begin:map_luts",
    "abc -lut 4",
    "ice40_wrapcarry -unwrap",
    "techmap -map +/ice40/ff_map.v",
    "clean",
    "opt_lut -tech ice40",
    f"synth_ice40 -device {{part}} -top {TOP}_serial -run map_cells:json",
)
_SYNTH: Mapping[str, tuple[str, ...]] = {
    "ice40": _ICE40,
    "ecp5": (f"synth_ecp5 -noabc9 -top {TOP}_serial",),
    "xc7": (f"synth_xilinx -family xc7 -top {TOP}_core -flatten -noiopad",),
}
_MODELS = {"ice40": "-D NO_ICE40_DEFAULT_ASSIGNMENTS +/ice40/cells_sim.v",
           "ecp5": "+/lattice/cells_sim_ecp5.v"}  # fmt: skip
# Cells become gates before they are put in their places: the netlist has thousands of them, of some
# hundred kinds.
_TO_GATES = (
    f"hierarchy -top {TOP}_serial",
    "proc",
    "opt -full",
    "techmap",
    "opt -full",
    "dfflegalize -cell $_DFF_P_ 01",
    "aigmap",
    "opt -full",
    "flatten",
    "setundef -zero -init -undriven",
    "aigmap",
    "opt_clean",
    f"write_aiger -zinit -symbols {GATES}",
)
_KINDS: Mapping[str, tuple[str, ...]] = {
    "luts": ("SB_LUT4", "LUT1", "LUT2", "LUT3", "LUT4", "LUT5", "LUT6", "TRELLIS_COMB"),
    "ffs": ("SB_DFF*", "TRELLIS_FF", "FD*"),
    "dsps": ("SB_MAC16", "MULT18X18D", "DSP48E1"),
    "brams": ("SB_RAM40_4K*", "DP16KD", "RAMB18E1", "RAMB36E1"),
    "carries": ("SB_CARRY", "CCU2C", "CARRY4"),
}


@dataclass(frozen=True)
class Synthesised:
    """What synthesis came to: cells by kind, as yosys counts them (no router has seen them)."""

    cells: Mapping[str, int]

    def count(self, kind: str) -> int:
        """Cells of a kind of `_KINDS`; a CCU2C is a carry and two LUTs in one."""
        found = sum(
            number
            for name, number in self.cells.items()
            if any(name == k or (k.endswith("*") and name.startswith(k[:-1])) for k in _KINDS[kind])
        )
        return found + 2 * self.cells.get("CCU2C", 0) if kind == "luts" else found


def synthesise(
    sources: Path, folder: Path, device: Device, logs: Path, limit_s: float
) -> Synthesised:
    """Synthesise `sources/*.v` into `folder`: netlist, gates (not for Xilinx), counts.

    Raises `BuildFailed` where yosys fails or takes longer than `limit_s`.
    """
    part = "u" if "up5k" in device.name else "hx"
    lines = [f"read_verilog {sources / name}.v" for name in ("net", "stream", "serial")]
    lines += [line.format(part=part) for line in _SYNTH[device.family]]
    lines += [f"write_json {NETLIST}", f"tee -q -o {COUNTS} stat -json"]
    if device.family in _MODELS:
        lines += [
            "delete =A:blackbox =A:whitebox %u",
            f"read_verilog -overwrite -defer {_MODELS[device.family]}",
            *_TO_GATES,
        ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "synth.ys").write_text("\n".join(lines) + "\n", encoding="utf-8")
    run_python(_CHILD, ["synth.ys"], logs / "yosys.log", limit_s, folder)
    return Synthesised(_cells(folder / COUNTS))


def _cells(path: Path) -> dict[str, int]:
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))["modules"]
        found = next(iter(modules.values()))
        counts = found.get("num_cells_by_type") or found["cells_by_type"]
        return {str(name): int(number) for name, number in counts.items()}
    except (OSError, ValueError, KeyError, StopIteration) as error:
        raise BuildFailed(f"yosys left no counts: {error!r}", where="to_fpga") from error
