"""Bits per layer for a budget of LUTs: da4ml counts, the held-out loss decides, training mends."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from compressor.fixed.build import build
from compressor.recovery import loop
from exporters.base import Env
from exporters.fpga import graph
from exporters.fpga.tools import versions
from runtimes.errors import BuildFailed

ROUNDS = 3
LESS = 0.05  # of the weights that are left: what one step of more zeros takes
LEAST = 0.98  # of the budget, as weights that are trained on move the count


def narrowed(task: loop.Task, schedule: loop.Schedule, options: Any, env: Env) -> list[str]:
    """Take bits and weights from `task.student` until it fits, training on in between; notes.

    Raises `BuildFailed` where it still does not fit after all.
    """
    versions(("da4ml",), "quantize_fixed.lut_budget")
    student, budget = task.student, options.lut_budget
    first = now = graph.cost(build(student, options.overflow))
    short = replace(schedule, steps=max(1, schedule.steps // 4), peak=schedule.peak / 2)
    for number in range(ROUNDS):
        if now <= budget:
            break
        _descend(task, schedule, options, now)
        folder = env.checkpoint / f"budget{number}"
        folder.mkdir(parents=True, exist_ok=True)
        loop.train(task, short, folder, lambda done, text: env.progress(0.95 + 0.05 * done, text))
        now = graph.cost(build(student, options.overflow))
    if now > budget:
        raise BuildFailed(
            "the network does not get as small as that",
            where="quantize_fixed.lut_budget",
            expected=f"at most {budget:,} LUTs by da4ml's count",
            got=f"{now:,.0f}",
            fix="raise zeros, or the budget",
        )
    told = ", ".join(f"{name} {bits}" for name, bits in student.bits.items())
    return [f"{first:,.0f} → {now:,.0f} LUTs by da4ml's count, budget {budget:,}; bits: {told}"]


def _descend(task: loop.Task, schedule: loop.Schedule, options: Any, now: float) -> None:
    """The steps that cost least per LUT saved, from a count of `now` to one within the budget."""
    student, budget = task.student, LEAST * options.lut_budget
    loss = loop.held_out_loss(task, schedule)
    while now > budget:
        tried = []
        for name in (*student.bits, ""):
            before = (dict(student.bits), student.zero)
            if not _less(student, name):
                continue
            cost = graph.cost(build(student, options.overflow))
            worse = max(loop.held_out_loss(task, schedule) - loss, 0.0)
            after = (dict(student.bits), student.zero)
            student.bits, student.zero = before
            if cost < now:
                tried.append((worse / (now - cost), cost, loss + worse, after))
        if not tried:
            return
        _, now, loss, (student.bits, student.zero) = min(tried, key=lambda row: row[0])


def _less(student: Any, name: str) -> bool:
    """One bit less for a layer, or fewer weights for all (no name); whether that was possible."""
    if name:
        if student.bits[name] <= 2:
            return False
        student.bits[name] -= 1
        return True
    if student.zero > 0.98:
        return False
    student.zero += LESS * (1 - student.zero)
    return True
