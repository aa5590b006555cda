"""Does a conversion compute what its source computes? Checked on example feeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exporters.base import example_feeds
from runtimes.base import Feeds, Outputs
from runtimes.errors import BuildFailed
from runtimes.types import TensorSpec

_NOISE = 1e-6  # what may differ around an output that is all zeros


@dataclass(frozen=True)
class Error:
    """Largest differences over all outputs: absolute, and relative to the output's own scale."""

    absolute: float = 0.0
    relative: float = 0.0

    def worst(self, other: Error) -> Error:
        """The larger of both, field by field."""
        return Error(max(self.absolute, other.absolute), max(self.relative, other.relative))

    def to_json(self) -> dict[str, float]:
        """Four significant digits, so that facts stay readable."""
        return {
            "max_abs_error": float(f"{self.absolute:.4g}"),
            "max_rel_error": float(f"{self.relative:.4g}"),
        }


def onnx_session(
    model: Path | bytes, threads: int = 1, *, optimize: bool = True, in_order: bool = False
) -> Any:
    """A quiet ONNX Runtime session on the CPU, with basic graph optimizations or none.

    `in_order` is for little memory: nodes run as early as the graph lists them (by default the
    engine leaves what only feeds outputs of the graph to the end, and every tensor such a node
    reads stays until then), and freed tensors are not kept for the next run.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    if in_order:
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.log_severity_level = 4
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = (
        levels.ORT_ENABLE_BASIC if optimize else levels.ORT_DISABLE_ALL
    )
    given = str(model) if isinstance(model, Path) else model
    return ort.InferenceSession(given, options, providers=["CPUExecutionProvider"])


def run_onnx(session: Any, feeds: Feeds) -> Outputs:
    """Outputs by name."""
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def ort_errors() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises: its own exception classes, which share no base but Exception."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented",
             "RuntimeException", "NoSuchFile", "EPFail", "EngineError", "NoModel")  # fmt: skip
    found = tuple(getattr(state, name) for name in names if hasattr(state, name))
    return (*found, RuntimeError)


def compare(want: Mapping[str, Any], got: Mapping[str, Any], tolerance: float, where: str) -> Error:
    """The largest error over the outputs of `want`.

    Floats may differ by `tolerance` times the output's largest magnitude; of integers
    and booleans a share of `tolerance` may differ (an argmax flips on a tie). Raises `BuildFailed`
    naming the first output that differs more.
    """
    error = Error()
    for name, expected in want.items():
        error = error.worst(_compare_one(name, expected, got[name], tolerance, where))
    return error


def _compare_one(name: str, want: Any, got: Any, tolerance: float, where: str) -> Error:
    if want.shape != got.shape:
        raise BuildFailed(
            "the converted model gives another shape",
            where=f"{where}, output {name}",
            expected=str(list(want.shape)),
            got=str(list(got.shape)),
        )
    if want.dtype.kind not in "fV":
        share = float(np.mean(want != got)) if want.size else 0.0
        error, limit = Error(share, share), tolerance
    else:
        error, limit = _float_error(want, got, tolerance)
    if not error.absolute <= limit:
        raise BuildFailed(
            "the converted model computes something else",
            where=f"{where}, output {name}",
            expected=f"a largest difference of at most {limit:.3g}",
            got=f"{error.absolute:.3g}",
            fix="raise the step's `tolerance` if this much is known to be harmless",
        )
    return error


def wide_pieces(*arrays: Any, values: int = 1 << 20) -> Iterator[list[Any]]:
    """Arrays of one shape, piece by piece, flat and in float64: copies of all logits are large."""
    flat = [array.reshape(-1) for array in arrays]
    for start in range(0, flat[0].size, values):
        yield [array[start : start + values].astype(np.float64) for array in flat]


def _float_error(want: Any, got: Any, tolerance: float) -> tuple[Error, float]:
    gap = scale = 0.0
    for one, other in wide_pieces(want, got):
        finite = np.isfinite(one) & np.isfinite(other)
        same = (one == other) | (np.isnan(one) & np.isnan(other))
        if not np.all(finite | same):
            return Error(float("inf"), float("inf")), tolerance
        gap = max(gap, float(np.abs(np.where(finite, one - other, 0.0)).max()))
        scale = max(scale, float(np.abs(np.where(finite, one, 0.0)).max()))
    return Error(gap, gap / max(scale, 1e-12)), tolerance * scale + _NOISE


def accepted_sizes(
    session: Any, inputs: Sequence[TensorSpec], dims: Mapping[str, int]
) -> dict[str, int]:
    """`dims`, with a size that the model accepts for every free dimension it does not name.

    Networks that halve their input several times do not run at 2; where nothing fits, `dims`.
    """
    free = {d for spec in inputs for d in spec.shape if isinstance(d, str)} - set(dims)
    batch = {spec.shape[0] for spec in inputs if spec.shape}
    for size in (2, 8, 32, 64, 224):
        tried = {**{name: 2 if name in batch else size for name in free}, **dims}
        try:
            run_onnx(session, example_feeds(inputs, tried, seed=0))
        except ort_errors():
            continue
        return tried
    return dict(dims)


def declared_otherwise(outputs: Sequence[TensorSpec], found: Mapping[str, Any]) -> list[str]:
    """A note for every output whose declared shape is not the one the model gives."""
    notes = []
    for spec in outputs:
        shape = found[spec.name].shape
        fits = len(shape) == len(spec.shape) and all(
            isinstance(want, str) or want == have
            for want, have in zip(spec.shape, shape, strict=True)
        )
        if not fits:
            notes.append(f"the model declares {spec}, and gives {list(shape)}")
    return notes


def sizes_to_try(inputs: Sequence[TensorSpec], dims: Mapping[str, int]) -> list[dict[str, int]]:
    """Sizes of the free dimensions for a check: as given, with a batch of 1, and each one doubled.

    A dimension that is the first axis of an input counts as a batch and is also tried at 1.
    """
    free = list(dict.fromkeys(d for s in inputs for d in s.shape if isinstance(d, str)))
    batch = {s.shape[0] for s in inputs if s.shape}
    base = {name: dims.get(name, 2) for name in free}
    tried = [base]
    for name in free:
        if name in batch:
            tried.append({**base, name: 1})
        tried.append({**base, name: 2 * base[name]})
    return tried
