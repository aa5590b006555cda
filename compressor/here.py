"""What a target finds on this machine: devices, units for half precision, its kind of integers."""

from __future__ import annotations

from typing import Any

from compressor.steps import load_step
from exporters.base import QuantScheme, Target
from runtimes.base import load_runtime
from runtimes.host import facts


def devices_of(target: Target) -> list[str]:
    """Device families the target's engine finds on this machine."""
    engine: Any = load_runtime(target.runtime)
    found = engine.devices() if hasattr(engine, "devices") else [target.device]
    return sorted({str(name).split(".")[0] for name in found})


def has_half(target: Target) -> bool:
    """Whether this machine's CPU computes in half precision, as far as the target asks."""
    return not target.half_isa or bool(target.half_isa & set(facts()["isa"]))


def scheme_here(target: Target) -> QuantScheme | None:
    """The target's integers on this machine's CPU, where the instruction set decides."""
    module: Any = load_step("to_" + target.name)
    if not hasattr(module, "scheme_for"):
        return target.scheme
    scheme: QuantScheme = module.scheme_for(facts()["isa"])
    return scheme
