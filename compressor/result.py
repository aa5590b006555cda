"""What a run finds out, as plain dataclasses: `run.json` is exactly `RunRecord`.

Reports, JUnit, the package manifest and `compress compare` are pure functions of it. Durations end
in `_ns` or `_ms`, sizes in `_bytes`, ratios lie in 0–1; intervals are (low, high).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from compressor.board_result import BoardResult

RUN_SCHEMA = 1
# A quantizing step's note on its integers begins so; reports give it a line of its own.
INTEGERS = "INT8: "
UNCONVERGED = "calibration has not converged: "  # so does one that is a warning of the run as well
NOT_RUN = "not run"  # what a layer achieved where its engine is not on this machine
State = Literal["pass", "fail", "inconclusive", "not_judged"]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Score:
    """A metric on the evaluation data, through the target's own runtime.

    `status` is `measured`, `emulated` (another engine stood in) or `not_judged`, with `reason`.
    `per_sample` is the path (relative to the run's folder) of the per-sample outcomes, if kept.
    """

    metric: str
    value: float | None
    higher_is_better: bool = True
    n: int = 0
    status: str = "measured"
    reason: str = ""
    engine: str = ""
    per_sample: str | None = None


@dataclass(frozen=True)
class Comparison:
    """Candidate against the original model on the same samples.

    `drop` is positive when the candidate is worse, in the metric's own units; `interval` is its
    two-sided 90 % interval, whose upper end is the one-sided 95 % bound. `agreement` is top-1
    agreement (classifiers) or None; `sqnr_db` is 10·log10(signal/noise) of the outputs.
    """

    drop: float | None = None
    interval: Interval | None = None
    relative_drop: float | None = None
    method: str = ""
    flip_rate: float | None = None
    agreement: float | None = None
    sqnr_db: float | None = None
    n: int = 0
    doubts: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Timing:
    """Latency of one variant at one batch size, and its speed-up over twins in the same run.

    `speedup` is over the fastest twin that keeps accuracy, named in `speedup_over`; `ratios` holds
    (speed-up, low, high) over every twin by name.
    """

    batch: int
    threads: int
    source: Literal["timed", "reported", "simulated"]
    p50_ms: float
    p50_interval_ms: Interval
    p90_ms: float
    p99_ms: float
    p99_upper_ms: float | None
    min_ms: float
    n: int
    rounds: int
    speedup: float | None = None
    speedup_interval: Interval | None = None
    speedup_over: str | None = None
    ratios: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    cold_load_ms: float | None = None
    peak_rss_bytes: int | None = None
    samples: str | None = None
    histogram_ms: list[float] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class LedgerRow:
    """Bytes of one tensor class (`weights int8`, `scales`, `graph`, …) of an artifact's files."""

    kind: str
    size_bytes: int
    tensors: int = 0


@dataclass(frozen=True)
class LayerRow:
    """One layer: what was asked, what the engine ran, and why they differ.

    A row that only converts between precisions or memory layouts names the layers `beside` it.
    """

    layer: str
    op: str
    requested: str
    achieved: str
    weight_bytes: int = 0
    time_ns: int | None = None
    reason: str = ""
    beside: list[str] = field(default_factory=list)

    @property
    def precision(self) -> str:
        """What it computes in: as the engine says, or as asked where that did not run."""
        return self.requested if self.achieved == NOT_RUN else self.achieved


@dataclass(frozen=True)
class Check:
    """One gate against one candidate.

    `value` and `interval` are what was measured, in the gate's units; `text` says it in words;
    `needed` is how many samples would decide an inconclusive accuracy gate.
    """

    gate: str
    state: State
    text: str
    value: float | None = None
    interval: Interval | None = None
    limit: float | None = None
    needed: int | None = None


@dataclass(frozen=True)
class Failure:
    """An error of one target or candidate, as data."""

    kind: str
    message: str
    exit_code: int


@dataclass(frozen=True)
class Drift:
    """A recurrent model beside the original, each fed its own state, up to `after` steps.

    Both figures are over the steps since the row before: 10·log10(signal/noise), and the cosine
    of the angle between what the two models gave.
    """

    after: int
    output_sqnr_db: float | None = None
    output_cosine: float | None = None
    state_sqnr_db: float | None = None
    state_cosine: float | None = None


@dataclass(frozen=True)
class LayerDamage:
    """Layers that share a weight, and what lower precision of them alone does to the outputs.

    `sqnr_db` (of the model's outputs) and `size_bytes` (stored, scales included) are by precision:
    `float`, `int8`, `w8`, `w4`, …; `share` is this row's part of the summed damage.
    """

    layer: str
    op: str
    layers: list[str]
    sqnr_db: dict[str, float]
    size_bytes: dict[str, int]
    share: float
    time_ns: int | None = None


@dataclass(frozen=True)
class Damage:
    """Where the accuracy goes: layers ranked by what `precision` of each costs the outputs.

    `all_db` is the SQNR of the outputs with every layer in `precision`, `kept_db` the one with the
    layers that the patterns in `keep` name in float, which adds `keep_bytes`; `target_db` is what
    they were chosen to reach. `measured` of `groups` layers have figures where time ran out.
    """

    precision: str
    rows: list[LayerDamage]
    groups: int
    measured: int
    samples: int
    seconds: float
    target_db: float
    all_db: float | None = None
    keep: list[str] = field(default_factory=list)
    kept_db: float | None = None
    keep_bytes: int = 0


@dataclass(frozen=True)
class TensorGap:
    """One tensor of a compressed model against the original's: SQNR here and of what it reads."""

    tensor: str
    layer: str
    op: str
    sqnr_db: float
    before_db: float


@dataclass(frozen=True)
class Divergence:
    """Where a compressed model leaves the original: the first tensor below a threshold.

    `compared` of the original's `tensors` exist in both by name. `largest` is the largest fall of
    SQNR from a layer's inputs to its output. `outputs_db` is the worst output of the artifact as
    the engine runs it, `tapped_db` the same with inner tensors as outputs, which keeps the engine
    from fusing.
    """

    compared: int
    tensors: int
    samples: int
    threshold_db: float
    first: TensorGap | None = None
    largest: TensorGap | None = None
    outputs_db: float | None = None
    tapped_db: float | None = None


@dataclass(frozen=True)
class Figure:
    """What a tool says of hardware; `provenance` is post-route, synthesised, vendor report,
    estimate or simulated, and figures of two kinds are never compared.
    """

    value: float
    provenance: str
    tool: str = ""


@dataclass(frozen=True)
class Candidate:
    """One artifact of a target: a rung of its ladder, or a twin."""

    name: str
    role: Literal["candidate", "twin", "half_twin"]
    format: str = ""
    path: str = ""
    digest: str = ""
    size_bytes: int = 0
    package_bytes: int | None = None
    steps: list[str] = field(default_factory=list)
    score: Score | None = None
    comparison: Comparison | None = None
    timings: list[Timing] = field(default_factory=list)
    ledger: list[LedgerRow] = field(default_factory=list)
    layers: list[LayerRow] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    state: State = "not_judged"
    notes: list[str] = field(default_factory=list)
    failure: Failure | None = None
    parameters: int | None = None
    macs: int | None = None
    drift: list[Drift] = field(default_factory=list)
    real_time_factor: float | None = None  # median time of a step over what a step lasts
    damage: Damage | None = None
    divergence: Divergence | None = None
    boards: list[BoardResult] = field(default_factory=list)
    figures: dict[str, Figure] = field(default_factory=dict)


@dataclass(frozen=True)
class TargetResult:
    """A target's outcome: what shipped and why, and everything that was tried.

    `emulator` is the runtime that gave the scores where the target's own is not on this machine,
    and `without` says why it is not; nothing was timed then.
    """

    name: str
    state: State
    exit_code: int
    shipped: str = ""
    reason: str = ""
    runtime: str = ""
    device: str = ""
    emulator: str = ""
    without: str = ""
    package: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    candidates: list[Candidate] = field(default_factory=list)
    failure: Failure | None = None

    def candidate(self, name: str) -> Candidate:
        """The candidate or twin of that name; KeyError if there is none."""
        for candidate in self.candidates:
            if candidate.name == name:
                return candidate
        raise KeyError(name)


@dataclass(frozen=True)
class StepRecord:
    """One executed (or reused) step."""

    step: str
    target: str | None
    rung: str | None
    key: str
    status: Literal["ran", "hit"]
    seconds: float
    parent: str
    digest: str
    size_bytes: int
    options: dict[str, Any] = field(default_factory=dict)
    tools: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class DataRecord:
    """One data set of the run."""

    role: str
    n: int
    fingerprint: str
    description: str = ""
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Reference:
    """The original model: what everything is compared with."""

    source: str
    format: str
    digest: str
    size_bytes: int
    size_of: str
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    parameters: int | None = None
    score: Score | None = None
    macs: int | None = None


@dataclass(frozen=True)
class RunRecord:
    """A whole run: `run.json`."""

    tool: dict[str, str]
    started_utc: str
    seconds: float
    command: str
    recipe: dict[str, Any]
    host: dict[str, Any]
    reference: Reference
    exit_code: int
    state: State
    seed: int = 0
    reproducible: bool = True
    not_reproducible_because: str = ""
    data: list[DataRecord] = field(default_factory=list)
    steps: list[StepRecord] = field(default_factory=list)
    targets: list[TargetResult] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    schema: int = RUN_SCHEMA

    def target(self, name: str) -> TargetResult:
        """The target of that name; KeyError if there is none."""
        for target in self.targets:
            if target.name == name:
                return target
        raise KeyError(name)
