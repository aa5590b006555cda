"""What channels cost in time on a target: whole builds are timed, a model of their costs is fitted.

Engines fuse, pad and reorder, so that a layer's time alone says little; whole models are built,
through the target's own steps, and timed side by side: the untouched one, uniformly narrower ones,
and one for each of the largest groups at half its width. Costs are a constant and a term per layer
that shrinks with the widths on both of its sides, fitted to these times with the layers' MACs as
the prior. Allocation is then the greedy descent by saliency lost over time saved (`allocate`), on
the fitted sum; what comes out is timed again and the aim corrected. Saliency against latency as a
knapsack, solved from tables of timed layers, is Shen et al., "Structural Pruning via
Latency-Saliency Knapsack" (NeurIPS 2022): not what is done here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compressor.pruning import graph
from compressor.pruning.budget import Budget
from compressor.pruning.costs import CostModel, Term
from exporters.base import Env
from runtimes.errors import Unsupported

Timer = Callable[[Sequence[Any]], list[float]]  # models → ns a call, timed side by side
Removal = Mapping[str, Sequence[int]]  # group → channels of its root layer
# (costs, what they may come to, the multiple of widths) → what goes, and notes
Choose = Callable[[CostModel, float, int], tuple[Removal, list[str]]]

UNIFORM = (0.75, 0.5, 0.25)  # fractions of every width that stay
ALONE = 10  # groups that are halved by themselves
MULTIPLES = (4, 8, 16)
BLOCK = 32  # wide enough for any kernel
_AT = 0.8  # of every width, where multiples are compared
_SLACK = 1.03  # a smaller multiple within that of whole blocks will do
_FIXED = 0.2  # of the time, before anything is known
_RIDGE = 0.05
TOLERATED = 1.02  # of the time asked for
_NEAR = 0.95  # of it: no further attempt to use up the rest
_AIMS = 4
_LEAST = 0.02  # of the whole time, to aim at


@dataclass(frozen=True)
class Subject:
    """A module or graph in all the widths it may have.

    Attributes:
        whole: the untouched model.
        groups: of channels that go together.
        macs: what it costs without some of them, the prior of its time.
        shrunk: a copy without the channels named.
        choose: what goes.
    """

    whole: Any
    groups: Sequence[graph.ChannelGroup]
    macs: CostModel
    shrunk: Callable[[Removal], Any]
    choose: Choose


@dataclass(frozen=True)
class LatencyModel:
    """Nanoseconds of one call as a function of the channels removed from each group.

    Attributes:
        cost: the fitted sum of terms.
        whole_ns: measured, of the untouched model's build.
        fixed: share of it that no channel count changes, 0-1.
        error: median of the relative errors with which each build is predicted from the others.
        multiple: widths that are multiples of it waste nothing, as measured.
        builds: how many models were built and timed.
    """

    cost: CostModel
    whole_ns: float
    fixed: float
    error: float
    multiple: int
    builds: int

    @property
    def most(self) -> float:
        """The speed-up that no pruning of these channels can exceed."""
        return 1 / max(self.fixed, 1e-3)

    def note(self) -> str:
        """What was learned, in a sentence; and whether pruning pays at all."""
        told = (
            f"latency model of {self.builds} timed builds: {self.whole_ns / 1e6:.3g} ms, predicted "
            f"within {self.error:.0%}, widths in multiples of {self.multiple}"
        )
        if self.fixed < 0.5:
            return told
        return (
            f"{told}; {self.fixed:.0%} of the time does not depend on channels (calls, memory, "
            f"layers left alone): pruning cannot make it more than {self.most:.1f} times as fast"
        )


def learn(subject: Subject, timer: Timer, multiple: int, usual: int) -> LatencyModel:
    """Time builds of `subject` and fit their costs.

    Args:
        subject: the model with its groups.
        timer: builds models for the target and times them.
        multiple: of widths, where the user names one; 0 learns it.
        usual: the target's, where widths are too small to learn from.
    """
    tried = _plans(subject)
    steps = {} if multiple else _steps(subject)
    plans = [*tried, *steps.values()]
    times = timer([subject.whole, *map(subject.shrunk, plans)])
    removed = [{}, *map(_counts, tried)]
    cost, fixed, error = _fitted(subject.macs.terms, removed, times[: len(removed)])
    stepped = dict(zip(steps, times[len(removed) :], strict=True))
    costs = {m: cost(_counts(plan)) for m, plan in steps.items()}
    best = _least(stepped, costs) if steps else multiple or usual
    return LatencyModel(cost, times[0], fixed / times[0], error, best, len(times))


def _counts(removal: Removal) -> dict[str, int]:
    return {group: len(gone) for group, gone in removal.items()}


def _plans(subject: Subject) -> list[dict[str, list[int]]]:
    """What is removed in each build that the model is fitted to."""
    macs = subject.macs
    saved = {g.name: macs({}) - macs({g.name: g.width // 2}) for g in subject.groups}
    ranked = sorted(subject.groups, key=lambda g: -saved[g.name])
    plans = [{g.name: _first(g, share, 8) for g in subject.groups} for share in UNIFORM]
    plans += [{g.name: _first(g, 0.5, 8)} for g in ranked[:ALONE]]
    filled = ({name: gone for name, gone in plan.items() if gone} for plan in plans)
    return [plan for plan in filled if plan]


def _first(group: graph.ChannelGroup, share: float, multiple: int) -> list[int]:
    """The channels to remove so that about `share` stays; which they are does not matter here."""
    size, step = group.units, multiple if group.block == 1 else 1
    stay = max(1, round(size * share / step) * step if size >= 2 * step else 1)
    return graph.spread(group, range(max(0, size - stay)))


def _steps(subject: Subject) -> dict[int, dict[str, list[int]]]:
    """Multiple → widths that are multiples of it and of nothing larger, all within `BLOCK`.

    0 and `BLOCK` are the ends: every width a multiple of `BLOCK`, and one block wider. Groups too
    narrow for that, or of blocks, keep all; {} where most do.
    """
    sizes = {g.name: g.units if g.block == 1 else 0 for g in subject.groups}
    ends = {n: int(size * _AT / BLOCK) * BLOCK for n, size in sizes.items()}
    wide = [g for g in subject.groups if ends[g.name] > BLOCK]
    if 2 * len(wide) < len(subject.groups):
        return {}
    return {
        more: {g.name: graph.spread(g, range(sizes[g.name] - ends[g.name] + BLOCK - more))
               for g in wide}
        for more in (0, *MULTIPLES, BLOCK)
    }  # fmt: skip


def _least(times: Mapping[int, float], costs: Mapping[int, float]) -> int:
    """The smallest multiple that takes hardly more time than a line between the ends says."""
    slope = (times[BLOCK] - times[0]) / (costs[BLOCK] - costs[0])
    for m in MULTIPLES:
        if times[m] <= _SLACK * (times[0] + slope * (costs[m] - costs[0])):
            return m
    return BLOCK


def _fitted(
    terms: Sequence[Term], removed: Sequence[Mapping[str, int]], times: Sequence[float]
) -> tuple[CostModel, float, float]:
    """(model, its constant part in ns, median relative error of leaving one build out).

    Ridge regression towards times in proportion to MACs; no coefficient falls below a twentieth
    of its prior, as no layer gives time back.
    """
    rows = np.array([[CostModel((term,))(gone) for term in terms] for gone in removed])
    rows = np.hstack([np.ones((len(rows), 1)), rows])
    goal = np.asarray(times)
    prior = np.full(rows.shape[1], (1 - _FIXED) * goal[0] / rows[0, 1:].sum())
    prior[0] = _FIXED * goal[0]
    scaled, gap = rows * prior / goal[0], (goal - rows @ prior) / goal[0]
    gram = scaled.T @ scaled + _RIDGE**2 * np.eye(rows.shape[1])
    found = prior * np.maximum(1 + np.linalg.solve(gram, scaled.T @ gap), 0.05)
    hat = np.einsum("ij,ij->i", scaled, np.linalg.solve(gram, scaled.T).T)
    missed = np.abs(goal - rows @ found) / np.maximum(1 - hat, 0.1) / goal
    fitted = [
        (float(a) * base, factors) for a, (base, factors) in zip(found[1:], terms, strict=True)
    ]
    return CostModel(((float(found[0]), ()), *fitted)), float(found[0]), float(np.median(missed))


@dataclass(frozen=True)
class Met:
    """Channels whose removal brings a model's build to the time asked for.

    Attributes:
        removal: group → channels of its root layer.
        before_ns, after_ns: of the untouched and the pruned build, timed side by side.
        notes: of the allocation.
    """

    removal: Removal
    before_ns: float
    after_ns: float
    notes: list[str]


def meet(subject: Subject, budget: Budget, model: LatencyModel, timer: Timer) -> Met:
    """Choose by the model, time what comes out, correct the aim; the slowest that meets the budget.

    Raises `UsageError` where no widths meet it, `Unsupported` where the model did not lead there.
    """
    limit = budget.limit(model.whole_ns)
    aim, want = limit, limit / model.whole_ns
    found: list[Met] = []
    for _ in range(_AIMS):
        removal, notes = subject.choose(model.cost, aim, model.multiple)
        before, after = timer([subject.whole, subject.shrunk(removal)])
        found.append(Met(removal, before, after, notes))
        share = after / before
        if _NEAR * want <= share <= TOLERATED * want:
            break
        saved = max(1 - share, 0.01) / (1 - aim / model.whole_ns)  # of what the model promised
        aim = max(model.whole_ns * (1 - (1 - want) / saved), _LEAST * model.whole_ns)
    good = [m for m in found if m.after_ns <= TOLERATED * want * m.before_ns]
    if good:
        return max(good, key=lambda m: m.after_ns / m.before_ns)
    nearest = min(found, key=lambda m: m.after_ns / m.before_ns)
    raise Unsupported(
        f"the fastest of {len(found)} attempts takes {nearest.after_ns / nearest.before_ns:.0%} of "
        f"the time, {want:.0%} were asked for: {model.note()}",
        where=f"prune_channels keep {budget}",
    )


def pruned_to_time(
    subject: Subject, budget: Budget, timer: Timer, multiple: int, env: Env
) -> tuple[Removal, list[str], dict[str, Any]]:
    """What goes so that the target takes the time asked for, notes, and facts of the artifact."""
    learned = learn(subject, timer, multiple, env.context.width_multiple)
    env.progress(0.6, learned.note())
    met = meet(subject, budget, learned, timer)
    told = (
        f"latency {met.before_ns / 1e6:.3g} → {met.after_ns / 1e6:.3g} ms, "
        f"{met.before_ns / met.after_ns:.2f} times as fast"
    )
    measured = {
        "before_ns": round(met.before_ns),
        "after_ns": round(met.after_ns),
        "fixed": round(learned.fixed, 3),
        "error": round(learned.error, 4),
        "multiple": learned.multiple,
        "builds": learned.builds,
    }
    facts = {"latency": measured, "not_reproducible": "prune_channels chose by measured times"}
    return met.removal, [*met.notes, learned.note(), told], facts
