"""The parts that designs can be synthesised for, and those the open router knows."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from exporters.base import Refusal
from runtimes.errors import UsageError

SPARE = 1.1  # by which the count may miss before synthesis says so itself


@dataclass(frozen=True)
class Device:
    """A part.

    Attributes:
        name: as in recipes.
        family: `ice40`, `ecp5` or `xc7`.
        luts: how many there are: with carry and register each (`ice40`), of four inputs (`ecp5`),
            of six (`xc7`).
        flags: what nextpnr is told; empty where no open router is used.
        per_cost: LUTs for one of da4ml's cost: measured on nets of 4,000 to 7,000.
    """

    name: str
    family: str
    luts: int
    flags: tuple[str, ...]
    per_cost: float

    @property
    def routed(self) -> bool:
        """Whether the open router places and routes it."""
        return bool(self.flags)


_ICE40, _ECP5, _XC7 = 1.65, 1.95, 1.0
DEVICES = {
    d.name: d
    for d in (
        Device("ice40-up5k", "ice40", 5280, ("--up5k", "--package", "sg48"), _ICE40),
        Device("ice40-hx8k", "ice40", 7680, ("--hx8k", "--package", "ct256"), _ICE40),
        Device(
            "ecp5-25k", "ecp5", 24288, ("--25k", "--package", "CABGA381", "--speed", "6"), _ECP5
        ),
        Device(
            "ecp5-45k", "ecp5", 43848, ("--45k", "--package", "CABGA381", "--speed", "6"), _ECP5
        ),
        Device(
            "ecp5-85k", "ecp5", 83640, ("--85k", "--package", "CABGA381", "--speed", "6"), _ECP5
        ),
        Device("xc7a35t", "xc7", 20800, (), _XC7),
        Device("xc7z020", "xc7", 53200, (), _XC7),
        Device("xc7a100t", "xc7", 63400, (), _XC7),
    )
}


def device(name: str) -> Device:
    """The part of that name; `UsageError` with the closest where there is none."""
    if name in DEVICES:
        return DEVICES[name]
    near = difflib.get_close_matches(name, DEVICES, 1, cutoff=0.4)
    raise UsageError(
        "unknown device",
        where="to_fpga.device",
        expected="one of " + ", ".join(DEVICES),
        got=name,
        fix=f"did you mean {near[0]}?" if near else "",
    )


def least(luts: float) -> Device | None:
    """The smallest routed part with so many LUTs."""
    parts = sorted(DEVICES.values(), key=lambda d: d.luts)
    return next((d for d in parts if d.routed and d.luts >= luts), None)


def too_large(counted: float, name: str, facts: dict[str, Any]) -> Refusal | None:
    """Whether a network of so many counted LUTs is too large for a part, and what would fit."""
    part = device(name)
    need = counted * part.per_cost
    if need <= SPARE * part.luts:
        return None
    fixes = []
    weights, none = facts.get("weights", 0), facts.get("zero_weights", 0)
    if weights:
        keep = (weights - none) / weights * part.luts / need
        bits = max(facts.get("bits", {"": 0}).values())
        fixes.append(f"prune to {min(0.99, 1 - 0.95 * keep):.0%} zeros (quantize_fixed.zeros), or "
                     f"use fewer than {bits} bits")  # fmt: skip
    larger = least(need)
    if larger is not None:
        fixes.append(f"choose {larger.name}")
    return Refusal(
        "model",
        f"needs about {need:,.0f} LUTs (da4ml counts {counted:,.0f}), {name} has {part.luts:,}",
        ", or ".join(fixes),
    )
