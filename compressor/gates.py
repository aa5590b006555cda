"""The grammar of gates: `accuracy_drop<=1%`, `speedup@16>=3.5`, `p99<=9ms`, `size<=3MB`.

One grammar for recipes, `--gate` and `bench`. Limits are kept in fixed units: ratios in 0–1, times
in ms (`latency_ns` in ns), sizes in bytes, everything else as it is written.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from runtimes.errors import UsageError

Op = Literal["<=", ">="]
Unit = Literal["metric", "ratio", "times", "ms", "bytes", "db", "count", "ns", "mhz"]


@dataclass(frozen=True)
class Kind:
    """What a gate's name means: which way it bounds, and in what unit."""

    op: Op
    unit: Unit
    batched: bool = False
    example: str = ""


KINDS: Mapping[str, Kind] = {
    "accuracy_drop": Kind("<=", "metric", example="accuracy_drop<=1%"),
    "relative_drop": Kind("<=", "ratio", example="relative_drop<=1%"),
    "agreement": Kind(">=", "ratio", example="agreement>=99%"),
    "sqnr": Kind(">=", "db", example="sqnr>=20dB"),
    "size_reduction": Kind(">=", "ratio", example="size_reduction>=75%"),
    "size": Kind("<=", "bytes", example="size<=3MB"),
    "speedup": Kind(">=", "times", batched=True, example="speedup>=1.5"),
    "p50": Kind("<=", "ms", batched=True, example="p50<=5ms"),
    "p99": Kind("<=", "ms", batched=True, example="p99<=9ms"),
    "memory": Kind("<=", "bytes", batched=True, example="memory<=200MB"),
    "luts": Kind("<=", "count", example="luts<=20000"),
    "ffs": Kind("<=", "count", example="ffs<=20000"),
    "dsps": Kind("<=", "count", example="dsps<=28"),
    "brams": Kind("<=", "count", example="brams<=50"),
    "latency_ns": Kind("<=", "ns", example="latency_ns<=150"),
    "fmax_mhz": Kind(">=", "mhz", example="fmax_mhz>=50"),
}
FPGA_NAMES = frozenset({"luts", "ffs", "dsps", "brams", "latency_ns", "fmax_mhz"})

_SIZES = {"B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9}
_SIZES |= {"KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
_TIMES_MS = {"ns": 1e-6, "us": 1e-3, "µs": 1e-3, "μs": 1e-3, "ms": 1.0, "s": 1e3}
_FACTORS: Mapping[Unit, Mapping[str, float]] = {
    "metric": {"": 1.0, "%": 0.01},
    "ratio": {"": 1.0, "%": 0.01},
    "times": {"": 1.0, "x": 1.0},
    "ms": _TIMES_MS,
    "bytes": _SIZES,
    "db": {"": 1.0, "dB": 1.0},
    "count": {"": 1.0},
    "ns": {"": 1.0, "ns": 1.0},
    "mhz": {"": 1.0, "MHz": 1.0},
}
_PATTERN = re.compile(
    r"\s*(?P<name>[A-Za-z_]\w*)\s*(?:@\s*(?P<batch>[^\s<>=≤≥]+))?\s*"
    r"(?P<op><=|>=|==|=|<|>|≤|≥)\s*(?P<number>[+-]?[\d.]+(?:[eE][+-]?\d+)?)\s*(?P<unit>\S*)\s*"
    r"(?:over\s+(?P<over>[\w-]+)\s*)?"
)
_FORM = (
    "name<=limit or name>=limit, such as accuracy_drop<=1%, speedup@16>=3.5, p99<=9ms, size<=3MB"
)


@dataclass(frozen=True)
class Gate:
    """One limit that a candidate must keep.

    Attributes:
        metric: what is bounded, a key of `KINDS`.
        op: `<=` or `>=`.
        limit: in the unit of its kind (ratios 0–1, ms, bytes).
        text: as the user wrote it, without spaces; reports show it.
        batch: the batch size it names; None = every measured one.
        percent: the limit was written with a percent sign.
        of: what a size is of, the `model` file or the `package`.
        point_estimate: accept a value that has no interval.
        over: the twin a speed-up is over (`speedup>=3 over twin`); None = the fastest one that
            keeps accuracy, half precision included.
    """

    metric: str
    op: Op
    limit: float
    text: str
    batch: int | None = None
    percent: bool = False
    of: Literal["model", "package"] = "model"
    point_estimate: bool = False
    over: str | None = None

    @property
    def kind(self) -> Kind:
        """What its metric means."""
        return KINDS[self.metric]

    def to_json(self) -> str | dict[str, str]:
        """What `parse_gate` reads back as an equal gate."""
        if self.of == "model" and not self.point_estimate:
            return self.text
        made = {"gate": self.text, "of": self.of}
        return made | {"point_estimate": "allow"} if self.point_estimate else made

    def __str__(self) -> str:
        return self.text + (" of the package" if self.of == "package" else "")


def parse_gate(spec: str | Mapping[str, Any]) -> Gate:
    """A gate from `"p50<=5ms"` or `{gate: "size<=3MB", of: package, point_estimate: allow}`.

    Raises:
        UsageError: unknown name (with the closest), wrong direction, unit missing or of another
            kind, 75 where 75% is meant, an option that does not apply.
    """
    if isinstance(spec, str):
        return _parse_text(spec)
    if not isinstance(spec, Mapping) or not isinstance(spec.get("gate"), str):
        raise UsageError("not a gate", where=f"gate {spec!r}", expected=f"{_FORM}, or {{gate: …}}")
    gate = _parse_text(spec["gate"])
    for key in spec:
        if key not in {"gate", "of", "point_estimate"}:
            raise UsageError(
                f"unknown key {key!r}",
                where=f"gate {gate.text}",
                expected="gate, of, point_estimate",
                fix=_closest(str(key), ["gate", "of", "point_estimate"]),
            )
    return replace(gate, of=_of(gate, spec), point_estimate=_point_estimate(gate, spec))


def _of(gate: Gate, spec: Mapping[str, Any]) -> Literal["model", "package"]:
    of = spec.get("of", "model")
    if of not in ("model", "package"):
        raise UsageError(
            "size of what?",
            where=f"gate {gate.text}",
            expected="of: model or package",
            got=repr(of),
        )
    if of == "package" and not gate.metric.startswith("size"):
        raise UsageError(
            "only a size can be that of the package",
            where=f"gate {gate.text}",
            fix="leave `of: package` out, or gate on size or size_reduction",
        )
    return "package" if of == "package" else "model"


def _point_estimate(gate: Gate, spec: Mapping[str, Any]) -> bool:
    value = spec.get("point_estimate", "refuse")
    if value not in ("allow", "refuse"):
        raise UsageError(
            "unknown value of point_estimate",
            where=f"gate {gate.text}",
            expected="allow or refuse",
            got=repr(value),
        )
    return bool(value == "allow")


def _parse_text(text: str) -> Gate:
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise UsageError("cannot read the gate", where=f"gate {text!r}", expected=_FORM)
    name = match["name"]
    if name not in KINDS:
        raise UsageError(
            f"unknown name {name!r}",
            where=f"gate {text!r}",
            expected="one of " + ", ".join(KINDS),
            fix=_closest(name, list(KINDS)),
        )
    op = _direction(text, name, match["op"])
    batch = _batch(text, name, match["batch"])
    limit = _limit(text, name, match["number"], match["unit"])
    at = "" if batch is None else f"@{batch}"
    over = match["over"]
    if over is not None and name != "speedup":
        raise UsageError("only a speed-up is over something", where=f"gate {text!r}")
    clean = f"{name}{at}{op}{match['number']}{match['unit']}" + (f" over {over}" if over else "")
    return Gate(name, op, limit, clean, batch, percent=match["unit"] == "%", over=over)


def _direction(text: str, name: str, op: str) -> Op:
    wanted = KINDS[name].op
    if {"≤": "<=", "≥": ">="}.get(op, op) != wanted:
        side = "above" if wanted == "<=" else "below"
        raise UsageError(
            f"{name} is bounded from {side}",
            where=f"gate {text!r}",
            expected=wanted,
            got=op,
            fix=f"write it as {KINDS[name].example}",
        )
    return wanted


def _batch(text: str, name: str, batch: str | None) -> int | None:
    if batch is None:
        return None
    if not KINDS[name].batched:
        raise UsageError(
            f"{name} does not depend on the batch size",
            where=f"gate {text!r}",
            fix=f"leave @{batch} out",
        )
    if not batch.isascii() or not batch.isdigit() or int(batch) < 1:
        raise UsageError(
            "not a batch size", where=f"gate {text!r}", expected="@1, @16, …", got=f"@{batch}"
        )
    return int(batch)


def _limit(text: str, name: str, number: str, unit: str) -> float:
    kind = KINDS[name]
    factors = _FACTORS[kind.unit]
    if unit not in factors:
        raise UsageError(
            "limit without a unit" if not unit else f"{name} has no unit {unit!r}",
            where=f"gate {text!r}",
            expected=", ".join(u for u in factors if u and u != "μs") or "a plain number",
            got=unit or number,
            fix=f"write it as {kind.example}",
        )
    try:
        plain = float(number)
    except ValueError:
        plain = math.nan
    limit = plain / 100 if unit == "%" else plain * factors[unit]
    if not math.isfinite(limit) or (limit < 0 and kind.unit not in ("metric", "ratio", "db")):
        raise UsageError("not a limit", where=f"gate {text!r}", expected="a number", got=number)
    _check_ratio(text, name, limit, unit)
    return limit


def _check_ratio(text: str, name: str, limit: float, unit: str) -> None:
    if KINDS[name].unit != "ratio" or (-1.0 <= limit <= 1.0 and not (limit == 1.0 and not unit)):
        return
    plain = f"{limit:g}" if unit != "%" else f"{limit * 100:g}"
    raise UsageError(
        f"{name} is a ratio",
        where=f"gate {text!r}",
        expected="a percentage up to 100%, or a fraction below 1",
        got=plain + unit,
        fix=f"write {plain}% if per cent is meant" if not unit else "write at most 100%",
    )


def _closest(name: str, names: Sequence[str]) -> str:
    found = difflib.get_close_matches(name, names, 1, cutoff=0.4)
    return f"did you mean {found[0]!r}?" if found else ""


def check_gates(gates: Sequence[Gate], metric: str, fraction: bool) -> None:
    """Raise `UsageError` where an accuracy limit does not fit the metric's units.

    Args:
        gates: of one target.
        metric: its name, for the message.
        fraction: the metric lies in 0–1 (top1, f1, …) and is not in units of its own (mae).
    """
    for gate in gates:
        if gate.metric != "accuracy_drop":
            continue
        if fraction and gate.limit >= 1.0 and not gate.percent:
            raise UsageError(
                f"{metric} lies in 0–1: this limit allows every drop",
                where=f"gate {gate.text}",
                fix=f"write accuracy_drop<={gate.limit:g}% if points are meant",
            )
        if not fraction and gate.percent:
            raise UsageError(
                f"{metric} has units of its own: a percentage of what?",
                where=f"gate {gate.text}",
                fix=f"write relative_drop<={gate.limit * 100:g}%, or the drop in units of {metric}",
            )


def default_gates() -> list[Gate]:
    """What holds where the user names no gates: 1 % relative drop, and never worse.

    Not slower means a speed-up whose lower bound is at least 0.97.
    """
    return [parse_gate(g) for g in ("relative_drop<=1%", "size_reduction>=0%", "speedup>=0.97")]
