"""`keep: {macs: 40%}` or `{latency: 2ms}`: what stays, never a ratio of what goes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

from compressor.pruning.costs import Measure
from runtimes.errors import UsageError

Kept = Literal[Measure, "latency"]
LATENCY: Literal["latency"] = "latency"
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_TIMES = {"us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9}
_FIX = "for example keep: {macs: 40%}, {params: 0.3}, {macs: 30M}, {latency: 50%} or {latency: 2ms}"


@dataclass(frozen=True)
class Budget:
    """A fraction (`value` in 0–1) or an absolute number of one measure; latency in ns."""

    measure: Kept
    value: float
    absolute: bool

    def limit(self, whole: float) -> float:
        """The number to end at, for a module that costs `whole`; UsageError where that is more."""
        limit = self.value if self.absolute else self.value * whole
        if limit >= whole:
            raise UsageError(
                "that removes nothing", where=f"keep {self}",
                expected=f"less than the {self.shown(whole)} there are",
                got=self.shown(limit), fix="ask to keep less, or leave the step out",
            )  # fmt: skip
        return limit

    def counted(self, where: str) -> Measure:
        """The measure, where it is one that is counted; `UsageError` for latency."""
        if self.measure == LATENCY:
            raise UsageError(
                "latency is no budget here", where=f"{where} keep {self}",
                expected="one of " + ", ".join(get_args(Measure)),
                fix="only prune_channels measures while it chooses",
            )  # fmt: skip
        return self.measure

    def shown(self, amount: float) -> str:
        """An amount of this measure with its unit."""
        if self.measure == LATENCY:
            return f"{amount / 10**6:.3g} ms"
        return f"{amount:,.0f} {self.measure}"

    def __str__(self) -> str:
        shown = f"{self.value:.4g}"
        if self.absolute:
            shown = self.shown(self.value).removesuffix(f" {self.measure}")
        return f"{self.measure}: {shown}"


def parse_budget(keep: Mapping[str, Any]) -> Budget:
    """The `keep` option; raises `UsageError` where it does not name one known measure."""
    known = (*get_args(Measure), LATENCY)
    if not isinstance(keep, Mapping) or len(keep) != 1 or next(iter(keep)) not in known:
        got = ", ".join(map(str, keep)) if isinstance(keep, Mapping) else repr(keep)
        raise UsageError(
            "keep must name exactly one measure", where="keep",
            expected="one of " + ", ".join(known), got=got or "nothing", fix=_FIX,
        )  # fmt: skip
    measure: Kept = next(m for m in known if m in keep)
    given = keep[measure]
    value, absolute = _number(measure, given)
    if not value > 0:
        raise UsageError("nothing would stay", where=f"keep.{measure}", got=str(given), fix=_FIX)
    return Budget(measure, value, absolute)


class Widths(Protocol):
    """The options that every step which makes layers narrower has."""

    @property
    def floor(self) -> float: ...  # noqa: D102

    @property
    def multiple(self) -> int: ...  # noqa: D102

    @property
    def samples(self) -> int: ...  # noqa: D102


def check_widths(options: Widths, where: str) -> None:
    """Raise `UsageError` where one is out of range."""
    if not 0 <= options.floor < 1 or options.multiple < 0 or options.samples < 1:
        raise UsageError(
            "out of range", where=where,
            expected="0 <= floor < 1, multiple >= 0, samples >= 1",
            got=f"floor {options.floor}, multiple {options.multiple}, samples {options.samples}",
        )  # fmt: skip


def _number(measure: str, given: Any) -> tuple[float, bool]:
    """The amount, and whether it is one and no share."""
    time = measure == LATENCY
    if isinstance(given, (int, float)) and not isinstance(given, bool) and not (time and given > 1):
        return float(given), given > 1
    units = "%|us|µs|ms|s" if time else "%|[kKmMgG]?"
    found = re.fullmatch(rf"\s*([0-9.]+)\s*({units})\s*", str(given))
    try:
        number = float(found.group(1)) if found else None
    except ValueError:
        number = None
    if found is None or number is None:
        raise UsageError("not an amount", where=f"keep.{measure}", got=repr(given), fix=_FIX)
    if found.group(2) == "%":
        return number / 100, False
    if time:
        return number * _TIMES[found.group(2)], True
    value = number * _UNITS[found.group(2).lower()]
    return value, value > 1
