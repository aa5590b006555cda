"""Verilog of a solved adder graph: one combinational module a stage, registers between them.

A value of w bits is a plain vector `v<number>`; its meaning (sign, point) is known here alone, so
operands are lined up and extended by slices and concatenations, which cost nothing in hardware.
Bits below the other operand's lowest pass an addition by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runtimes.errors import BuildFailed
from runtimes.fixed.spec import Spec
from runtimes.fpga.words import in_formats, out_formats

TOP = "net"  # what all modules' names begin with


@dataclass(frozen=True)
class Bits:
    """A vector in Verilog: its text where it is a name, width, sign, and bits after the point."""

    name: str
    width: int
    signed: bool
    fraction: int

    def ends(self, high: int, low: int) -> str:
        """Bits low…high - 1, extended past the top as the sign says."""
        if high <= low:
            return ""
        top = f"{self.name}[{self.width - 1}]" if self.signed else "1'b0"
        if self.width == 0:
            return f"{high - low}'d0"
        if low >= self.width:
            return f"{{{high - low}{{{top}}}}}"
        inside = f"{self.name}[{min(high, self.width) - 1}:{low}]"
        more = high - self.width
        return f"{{{{{more}{{{top}}}}}, {inside}}}" if more > 0 else inside


def _bits(name: str, interval: Any) -> Bits:
    """The vector that holds da4ml's interval (least, largest, step)."""
    low, high, step = (float(x) for x in interval)
    if low == high == 0:
        return Bits(name, 0, False, 0)
    fraction = -_log2(step)
    least, most = round(low / step), round(high / step)
    width = max((-least - 1).bit_length() if least < 0 else 0, most.bit_length() if most > 0 else 0)
    return Bits(name, width + int(least < 0), least < 0, fraction)


def _log2(step: float) -> int:
    number, exponent = step.as_integer_ratio()
    return number.bit_length() - 1 if exponent == 1 else 1 - exponent.bit_length()


def _joined(high: str, low: str) -> str:
    return f"{{{high}, {low}}}" if high and low else high or low


@dataclass
class _Stage:
    """One combinational module while its text is made."""

    logic: Any
    values: list[Bits]
    lines: list[str]

    def negative(self, index: int) -> Bits:
        """-v of a value, in a wire of its own."""
        low, high, step = self.logic.ops[index].qint
        found = _bits(f"m{index}", (-high, -low, step))
        text = f"wire [{found.width - 1}:0] m{index} = "
        text += f"{found.width}'d0 - {self.values[index].ends(found.width, 0)};"
        if text not in self.lines:
            self.lines.append(text)
        return found

    def operand(self, index: int, negated: bool) -> Bits:
        return self.negative(index) if negated else self.values[index]


def _add(stage: _Stage, op: Any, out: Bits) -> str:
    """A ± b * 2^data."""
    a, b = stage.values[op.id0], stage.values[op.id1]
    up_a, up_b = out.fraction - a.fraction, out.fraction - b.fraction + op.data
    sign = "-" if op.opcode == 1 else "+"
    return _sum(a, up_a, sign, b, up_b, out.width)


def _sum(a: Bits, up_a: int, sign: str, b: Bits, up_b: int, width: int) -> str:
    if up_b > 0 and up_a == 0:
        low, at_a, at_b = min(up_b, width), up_b, 0
        rest = a.ends(low, 0)
    elif up_a > 0 and up_b == 0 and sign == "+":
        low, at_a, at_b = min(up_a, width), 0, up_a
        rest = b.ends(low, 0)
    else:
        low, at_a, at_b, rest = 0, -up_a, -up_b, ""
    high = width - low
    if not high:
        return rest
    left, right = _slice(a, at_a, high), _slice(b, at_b, high)
    return _joined(f"{left} {sign} {right}" if not rest else f"({left} {sign} {right})", rest)


def _slice(a: Bits, low: int, width: int) -> str:
    """`width` bits of a value from bit `low` on; below bit 0 there are zeros."""
    if low >= 0:
        return a.ends(low + width, low)
    zeros = min(-low, width)
    return _joined(a.ends(width - zeros, 0), f"{zeros}'d0")


def _relu(stage: _Stage, op: Any, out: Bits) -> str:
    a = stage.operand(op.id0, op.opcode < 0)
    kept = _slice(a, a.fraction - out.fraction, out.width)
    return f"{kept} & {{{out.width}{{~{a.name}[{a.width - 1}]}}}}" if a.signed else kept


def _wrap(stage: _Stage, op: Any, out: Bits) -> str:
    a = stage.operand(op.id0, op.opcode < 0)
    return _slice(a, a.fraction - out.fraction, out.width)


def _constant(stage: _Stage, op: Any, out: Bits) -> str:  # noqa: ARG001
    return f"{out.width}'d{op.data % (1 << out.width)}"


def _add_constant(stage: _Stage, op: Any, out: Bits) -> str:
    """A + data, data in steps of the result."""
    a, number = stage.values[op.id0], int(op.data)
    up = out.fraction - a.fraction
    low = min(up if up > 0 else (number & -number).bit_length() - 1, out.width)
    mask, high = (1 << low) - 1, out.width - low
    rest = "" if not low else (f"{low}'d{number & mask}" if up > 0 else a.ends(low, 0))
    if not high:
        return rest
    left = _slice(a, 0 if up > 0 else low, high)
    added = f"{high}'d{(number >> low) % (1 << high)}"
    return _joined(f"({left} + {added})", rest)


def _mux(stage: _Stage, op: Any, out: Bits) -> str:
    """The first operand where the top bit of a third is set, else ± the second * 2^shift."""
    key, shift = op.data & 0xFFFFFFFF, (op.data >> 32) & 0xFFFFFFFF
    shift -= (shift & 0x80000000) << 1
    a, b, choice = stage.values[op.id0], stage.operand(op.id1, op.opcode < 0), stage.values[key]
    first = _slice(a, a.fraction - out.fraction, out.width)
    second = _slice(b, b.fraction - shift - out.fraction, out.width)
    return f"{choice.name}[{choice.width - 1}] ? {first} : {second}"


def _any(stage: _Stage, op: Any, out: Bits) -> str:
    """All bits inverted, or of them whether one is set, or all are."""
    a = stage.operand(op.id0, op.opcode < 0)
    sign = {0: "~", 1: "|", 2: "&"}[op.data]
    return f"{sign}{a.name}" if op.data or a.width == out.width else f"~{a.ends(out.width, 0)}"


_TEXTS: Mapping[int, Callable[[_Stage, Any, Bits], str]] = {
    0: _add, 1: _add, 2: _relu, 3: _wrap, 4: _add_constant, 5: _constant, 6: _mux, 9: _any,
}  # fmt: skip


def _inputs(logic: Any) -> list[Bits]:
    return [_bits(f"x{i}", interval) for i, interval in enumerate(logic.inp_qint)]


def _outputs(logic: Any) -> list[Bits]:
    return [_bits(f"y{i}", interval) for i, interval in enumerate(logic.out_qint)]


def stage_module(logic: Any, name: str) -> str:
    """A combinational module `name(x, y)` of one of da4ml's `CombLogic`s."""
    given, made = _inputs(logic), _outputs(logic)
    stage = _Stage(logic, [], [])
    for i, op in enumerate(logic.ops):
        out = _bits(f"v{i}", op.qint)
        stage.values.append(out)
        if out.width and op.opcode == -1:
            stage.lines.append(f"wire [{out.width - 1}:0] v{i} = {_at(given, op.id0, 'x')};")
        elif out.width:
            if abs(op.opcode) not in _TEXTS:
                raise BuildFailed(f"the adder graph holds an op {op.opcode}", where="rtl")
            text = _TEXTS[abs(op.opcode)](stage, op, out)
            stage.lines.append(f"wire [{out.width - 1}:0] v{i} = {text};")
    for i, (index, wide) in enumerate(zip(logic.out_idxs, made, strict=True)):
        if wide.width:
            value = stage.operand(index, bool(logic.out_negs[i]))
            stage.lines.append(f"assign {_at(made, i, 'y')} = {value.ends(wide.width, 0)};")
    lines = "\n".join(f"    {line}" for line in stage.lines)
    return (
        f"module {name} (input wire [{_total(given) - 1}:0] x, "
        f"output wire [{_total(made) - 1}:0] y);\n{lines}\nendmodule\n"
    )


def _total(values: Sequence[Bits]) -> int:
    return max(1, sum(value.width for value in values))


def _at(values: Sequence[Bits], index: int, bus: str) -> str:
    low = sum(value.width for value in values[:index])
    return f"{bus}[{low + values[index].width - 1}:{low}]"


def core_modules(stages: Sequence[Any], spec: Spec) -> str:
    """`net_core(clk, en, x, y)`: all stages with a register behind each, one vector a clock.

    Words of x and y are those of the specification, the first in the lowest bits.
    """
    texts = [stage_module(logic, f"{TOP}_stage{i}") for i, logic in enumerate(stages)]
    lines = [f"wire [{_total(_inputs(stages[0])) - 1}:0] x0 = {_fed(stages[0], spec)};"]
    for i, logic in enumerate(stages):
        wide = _total(_outputs(logic))
        lines += [
            f"wire [{wide - 1}:0] y{i};",
            f"{TOP}_stage{i} stage{i} (.x(x{i}), .y(y{i}));",
            f"reg [{wide - 1}:0] x{i + 1};",
            f"always @(posedge clk) if (en) x{i + 1} <= y{i};",
        ]
    lines.append(f"assign y = {_words(stages[-1], spec, f'x{len(stages)}')};")
    body = "\n".join(f"    {line}" for line in lines)
    texts.append(
        f"module {TOP}_core (input wire clk, input wire en, input wire [{in_bits(spec) - 1}:0] x, "
        f"output wire [{out_bits(spec) - 1}:0] y);\n{body}\nendmodule\n"
    )
    return "\n".join(texts)


def _fed(logic: Any, spec: Spec) -> str:
    """The graph's inputs, cut out of the specification's words."""
    forms = in_formats(spec)
    parts, low = [], 0
    for form, wanted in zip(forms, _inputs(logic), strict=True):
        word = Bits("x", form.bits, form.signed, form.fraction)
        if wanted.width:
            drop = word.fraction - wanted.fraction
            parts.append(f"x[{low + drop + wanted.width - 1}:{low + drop}]")
        low += form.bits
    return "{" + ", ".join(reversed(parts or ["1'b0"])) + "}"


def _words(logic: Any, spec: Spec, bus: str) -> str:
    """The specification's words, from the graph's outputs."""
    forms, parts, low = out_formats(spec), [], 0
    for form, given in zip(forms, _outputs(logic), strict=True):
        up = form.fraction - given.fraction
        parts.append(_word(f"{bus}", given, low, form.bits, up))
        low += given.width
    return "{" + ", ".join(reversed(parts)) + "}"


def _word(bus: str, given: Bits, low: int, width: int, up: int) -> str:
    if not given.width:
        return f"{width}'d0"
    inside = f"{bus}[{low + given.width - 1}:{low}]"
    more = width - up - given.width
    top = f"{bus}[{low + given.width - 1}]" if given.signed else "1'b0"
    parts = [f"{{{more}{{{top}}}}}"] if more > 0 else []
    parts += [inside, f"{up}'d0"] if up else [inside]
    return "{" + ", ".join(parts) + "}"


def in_bits(spec: Spec) -> int:
    """Width of the input bus."""
    return sum(form.bits for form in in_formats(spec))


def out_bits(spec: Spec) -> int:
    """Width of the output bus."""
    return sum(form.bits for form in out_formats(spec))
