"""Place and route with nextpnr, for several seeds, and the bitstream of the median one.

What nextpnr reports is its static timing analysis of the routed design: the longest path between
any two registers, at the slowest corner of its model of the part.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from exporters.fpga.devices import Device
from exporters.fpga.tools import run_python
from runtimes.errors import BuildFailed

AIM_MHZ = 100  # more than any of these nets reaches: the router is to do its best
_CELLS = {
    "luts": ("ICESTORM_LC", "TRELLIS_COMB"),
    "ffs": ("TRELLIS_FF",),
    "brams": ("ICESTORM_RAM", "DP16KD"),
    "dsps": ("ICESTORM_DSP", "MULT18X18D"),
}
_CHILD = """
import sys
import yowasp_nextpnr_{family} as tools
sys.exit(tools.run_{tool}(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Routed:
    """One seed's result.

    Attributes:
        seed: of the placer.
        fmax_mhz: the highest clock of its timing analysis.
        used: cells by kind, `luts` (on iCE40: logic cells, each with its register), …
        design: the file that the packer reads.
    """

    seed: int
    fmax_mhz: float
    used: dict[str, int]
    design: Path


def route(
    folder: Path,
    device: Device,
    seeds: Sequence[int],
    logs: Path,
    limit_s: float,
    threads: int,
    told: Callable[[int], None],
) -> list[Routed]:
    """Place and route `folder/serial.json` once a seed, `threads` at a time.

    Raises `BuildFailed` where the design does not fit, nextpnr fails, or a seed takes longer than
    `limit_s`.
    """

    def one(seed: int) -> Routed:
        made = _route(folder, device, seed, logs, limit_s)
        told(seed)
        return made

    with ThreadPoolExecutor(max(1, threads)) as pool:
        return list(pool.map(one, seeds))


def _route(folder: Path, device: Device, seed: int, logs: Path, limit_s: float) -> Routed:
    design, report = folder / f"seed{seed}.design", folder / f"seed{seed}.json"
    out = {"ice40": "--asc", "ecp5": "--textcfg"}[device.family]
    free = {"ice40": "--pcf-allow-unconstrained", "ecp5": "--lpf-allow-unconstrained"}
    arguments = [
        *device.flags, "--json", "serial.json", "--seed", str(seed), "--freq", str(AIM_MHZ),
        "--timing-allow-fail", free[device.family], "--quiet", out, design.name,
        "--report", report.name,
    ]  # fmt: skip
    code = _CHILD.format(family=device.family, tool=f"nextpnr_{device.family}")
    run_python(code, arguments, logs / f"nextpnr-seed{seed}.log", limit_s, folder)
    try:
        told = json.loads(report.read_text(encoding="utf-8"))
        fmax = min(float(clock["achieved"]) for clock in told["fmax"].values())
        cells = {kind: int(row["used"]) for kind, row in told["utilization"].items()}
    except (OSError, KeyError, ValueError) as error:
        raise BuildFailed(f"nextpnr left no report: {error!r}", where="to_fpga") from error
    used = {k: sum(cells.get(name, 0) for name in names) for k, names in _CELLS.items()}
    return Routed(seed, fmax, used, design)


def median(found: Sequence[Routed]) -> Routed:
    """The seed in the middle by Fmax; of an even number, the slower one of two."""
    ordered = sorted(found, key=lambda r: (r.fmax_mhz, r.seed))
    return ordered[(len(ordered) - 1) // 2]


def pack(routed: Routed, device: Device, target: Path, logs: Path, limit_s: float) -> None:
    """Write the bitstream of a routed design to `target`."""
    tool = {"ice40": "icepack", "ecp5": "ecppack"}[device.family]
    code = _CHILD.format(family=device.family, tool=tool)
    made = routed.design.with_suffix(".bit")
    arguments = [routed.design.name, made.name]
    run_python(code, arguments, logs / f"{tool}.log", limit_s, routed.design.parent)
    target.write_bytes(made.read_bytes())
