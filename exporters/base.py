"""The contracts every step and every target keeps.

A **step** is a module found by its file name (`compressor/passes/<verb>_<object>.py`,
`exporters/to_<target>.py`) with

    REV: int                      raise it when the output for the same input may change
    ACCEPTS: frozenset[str]       artifact formats it takes
    PRODUCES: str                 the format it makes; "same" = the one it was given
    NEEDS: frozenset[str]         of {"calibration", "training"}: data it cannot work without
    USES: frozenset[str]          of these and "selection": data it takes if there
    BUILD: frozenset[str]         optional: options that say how an artifact is built; the twins
                                  get what a recipe gives them
    Options                       one frozen dataclass, every field defaulted and documented
    tools() -> dict[str, str]     name → version; MissingTool naming the extra
    refusals(source, options, context) -> list[Refusal]      reasons per node, before any work
    run(source, options, env) -> Artifact                    written into env.work

A **target** is an exporter module that also has `TARGET: Target`.
This file parses on Python 3.8: it travels with a board bundle.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import (
    Any,
    Callable,
    Dict,
    FrozenSet,
    Iterator,
    List,
    Mapping,
    Optional,
    Protocol,
    Sequence,
    Tuple,
)

import numpy as np

from runtimes.errors import MissingTool, Refusal
from runtimes.types import Artifact, TensorSpec

__all__ = [
    "Context",
    "Env",
    "Keep",
    "Options",
    "QuantScheme",
    "Refusal",
    "Rung",
    "Samples",
    "Step",
    "StepSpec",
    "Target",
    "Trial",
    "example_feeds",
    "installed",
    "where_installed",
]


@dataclass(frozen=True)
class QuantScheme:
    """How one target wants its integers; declared by its exporter, used by the passes.

    Attributes:
        weight_bits, activation_bits: storage width of the integers that are computed with.
        weight_symmetric, activation_symmetric: zero point fixed at 0 (or mid-range).
        weight_signed, activation_signed: INT8 or UINT8.
        weight_per_channel: one scale per output channel (else one per tensor).
        ops: ONNX op types whose inputs and weights are quantized because the engine has an
            integer kernel for them.
        passthrough: ops that move or select integers unchanged (MaxPool, Reshape, …): input and
            output share one scale.
        never: ops that must stay float here, with the reason shown to the user.
        fused: ops that the engine makes integer by itself wherever pairs stand around them.
        reduce_range: 7-bit weights, for x86 without VNNI (u8×s8 saturates in 16 bits).
        explicit: the engine takes Q/DQ pairs as orders: they stand only in front of what computes
            in integers, whose results and biases stay float.
        numbers: what the engine multiplies in, of `int8` and `float8` (E4M3).
        number: the one of them that is asked for.
    """

    weight_bits: int = 8
    activation_bits: int = 8
    weight_symmetric: bool = True
    activation_symmetric: bool = False
    weight_signed: bool = True
    activation_signed: bool = False
    weight_per_channel: bool = True
    ops: FrozenSet[str] = frozenset()
    passthrough: FrozenSet[str] = frozenset()
    never: Mapping[str, str] = field(default_factory=dict)
    fused: FrozenSet[str] = frozenset()
    reduce_range: bool = False
    explicit: bool = False
    numbers: FrozenSet[str] = frozenset({"int8"})
    number: str = "int8"

    @property
    def weight_limit(self) -> int:
        """The largest magnitude of an 8-bit weight."""
        return 63 if self.reduce_range else 127

    @property
    def least_scale(self) -> float:
        """The smallest scale of a weight: for an engine that may hold it in half, one of 7 bits."""
        return 2.0**-17 if self.explicit else 0.0


@dataclass(frozen=True)
class StepSpec:
    """A step by name with the options the recipe gives it (only those it names).

    An `optional` step of a ladder is left out where it refuses the model, and the rung goes on.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    optional: bool = False


@dataclass(frozen=True)
class Rung:
    """One declared candidate of a target: its name in reports, its steps after the shared ones."""

    name: str
    steps: Tuple[StepSpec, ...]


@dataclass(frozen=True)
class Target:
    """What a target declares of itself.

    Attributes:
        name: as in recipes.
        runtime: the `rt_<runtime>` that runs its artifacts.
        formats: artifact formats it can ship.
        twin: steps that turn an ONNX artifact into its untouched FP32 twin; empty where there can
            be none.
        half_twin: the same at half precision, where the device computes in half (else empty).
        half_isa: the half twin is built only where the CPU has one of these; empty means always.
        ladder: candidates, most compressed first; those whose data is missing are dropped.
        scheme: its integers, or None.
        device: default device.
        emulator: the runtime that stands in for scores where `runtime` cannot run; nothing is
            timed then. None: the target needs its own.
        width_multiple: channel counts the target's kernels like; pruning rounds to it.
        timed: its engine here is the device. Otherwise (an FPGA) latency and resources are figures
            of its tools, in the artifact's facts, and no file size counts.
    """

    name: str
    runtime: str
    formats: FrozenSet[str]
    twin: Tuple[StepSpec, ...]
    ladder: Tuple[Rung, ...]
    half_twin: Tuple[StepSpec, ...] = ()
    half_isa: FrozenSet[str] = frozenset()
    scheme: Optional[QuantScheme] = None
    device: str = "CPU"
    emulator: Optional[str] = None
    width_multiple: int = 8
    timed: bool = True


@dataclass(frozen=True)
class Keep:
    """What the user wants left alone: globs on the source's names, and op types."""

    float: Tuple[str, ...] = ()
    float_ops: Tuple[str, ...] = ()
    channels: Tuple[str, ...] = ()


@dataclass(frozen=True)
class Context:
    """What a step may know of the run beyond its own options; all of it is in its key.

    Attributes:
        target: the target's name; None in the shared steps.
        scheme: the target's integers.
        keep: what the user wants left alone.
        shapes: input name → per free dimension (min, opt, max), from `--shape` / `shape:`.
        dims: named free dimension → a typical size (from the data), for examples and tracing.
        device: the device the target's artifact is for.
        width_multiple: least common multiple over the run's targets.
        seed: of every random choice.
        threads: how many threads a step may use.
    """

    target: Optional[str] = None
    scheme: Optional[QuantScheme] = None
    keep: Keep = field(default_factory=Keep)
    shapes: Mapping[str, Mapping[str, Tuple[int, int, int]]] = field(default_factory=dict)
    dims: Mapping[str, int] = field(default_factory=dict)
    device: str = "CPU"
    width_multiple: int = 8
    seed: int = 0
    threads: int = 1


class Samples(Protocol):
    """A data set as the steps see it. The first axis of every array is the batch axis."""

    fingerprint: str
    ragged: bool  # True: shapes differ from sample to sample, so batches hold one sample

    def __len__(self) -> int:
        """Number of samples."""

    @property
    def labels(self) -> Optional[Sequence[Any]]:
        """One label a sample, or None."""

    def feeds(self, indices: Sequence[int]) -> Dict[str, np.ndarray[Any, Any]]:
        """The named samples as one batch, by input name."""

    def batches(
        self, size: int, indices: Optional[Sequence[int]] = None
    ) -> Iterator[Tuple[List[int], Dict[str, np.ndarray[Any, Any]]]]:
        """Batches of (indices, feeds), in order; the last one may be smaller."""


@dataclass(frozen=True)
class Trial:
    """What a searching step learns of one of its own attempts, on selection data.

    Attributes:
        score: in the run's metric.
        size_bytes: of what would ship.
        drop: relative loss against the original on the same samples; without labels, the share of
            answers that differ from the original's, or else the noise share of the outputs.
        upper: one-sided 95 % bound of `drop`, where the samples give one.
        sqnr_db: signal over noise of the outputs, where they were kept.
    """

    score: float
    size_bytes: int
    drop: Optional[float] = None
    upper: Optional[float] = None
    sqnr_db: Optional[float] = None


class Env(Protocol):
    """What a step is given to work with."""

    work: Path  # empty folder: the new artifact's files go here
    scratch: Path  # thrown away afterwards
    checkpoint: Path  # survives a kill; the same step with the same key finds it again
    context: Context
    data: Mapping[str, Samples]  # by role; what NEEDS and USES name and the user gave
    reference: Artifact  # the original model
    factory: Optional[Callable[[], Any]]  # builds the untouched torch module, where there is one
    log: logging.Logger

    def progress(self, done: float, message: str) -> None:
        """Tell the user: `done` in 0–1."""

    def built(self, artifact: Artifact, target: Optional[str] = None) -> Tuple[Artifact, str]:
        """What a target makes of an attempt, to be timed, and its device.

        The rest of this target's list without the steps that train; in a shared list the half (or
        FP32) twin's steps of `target`.
        """

    def load_module(self, artifact: Artifact) -> Any:
        """The torch module of a `module` artifact, in eval mode; exporters may not import it."""

    def function(self, reference: str) -> Any:
        """What `package.module:function` names; modules beside the recipe come first."""

    def trial(self, artifact: Artifact) -> Trial:
        """Run the rest of this target's list on selection data."""


class Options(Protocol):
    """Any frozen dataclass."""

    __dataclass_fields__: Dict[str, Any]


class Step(Protocol):
    """The shape of a step module."""

    REV: int
    ACCEPTS: FrozenSet[str]
    PRODUCES: str
    NEEDS: FrozenSet[str]
    USES: FrozenSet[str]
    Options: Any

    def tools(self) -> Dict[str, str]:
        """Name → version; `MissingTool` naming the extra."""

    def refusals(self, source: Artifact, options: Any, context: Context) -> List[Refusal]:
        """Reasons per node, before any work."""

    def run(self, source: Artifact, options: Any, env: Env) -> Artifact:
        """The new artifact, written into `env.work`."""


NO_LIMIT = 1 << 31


def _batch_axes(inputs: Sequence[TensorSpec]) -> List[Any]:
    """The first axes of `inputs`, but for those that have the batch elsewhere.

    A recurrent state is often [layers, batch, …]: the batch's name stands behind, or the sizes
    disagree, and then the first input counts.
    """
    firsts = [spec.shape[0] for spec in inputs if spec.shape]
    named = {first for first in firsts if isinstance(first, str)}
    found = [
        spec.shape[0]
        for spec in inputs
        if spec.shape and not (isinstance(spec.shape[0], int) and named & set(spec.shape[1:]))
    ]
    fixed = [first for first in found if isinstance(first, int)]
    if len(set(fixed)) > 1:
        found = [first for first in found if first == fixed[0] or isinstance(first, str)]
    return found


def batch_names(inputs: Sequence[TensorSpec]) -> List[str]:
    """Names of the free dimensions that stand for the batch, each once."""
    named = [first for first in _batch_axes(inputs) if isinstance(first, str)]
    return list(dict.fromkeys(named))


def batch_range(
    inputs: Sequence[TensorSpec], bounds: Optional[Mapping[str, Sequence[int]]] = None
) -> Tuple[int, int]:
    """The smallest and largest batch that `inputs` take.

    Args:
        inputs: first axis = batch; a fixed one allows itself only.
        bounds: free dimension → (smallest, largest), as `to_openvino` writes to `facts["bounds"]`.
    """
    low, high = 1, NO_LIMIT
    for first in _batch_axes(inputs):
        ends = (first, first) if isinstance(first, int) else (bounds or {}).get(first, (1, high))
        low, high = max(low, int(ends[0])), min(high, int(ends[1]))
    return low, high


def installed(names: Sequence[str], where: str, fix: str) -> Dict[str, str]:
    """Distribution → version, for a step's `tools()`; `MissingTool` naming the first that lacks."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return {name: version(name) for name in names}
    except PackageNotFoundError as error:
        raise MissingTool(f"{error.name} is not installed", where=where, fix=fix) from error


def where_installed(names: Sequence[str]) -> Dict[str, str]:
    """Distribution → version of those that are there, for what a step can do without."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def example_feeds(
    inputs: Sequence[TensorSpec], dims: Mapping[str, int], seed: int
) -> Dict[str, np.ndarray[Any, Any]]:
    """Seeded example arrays for `inputs`: normal floats, integers in {0, 1}, booleans.

    Named free dimensions take their size from `dims` (2 where it does not say). They serve for
    tracing and for checking an export, never for calibration.
    """
    rng = np.random.default_rng(seed)
    made = {}
    for spec in inputs:
        shape = tuple(dims.get(d, 2) if isinstance(d, str) else d for d in spec.shape)
        dtype = np.dtype(spec.dtype)
        if dtype.kind == "f":
            made[spec.name] = rng.standard_normal(shape).astype(dtype)
        else:
            made[spec.name] = rng.integers(0, 2, shape).astype(dtype)
    return made
