"""What a runtime is, and the feed checks they share.

A runtime is a module `rt_<engine>.py` with:

    FORMATS: frozenset of artifact formats it opens
    missing() -> str | None              why it cannot be used here (None: it can)
    versions() -> dict[str, str]         name → version of the engine and what it needs
    open_session(artifact, *, threads=1, device="CPU") -> Session
    PACKAGES: tuple of the sub-packages of `runtimes` that travel with it (optional)
    layer_precisions(artifact, *, feeds, threads=1, device="CPU") -> list[LayerPrecision]
                                         what each executed layer computed in (optional)

Only `runtimes/timing.py` owns a clock (and `runtimes/trt/timing.py`, which is alone on its board).
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from types import TracebackType
from typing import (
    Any,
    Dict,
    FrozenSet,
    List,
    Mapping,
    Optional,
    Protocol,
    Sequence,
    Tuple,
    Type,
    TypeVar,
)

import numpy as np

import runtimes
from runtimes.errors import UsageError
from runtimes.types import Artifact, TensorSpec

Feeds = Mapping[str, "np.ndarray[Any, Any]"]
Outputs = Dict[str, "np.ndarray[Any, Any]"]


class Call(Protocol):
    """One bound inference."""

    def __call__(self) -> None:
        """Exactly one synchronous inference on the bound feeds, and nothing else."""

    def fetch(self) -> Outputs:
        """Copies of the outputs of the last inference."""


class Session(Protocol):
    """An opened model."""

    inputs: Tuple[TensorSpec, ...]
    outputs: Tuple[TensorSpec, ...]
    settings: Dict[str, str]  # what the engine says it runs with (precision, threads, …)

    def bind(self, feeds: Feeds) -> Call:
        """Check `feeds` and prepare one inference on them."""

    def run(self, feeds: Feeds) -> Outputs:
        """Outputs by name for one batch of feeds."""

    def close(self) -> None:
        """Free the engine's memory."""

    def __enter__(self) -> Session: ...

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        value: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None: ...


S = TypeVar("S", bound="Closing")


class Closing:
    """`with` for what has a `close`, as every runtime's session."""

    def close(self) -> None:
        """Free what it holds; each runtime's own."""

    def __enter__(self: S) -> S:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        value: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()


@dataclass(frozen=True)
class LayerPrecision:
    """What the engine itself says of one executed layer.

    `layers` are the source nodes fused into it; `precision` is `int8`, `float16`, `bfloat16`,
    `float32`, …; `time_ns` is the engine's own figure where it gives one. Of a layer that only
    converts (to another precision or memory layout) `beside` names the layers it stands between.
    """

    layer: str
    op: str
    precision: str
    layers: Tuple[str, ...] = ()
    time_ns: Optional[int] = None
    beside: Tuple[str, ...] = ()


class Runtime(Protocol):
    """The shape of an `rt_<engine>` module."""

    FORMATS: FrozenSet[str]

    def missing(self) -> Optional[str]:
        """Why it cannot be used here; None where it can."""

    def versions(self) -> Dict[str, str]:
        """Name → version of the engine and what it needs."""

    def open_session(self, artifact: Artifact, *, threads: int = 1, device: str = "CPU") -> Session:
        """Load a model."""


def runtime_names() -> List[str]:
    """Names of all runtimes, found by file name."""
    found = (m.name for m in pkgutil.iter_modules(runtimes.__path__))
    return sorted(name[3:] for name in found if name.startswith("rt_"))


def engine_of(artifact: Artifact) -> str:
    """Runtime of an artifact's format; ONNX Runtime, which is always there, runs plain ONNX."""
    return "openvino" if artifact.format == "openvino" else "onnxruntime"


def load_runtime(name: str) -> Any:
    """The module `rt_<name>`; raises `UsageError` naming the known ones."""
    if name not in runtime_names():
        raise UsageError(
            "unknown runtime", where=name, expected="one of " + ", ".join(runtime_names())
        )
    return importlib.import_module("runtimes.rt_" + name)


def check_feeds(inputs: Sequence[TensorSpec], feeds: Feeds) -> None:
    """Raise `UsageError` where names, dtypes, ranks or fixed dimensions differ from `inputs`."""
    wanted = [spec.name for spec in inputs]
    if sorted(wanted) != sorted(feeds):
        raise UsageError(
            "wrong input names",
            where="feeds",
            expected=", ".join(wanted),
            got=", ".join(sorted(feeds)) or "nothing",
            fix="name each array as the model's input",
        )
    sizes: Dict[str, int] = {}
    for spec in inputs:
        array = feeds[spec.name]
        if str(array.dtype) != spec.dtype:
            raise UsageError(
                "wrong dtype",
                where="input " + spec.name,
                expected=spec.dtype,
                got=str(array.dtype),
                fix=f"convert with .astype({spec.dtype!r})",
            )
        if not _fits(spec, array.shape, sizes):
            raise UsageError(
                "wrong shape",
                where="input " + spec.name,
                expected=str(spec),
                got=str(list(array.shape)),
            )


def _fits(spec: TensorSpec, shape: Tuple[int, ...], sizes: Dict[str, int]) -> bool:
    if len(shape) != len(spec.shape):
        return False
    for want, have in zip(spec.shape, shape):
        if isinstance(want, str):
            if want and sizes.setdefault(want, have) != have:
                return False
        elif want != have:
            return False
    return True
