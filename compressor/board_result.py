"""What a board's own program told of a bundle, as plain dataclasses: part of `run.json`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class BoardTiming:
    """Times of an engine on a board, in ms, as its `source` there took them.

    `p50_ms`, `p99_ms` and `cov` (standard deviation over mean) are of the GPU's compute, the
    `latency_…` ones of the way there and back too, medians of which are `h2d_ms` and `d2h_ms`;
    `enqueue_ms` is what the host needs to submit the work, with a CUDA `graph` or without. Where
    the board tells its `power` (mean_mw, of what, by what tool), `energy_mj` is that of a batch.
    """

    batch: int
    graph: bool
    source: str
    samples: int
    p50_ms: float
    p99_ms: float
    cov: float
    h2d_ms: float
    d2h_ms: float
    enqueue_ms: float
    latency_min_ms: float
    latency_p50_ms: float
    latency_p50_interval_ms: tuple[float, float]
    latency_p90_ms: float
    latency_p99_ms: float
    doubts: list[str] = field(default_factory=list)
    power: dict[str, Any] = field(default_factory=dict)
    energy_mj: float | None = None


@dataclass(frozen=True)
class BoardResult:
    """What `build_engine.py` told of a bundle on a board; `compress report --add` takes it in.

    `bundle` is the SHA-256 of the bundle's model file; `status` is how far it came: `portable`,
    `built` or `validated`. `device`, `versions`, `engine` (bytes, seconds, digest), `layers`
    (counts by precision, which ones fell back to float) and `numeric` (output → SQNR against
    ONNX Runtime on the same file) are the board's own words.
    """

    schema: int
    bundle: str
    status: Literal["portable", "built", "validated"]
    exit_code: int
    reason: str
    versions: dict[str, Any]
    device: dict[str, Any]
    engine: dict[str, Any] = field(default_factory=dict)
    layers: dict[str, Any] = field(default_factory=dict)
    numeric: dict[str, dict[str, Any]] = field(default_factory=dict)
    timing: list[BoardTiming] = field(default_factory=list)
    slowest: list[dict[str, Any]] = field(default_factory=list)
    memory: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
