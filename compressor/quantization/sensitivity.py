"""How much each layer's lower precision costs: the table that mixed precision is solved from.

One group is changed at a time and the model's outputs are held against the float ones, as HAWQ and
NNCF's accuracy control do (Dong et al., "HAWQ-V2", 2020; NNCF's `accuracy_control`). The damage is
the noise share of the outputs (1/SQNR), which adds up over groups to first order.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from compressor.quantization.calibration import batches
from compressor.record import write_atomic
from exporters.base import Samples, batch_range
from runtimes.base import Feeds, LayerPrecision, engine_of, load_runtime
from runtimes.types import Artifact

FLOAT = "float"
# From the most to the least precise: what a group of layers may become.
BLOCKS = "w4-32"  # 4 bits with a scale for every `BLOCK` columns of a channel, not for all of them
BLOCK = 32
OPTIONS = (FLOAT, "half", "w8", "int8", BLOCKS, "w4", "int8-w4")
INTEGER = frozenset({"int8", "int8-w4"})  # those that compute in integers
STORED = tuple(option for option in OPTIONS if option not in INTEGER)  # those in float
FOUR = frozenset({BLOCKS, "w4", "int8-w4"})  # those whose weights have 4 bits

MOST_S = 180.0  # that damages are measured for, where fewer samples can keep it
BATCH = 4  # samples a pass: a large model is measured on few

Outputs = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Group:
    """Layers that change together: those that read one stored weight.

    Attributes:
        name: the first of its layers, as the source names it.
        op: operator of that layer.
        layers: all of them.
        elements: values of the weight.
        options: what this group may become here, of `OPTIONS`.
    """

    name: str
    op: str
    layers: tuple[str, ...]
    elements: int
    options: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One group in one option.

    Attributes:
        damage: noise share of the model's outputs (1/SQNR) with only this group changed.
        size_bytes: of the group's stored weights with their scales.
        time_ns: of the group's layers in a profile of a whole model, where the engine tells.
    """

    group: str
    option: str
    damage: float
    size_bytes: int
    time_ns: int | None = None


@dataclass(frozen=True)
class Sensitivity:
    """The whole table, and how it came about.

    Attributes:
        groups: in topological order.
        rows: a row per group and option measured.
        samples: how many samples the damage was measured on.
        complete: False where the time budget ended first; groups without a row are unknown.
        seconds: what measuring took.
    """

    groups: tuple[Group, ...]
    rows: tuple[Row, ...]
    samples: int
    complete: bool = True
    seconds: float = 0.0

    def row(self, group: str, option: str) -> Row | None:
        """The row of one group and option, or None where it was not measured."""
        return self._index().get((group, option))

    def _index(self) -> dict[tuple[str, str], Row]:
        return {(row.group, row.option): row for row in self.rows}


class Workbench(Protocol):
    """A float model of one target with everything needed to try precisions on it."""

    groups: tuple[Group, ...]

    @property
    def samples(self) -> int:
        """How many the outputs are of."""

    def outputs(self, assign: Mapping[str, str]) -> Outputs:
        """Outputs on the search samples with groups (by name) in these options, the rest float."""

    def fewer(self, samples: int) -> int:
        """Search on about so many samples from here on; how many batches that leaves."""

    def size_bytes(self, group: Group, option: str) -> int:
        """Stored bytes of the group's weight in that option, scales included."""


def noise_share(outputs: Outputs, reference: Outputs) -> float:
    """Power of the difference over the power of the float outputs' variation: 1/SQNR.

    Each floating-point output counts the same. Within one, channels (axis 1, or the last axis
    where that is shorter) are weighted by their own variance, so that box coordinates in pixels do
    not drown class scores.
    """
    shares = []
    for name, first in reference[0].items():
        if np.asarray(first).dtype.kind != "f":
            continue
        want = [_rows(batch[name]) for batch in reference]
        got = [_rows(batch[name]) for batch in outputs]
        shares.append(_share(np.concatenate(got), np.concatenate(want)))
    return float(np.mean(shares)) if shares else 0.0


def _rows(values: Any) -> Any:
    """[…] → [positions, channels], float64."""
    array = np.asarray(values, np.float64)
    if array.ndim < 2:
        return array.reshape(-1, 1)
    axis = 1 if array.ndim == 2 or array.shape[1] <= array.shape[-1] else array.ndim - 1
    return np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])


def _share(got: Any, want: Any) -> float:
    spread = want.var(axis=0)
    floor = max(float(spread.mean()) * 1e-6, 1e-12)
    error = ((got - want) ** 2).mean(axis=0)
    if not np.isfinite(error).all():
        return float("inf")
    return float((error / (spread + floor)).mean())


def profiled(artifact: Artifact, data: Samples, device: str) -> list[LayerPrecision]:
    """An artifact's layers with their times at its smallest batch, where its engine tells."""
    engine: Any = load_runtime(engine_of(artifact))
    if not hasattr(engine, "layer_precisions"):
        return []
    _, feeds = least_batch(artifact, data)
    found: list[LayerPrecision] = engine.layer_precisions(
        artifact, feeds=feeds, threads=1, device=device
    )
    return found


def least_batch(artifact: Artifact, data: Samples) -> tuple[int, Feeds]:
    """The smallest batch that `artifact` takes, and the first samples in one."""
    bounds = artifact.facts.get("bounds")
    low, _ = batch_range(artifact.inputs, bounds)
    return low, next(batches(data, artifact.inputs, low, bounds))


def group_times(groups: Sequence[Group], profile: Sequence[LayerPrecision]) -> dict[str, int]:
    """Group → nanoseconds of its layers, as far as the profile names them."""
    owner = {layer: g.name for g in groups for layer in g.layers}
    found: dict[str, int] = {}
    for layer in profile:
        group = next((owner[n] for n in (layer.layer, *layer.layers) if n in owner), None)
        if group is not None and layer.time_ns is not None:
            found[group] = found.get(group, 0) + layer.time_ns
    return found


@dataclass
class Budget:
    """Minutes that a search may take; None: no limit."""

    minutes: float | None = None
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Spent so far."""
        return time.monotonic() - self.started

    def left(self, share: float = 1.0) -> bool:
        """Whether less than `share` of the minutes is spent."""
        return self.minutes is None or self.seconds < self.minutes * 60 * share


def measure(
    bench: Workbench,
    budget: Budget,
    *,
    options: Sequence[str] = ("int8", "w4", "w8", BLOCKS),
    kept: Path | None = None,
    told: Callable[[float, str], None] | None = None,
) -> Sensitivity:
    """Change one group at a time and see what it does to the outputs.

    Where all of it would take longer than `MOST_S` seconds, fewer samples are looked at: shares of
    noise in a large model's outputs hardly differ between samples.

    Args:
        bench: the model.
        budget: measuring stops where it ends; what is missing is then unknown.
        options: tried in this order over all groups, so that an early end leaves whole columns.
        kept: a file that survives a kill; rows found there are not measured again, and the others
            on as many samples as they were.
        told: is called with the share done and a sentence.
    """
    started = time.monotonic()
    known, samples = _read(kept)
    if samples is not None and samples < bench.samples:
        bench.fewer(samples)
    work = [(g, o) for o in options for g in bench.groups if o in g.options]
    rows: list[Row] = []
    complete = True
    reference: Outputs | None = None
    for i, (group, option) in enumerate(work):
        damage = known.get((group.name, option))
        if damage is None:
            if not budget.left():
                complete = False
                continue
            if reference is None:
                reference = bench.outputs({}) if known else _reference(bench, len(work) - i)
            damage = noise_share(bench.outputs({group.name: option}), reference)
            known[group.name, option] = damage
            _write(kept, known, bench.samples)
        rows.append(Row(group.name, option, damage, bench.size_bytes(group, option)))
        if told is not None:
            told((i + 1) / len(work), f"sensitivity of {group.name} in {option}")
    rows += [Row(g.name, FLOAT, 0.0, bench.size_bytes(g, FLOAT)) for g in bench.groups]
    seconds = round(time.monotonic() - started, 1)
    return Sensitivity(bench.groups, tuple(rows), bench.samples, complete, seconds)


def _reference(bench: Workbench, rows: int) -> Outputs:
    """The float outputs, on as many samples as `rows` more passes have the time for."""
    found = bench.outputs({})
    began = time.monotonic()  # the first pass also prepared the model
    bench.outputs({})
    whole = (time.monotonic() - began) * rows
    if whole <= MOST_S:
        return found
    return found[: bench.fewer(int(bench.samples * MOST_S / whole))]


def _read(path: Path | None) -> tuple[dict[tuple[str, str], float], int | None]:
    """Damages known, and on how many samples."""
    if path is None or not path.exists():
        return {}, None
    kept = json.loads(path.read_text(encoding="utf-8"))
    return {(group, option): damage for group, option, damage in kept["rows"]}, kept["samples"]


def _write(path: Path | None, known: Mapping[tuple[str, str], float], samples: int) -> None:
    if path is not None:
        rows = [[*key, damage] for key, damage in known.items()]
        write_atomic(path, json.dumps({"samples": samples, "rows": rows}).encode())
