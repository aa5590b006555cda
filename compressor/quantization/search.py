"""The search of `quantize_mixed`: solve, build the real thing, measure it, solve again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

from compressor.deadline import OutOfTime
from compressor.quantization.keep import exactly
from compressor.quantization.mixed import (
    Assignment,
    Cell,
    Limits,
    cells,
    least_damage,
    solve,
    total_bytes,
    total_damage,
)
from compressor.quantization.sensitivity import (
    BLOCK,
    BLOCKS,
    FLOAT,
    INTEGER,
    OPTIONS,
    Budget,
    Group,
    Sensitivity,
    Workbench,
    group_times,
    least_batch,
    measure,
    profiled,
)
from compressor.quantization.substeps import run_steps
from compressor.quantization.tried import Times, Tried
from exporters.base import Env, Trial
from runtimes.base import LayerPrecision, engine_of
from runtimes.errors import CompressError, Unsupported
from runtimes.neighbours import converts
from runtimes.types import Artifact

# Noise shares tried, from 8 to 43 dB: below the first a model is of no use, past the last it is
# the float one. Where most models decide, steps are small: a coarse one can leave all INT8 behind.
LEVELS = (
    0.16, 0.08, 0.04, 0.02, 0.014, 0.01, 0.007, 0.005, 0.0035, 0.0025, 0.0018, 0.0013, 0.0009,
    0.0006, 0.0004, 0.0002, 0.00005,
)  # fmt: skip
BITS = {FLOAT: 32, "half": 16, "w8": 8, "int8": 8, BLOCKS: 4, "w4": 4, "int8-w4": 4}
_PAYS = 1.0  # INT8 against float: what only stores integers loses no speed at all
# An attempt keeps the limit where half of it holds the loss, or where less than the limit holds
# its 95 % bound: a metric with little noise, such as an error of pictures, may come closer to it.
_HALF, _SURE = 0.5, 0.8
_DB_MORE = 0.5
_REPLANS = 3


@dataclass
class Found:
    """One assignment, built and tried.

    Attributes:
        assign: group → option.
        artifact: the real artifact, as it would ship.
        trial: its score on selection data.
        damage: what the table predicted.
    """

    assign: Assignment
    artifact: Artifact
    trial: Trial
    damage: float

    @property
    def size_bytes(self) -> int:
        """Of what would ship."""
        return self.trial.size_bytes


@dataclass
class Search:
    """Finds the smallest and fastest assignment that keeps accuracy, within a budget.

    Every damage, build and time is kept in the step's checkpoint, every score in the store: after a
    kill the same way is gone again without measuring any of it twice.

    Attributes:
        source: the float artifact.
        bench: precisions tried on it.
        limit_bytes: what the artifact may have.
    """

    source: Artifact
    bench: Workbench
    env: Env
    options: Any
    budget: Budget
    limit_bytes: int
    tried: list[Found] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    table: Sensitivity | None = None
    timed: bool = False

    @cached_property
    def _kept(self) -> Tried:
        return Tried(self.env.checkpoint / "tried")

    def run(self) -> Found:
        """The best assignment found; raises `Unsupported` where not one could be built."""
        self._require_room()
        self.table = measure(
            self.bench,
            replace(self.budget, minutes=self.budget.minutes and self.budget.minutes / 2),
            kept=self.env.checkpoint / "sensitivity.json",
            told=lambda share, what: self.env.progress(0.4 * share, what),
        )
        allowed = {g.name: g.options for g in self.table.groups}
        times: Times = {}
        if self._times_layers and any(INTEGER & set(o) for o in allowed.values()):
            allowed, times = self._what_is_faster(allowed)
        sizes = {
            (g.name, o): self.bench.size_bytes(g, o) for g in self.table.groups for o in OPTIONS
        }
        options = cells(self.table, sizes, times, allowed)
        best = self._descend_in_time(options)
        self.timed = self.timed or not (self.table.complete and self.budget.left())
        if best is None:
            reasons = "; ".join(dict.fromkeys(self.failed)) or "no assignment keeps the size"
            what = f"no mixed precision could be built: {reasons}"
            raise Unsupported(what, [], where="quantize_mixed")
        return best

    @property
    def _times_layers(self) -> bool:
        """Engines that take pairs as orders run on boards; what this machine runs says nothing."""
        scheme = self.env.context.scheme
        return bool(self.options.speed) and not (scheme is not None and scheme.explicit)

    def _require_room(self) -> None:
        """What the weights alone break in their fewest bits needs no measuring."""
        least = sum(
            min(self.bench.size_bytes(group, option) for option in group.options)
            for group in self.bench.groups
        )
        if least > self.limit_bytes:
            what = f"the weights take {least:,} bytes in 4 bits, the size gate {self.limit_bytes:,}"
            raise Unsupported(what, [], where="quantize_mixed")

    def _descend_in_time(self, options: list[Cell]) -> Found | None:
        """As `_descend`; the smallest that keeps all where the run itself is out of time."""
        try:
            return self._descend(options)
        except OutOfTime:
            kept = [found for found in self.tried if self._keeps(found)]
            if not kept:
                raise
            self.timed = True
            return min(kept, key=lambda found: found.size_bytes)

    def _descend(self, options: list[Cell]) -> Found | None:
        """The coarsest assignment that keeps accuracy on selection data, within the size.

        What a graph's own text costs differs a little between assignments; where that broke the
        size, the weights get so much less room and the plans are made again.
        """
        room = self.limit_bytes - self._fixed_bytes(options)
        best: Found | None = None
        for _ in range(_REPLANS):
            best = self._bisect(self._plans(options, room), options)
            over = [f.size_bytes - self.limit_bytes for f in self.tried]
            if best is not None or not any(x > 0 for x in over) or not self.budget.left():
                break
            room -= max(over)
        return best or min(self.tried, key=self._misses, default=None)

    def _bisect(self, plans: list[Assignment], options: list[Cell]) -> Found | None:
        low, high = 0, len(plans) - 1
        best: Found | None = None
        while low <= high:
            middle = (low + high) // 2
            share = 0.6 + 0.3 * (len(self.tried) / (len(plans) or 1))
            self.env.progress(min(share, 0.9), f"building candidate {len(self.tried) + 1}")
            found = self._try(plans[middle], options)
            if found is not None and self._keeps(found):
                best, high = found, middle - 1
            else:
                low = middle + 1
            if not self.budget.left():
                break
        return best

    def _keeps(self, found: Found) -> bool:
        """Within the size, and far enough from the limit to hold on samples it has not seen."""
        drop, upper, most = found.trial.drop, found.trial.upper, self.options.max_drop
        if drop is None or found.size_bytes > self.limit_bytes:
            return False
        clean, kept = self.options.min_sqnr_db, found.trial.sqnr_db
        if clean is not None and kept is not None and kept < clean + _DB_MORE:
            return False
        return drop <= _HALF * most or (upper is not None and upper <= _SURE * most)

    def _misses(self, found: Found) -> tuple[bool, float, int]:
        """How far off an attempt is: too large first, then by what it loses."""
        drop = found.trial.drop
        large = found.size_bytes > self.limit_bytes
        return large, float("inf") if drop is None else drop, found.size_bytes

    def _plans(self, options: list[Cell], room: int) -> list[Assignment]:
        """Assignments from the coarsest to the most careful, all within the size."""
        found: list[Assignment] = []
        for level in LEVELS:
            made = solve(options, Limits(level, room))
            if made is not None and made not in found:
                found.append(made)
        careful = least_damage(options, Limits(float("inf"), room))
        if careful is not None and careful not in found:
            found.append(careful)
        return found

    def _fixed_bytes(self, options: list[Cell]) -> int:
        """Bytes of the artifact that no assignment changes, from one real build."""
        coarse = solve(options, Limits(float("inf")))
        found = self._try(coarse, options) if coarse is not None else None
        if found is None or coarse is None:
            return int(0.02 * self.source.size_bytes)
        return max(0, found.size_bytes - total_bytes(options, coarse))

    def _try(self, assign: Assignment, options: list[Cell]) -> Found | None:
        """Build and score an assignment, once."""
        for known in self.tried:
            if known.assign == assign:
                return known
        try:
            artifact = self._build(assign)
        except CompressError as error:
            self.failed.append(error.what)
            return None
        found = Found(assign, artifact, self.env.trial(artifact), total_damage(options, assign))
        self.tried.append(found)
        return found

    def _build(self, assign: Assignment) -> Artifact:
        def make(name: str) -> Artifact:
            return build(self.source, self.bench.groups, assign, self.env, name, self.options)

        return self._kept.artifact(assign, make)

    def _what_is_faster(
        self, allowed: dict[str, tuple[str, ...]]
    ) -> tuple[dict[str, tuple[str, ...]], Times]:
        """Options without integer kernels where these do not pay, and times of the rest.

        All layers in INT8 are timed against the float model. If that is slower, layers whose own
        time does not fall are taken out, and what is left is timed again.
        """
        assert self.table is not None
        self.env.progress(0.42, "timing INT8 against float")
        for last in (False, True):
            whole: Assignment = {g: "int8" if "int8" in o else "w8" for g, o in allowed.items()}
            if "int8" not in whole.values():
                break
            try:
                made = self._build(whole)
            except CompressError as error:
                self.failed.append(error.what)
                break
            self.timed = True
            gain, times = self._kept.timing(whole, partial(self._timed, made))
            if gain >= _PAYS:
                return allowed, times
            slow = {
                g
                for g, o in allowed.items()
                if "int8" in o and times.get((g, "int8"), 0.0) >= times.get((g, FLOAT), 0.0)
            }
            if last or not slow:
                break
            allowed = {g: _stored(o) if g in slow else o for g, o in allowed.items()}
        return {g: _stored(o) for g, o in allowed.items()}, {}

    def _timed(self, made: Artifact) -> tuple[float, Times]:
        """Float time over that of `made`, and the times of both by group."""
        data, device = self.env.data["calibration"], self.env.context.device
        gain = speedup(self.source, made, self.env)
        before, after = (profiled(a, data, device) for a in (self.source, made))
        return gain, self._times(before, after)

    def _times(self, before: list[LayerPrecision], after: list[LayerPrecision]) -> Times:
        """(group, option) → share of the float model's time; conversions count with INT8 layers."""
        assert self.table is not None
        total = sum(layer.time_ns or 0 for layer in before) or 1
        groups = [g for g in self.table.groups if "int8" in g.options]
        slow, fast = group_times(groups, before), group_times(groups, after)
        overhead = sum(x.time_ns or 0 for x in after if converts(x)) / (len(groups) or 1)
        found: Times = {}
        for group in groups:
            for option in group.options:
                integer = fast.get(group.name, 0) + overhead
                time = integer if option in INTEGER else slow.get(group.name, 0)
                found[group.name, option] = time / total
        return found


def _stored(options: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(o for o in options if o not in INTEGER)


def build(
    source: Artifact,
    groups: tuple[Group, ...],
    assign: Mapping[str, str],
    env: Env,
    name: str,
    options: Any,
) -> Artifact:
    """The artifact of an assignment, made by the steps that a recipe would name."""
    floats = [
        layer
        for g in groups
        if "int8" in g.options and assign.get(g.name, FLOAT) not in INTEGER
        for layer in g.layers
    ]
    integers = [g for g in groups if assign.get(g.name, FLOAT) in INTEGER]
    specs: list[tuple[str, Mapping[str, Any]]] = []
    if integers:
        exclude = tuple(exactly(layer) for layer in floats)
        specs.append(("quantize_static", {"method": options.method, "exclude": exclude}))
    recurrent = {
        layer: assign[g.name] for g in groups if g.op == "LSTM" for layer in g.layers
        if assign.get(g.name) in ("w8", "w4")
    }  # fmt: skip
    if recurrent and source.format != "openvino" and options.dynamic:
        stay = [
            layer for g in groups if g.op == "LSTM" for layer in g.layers if layer not in recurrent
        ]
        store = 4 if "w4" in recurrent.values() else 8
        more = {"ops": ("LSTM",), "exclude": tuple(map(exactly, stay)), "store": store}
        specs.append(("quantize_dynamic", more))
    stored = [g for g in groups if "w8" in g.options]
    bits = {layer: BITS[assign.get(g.name, FLOAT)] for g in stored for layer in g.layers}
    left = {n: b for n, b in bits.items() if b != 32}
    if any(assign.get(g.name, FLOAT) not in (FLOAT, "int8") for g in groups):
        blocks = {n: BLOCK for g in stored if assign.get(g.name) == BLOCKS for n in g.layers}
        every = {**dict.fromkeys(bits, 32), **left}
        specs.append(("reconstruct_weights", {"assign": every, "blocks": blocks}))
    return run_steps(source, specs, env, name)


def speedup(float_model: Artifact, candidate: Artifact, env: Env) -> float:
    """Interleaved timing at the smallest batch: float time over the candidate's."""
    from compressor.bench import BenchPlan, Variant, bench

    engine = engine_of(candidate)
    batch, feeds = least_batch(float_model, env.data["calibration"])
    variants = [
        Variant(n, a, engine, env.context.device)
        for n, a in (("float", float_model), ("candidate", candidate))
    ]
    plan = BenchPlan(effort="quick", batches=(batch,), seed=env.context.seed)
    found = bench(variants, {batch: [feeds]}, plan)
    return float(found.timing("candidate", batch, "float").speedup or 0.0)
