"""TensorRT on an NVIDIA GPU: engines that were built from a bundle, on this very machine.

A bundle becomes an engine by `python build_engine.py` in its folder; nothing is built here. A plan
of `to_tensorrt_rtx` was compiled before, for the cards it names. Three libraries can load one:
`tensorrt`, `tensorrt_lean` (version-compatible engines) and `tensorrt_rtx` (its own plans).
Whether there is a driver is asked in a child process, since TensorRT's runtime ends the process
where there is none. Memory comes from the CUDA driver through ctypes.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from functools import lru_cache
from importlib import util
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple, Type

import numpy as np

from runtimes.base import Closing, Feeds, LayerPrecision, Outputs, check_feeds
from runtimes.errors import (
    BadArtifact,
    BoardError,
    CompressError,
    MissingTool,
    RuntimeUnavailable,
    UsageError,
)
from runtimes.trt import api, board, layers
from runtimes.trt.bundle import read_bundle
from runtimes.trt.cuda import Cuda
from runtimes.trt.engine_file import Here, ahead_why_not, facts_path, read_facts, why_not
from runtimes.trt.errors import BAD, FAILED, UNSUPPORTED, USAGE, TrtError
from runtimes.trt.probe import why_no_gpu
from runtimes.trt.session import Bound, Engine
from runtimes.types import Artifact, TensorSpec

FORMATS = frozenset({"tensorrt", "tensorrt_rtx"})
ENGINES = {"tensorrt": "model.engine", "tensorrt_rtx": "model.rtx.plan"}
_EXTRA = "pip install edge-compressor[tensorrt]"
_RTX_EXTRA = "pip install 'edge-compressor[tensorrt-rtx]'"
_KINDS: Dict[int, Type[CompressError]] = {
    USAGE: UsageError,
    UNSUPPORTED: RuntimeUnavailable,
    FAILED: BoardError,
    BAD: BadArtifact,
}


def missing() -> Optional[str]:
    """Why no engine can run here: no library, no driver, no GPU; None where one can."""
    if not _installed():
        return f"no TensorRT is installed: {_EXTRA}"
    reason = _why_no_gpu()
    return f"TensorRT needs an NVIDIA GPU: {reason}" if reason else None


def versions() -> Dict[str, str]:
    """Versions of the library, of the CUDA that the driver supports, and of the driver."""
    name, trt = _library(None)
    with _ours(), _cuda(0) as cuda:
        found = {name: str(trt.__version__), "cuda": cuda.driver.cuda_version()}
    driver = board.driver_version()
    return {**found, "driver": driver} if driver else found


def open_session(
    artifact: Artifact,
    *,
    threads: int = 1,  # noqa: ARG001 - part of every runtime's signature
    device: str = "GPU",
    back_end: Optional[str] = None,
) -> TrtSession:
    """Load the engine of a bundle on `GPU`, or on `GPU:1` and so on; `threads` changes nothing.

    Raises:
        MissingTool: no TensorRT here.
        RuntimeUnavailable: no GPU, no engine yet, or one of another GPU or version.
        BadArtifact: a damaged bundle or engine, or one whose outputs were not the reference's.
        UsageError: an unknown device or back end.
    """
    gpu = _gpu(device)
    own = "tensorrt_rtx" if artifact.format == "tensorrt_rtx" else None
    name, trt = _library(back_end or own)
    return TrtSession(artifact, name, trt, gpu)


class TrtSession(Closing):
    """A loaded engine; `settings` is what is known of it."""

    def __init__(self, artifact: Artifact, name: str, trt: Any, gpu: int) -> None:
        self.inputs: Tuple[TensorSpec, ...] = artifact.inputs
        self.outputs: Tuple[TensorSpec, ...] = artifact.outputs
        path = artifact.root / ENGINES["tensorrt_rtx" if name == "tensorrt_rtx" else "tensorrt"]
        self._bound: List[Bound] = []
        with _ours():
            cuda = Cuda(gpu)
            try:
                facts = _checked(artifact, path, name, str(trt.__version__), cuda)
                compatible = bool(facts.get("engine", {}).get("version_compatible"))
                self._engine: Optional[Engine] = Engine(trt, cuda, path.read_bytes(), compatible)
            except TrtError:
                cuda.close()
                raise
        self._cuda = cuda
        self.settings: Dict[str, str] = {
            "library": f"{name} {trt.__version__}",
            "device": f"{cuda.device.name} (SM {cuda.device.sm})",
            "engine": path.name,
        }

    @property
    def engine(self) -> Engine:
        """The engine; `UsageError` after `close`."""
        if self._engine is None:
            raise UsageError("the session is closed", where="tensorrt")
        return self._engine

    def bind(self, feeds: Feeds) -> TrtCall:
        """Check `feeds`; put them into pinned memory and make room for the outputs."""
        check_feeds(self.inputs, feeds)
        with _ours():
            self._bound.append(self.engine.bind(feeds))
        return TrtCall(self._bound[-1], self.outputs)

    def run(self, feeds: Feeds) -> Outputs:
        """Outputs by name for one batch of feeds."""
        check_feeds(self.inputs, feeds)
        with _ours():
            return _named(self.engine.run(feeds), self.outputs)

    def close(self) -> None:
        """Free the engine's memory, and that of every call."""
        if self._engine is None:
            return
        for bound in self._bound:
            bound.close()
        self._engine.close()
        self._cuda.close()
        self._engine = None


class TrtCall:
    """One inference on bound feeds: inputs up, the network, outputs down, and waiting for it."""

    def __init__(self, bound: Bound, outputs: Tuple[TensorSpec, ...]) -> None:
        self._bound, self._outputs = bound, outputs

    def __call__(self) -> None:
        """Exactly one synchronous inference."""
        self._bound()

    def fetch(self) -> Outputs:
        """Copies of the outputs of the last inference."""
        return _named(self._bound.fetch(), self._outputs)


def layer_precisions(
    artifact: Artifact, *, feeds: Feeds, threads: int = 1, device: str = "GPU"
) -> List[LayerPrecision]:
    """Every layer of the engine, from its inspector; times from its profiler."""
    with open_session(artifact, threads=threads, device=device) as session, _ours():
        engine = session.engine
        found = layers.read_layers(api.inspector_json(engine.trt, engine.engine))
        times = dict(engine.profile(feeds))
    return [_row(layer, times.get(layer.name)) for layer in found]


def _row(layer: layers.Layer, taken_ms: Optional[float]) -> LayerPrecision:
    taken_ns = None if taken_ms is None else int(taken_ms * 1e6)
    nodes, beside = (layer.nodes, ()) if not layer.reformats else ((), layer.nodes)
    return LayerPrecision(layer.name, layer.kind, layer.precision, nodes, taken_ns, beside)


def _checked(artifact: Artifact, path: Path, name: str, version: str, cuda: Cuda) -> Dict[str, Any]:
    """What `engine.json` says, if the engine is fit to run here; of a plan made ahead, nothing."""
    bundle = read_bundle(artifact.root)
    here = Here(name, version, cuda.device.name, cuda.device.sm)
    plan = artifact.facts.get("plan", {})
    ahead = path.name == plan.get("file") and not facts_path(path).exists()
    error = ahead_why_not(path, plan, here) if ahead else why_not(path, bundle.digest, here)
    if error is not None and error.exit_code == USAGE:
        raise RuntimeUnavailable(error.what, where=error.where, fix=error.fix)
    if error is not None:
        raise error
    facts = read_facts(path) or {}
    if facts.get("exit_code") == BAD:
        raise TrtError(
            f"its outputs were not the reference's: {facts.get('reason')}", BAD, where=str(path)
        )
    return facts


def _installed() -> List[str]:
    return [
        name
        for name, modules in api.MODULES.items()
        if any(util.find_spec(module) is not None for module in modules)
    ]


def _library(back_end: Optional[str]) -> Tuple[str, Any]:
    """(back end, module); imports it only where a GPU can be used."""
    found = _installed()
    if back_end is not None and back_end not in api.MODULES:
        raise UsageError(
            "unknown back end", where=back_end, expected="one of " + ", ".join(api.MODULES)
        )
    if not found or (back_end is not None and back_end not in found):
        what = f"{back_end or 'TensorRT'} is not installed"
        fix = _RTX_EXTRA if back_end == "tensorrt_rtx" else _EXTRA
        raise MissingTool(what, where="tensorrt", fix=fix)
    reason = _why_no_gpu()
    if reason:
        raise RuntimeUnavailable(
            f"TensorRT needs an NVIDIA GPU: {reason}",
            where="tensorrt",
            fix="carry the bundle to the board and run build_engine.py there",
        )
    name = back_end or found[0]
    with _ours():
        return name, api.load(name)


@lru_cache(maxsize=1)
def _why_no_gpu() -> Optional[str]:
    return why_no_gpu()


def _gpu(device: str) -> int:
    found = re.fullmatch(r"(?:GPU|CUDA)(?::(\d+))?", device.upper())
    if found is None:
        raise UsageError("unknown device", where="tensorrt", expected="GPU or GPU:1", got=device)
    return int(found.group(1) or 0)


def _named(values: Dict[str, Any], outputs: Tuple[TensorSpec, ...]) -> Outputs:
    """In the manifest's order and types: TensorRT 8.6 gives INT32 for INT64."""
    return {spec.name: np.asarray(values[spec.name], spec.dtype) for spec in outputs}


@contextmanager
def _cuda(gpu: int) -> Iterator[Cuda]:
    cuda = Cuda(gpu)
    try:
        yield cuda
    finally:
        cuda.close()


@contextmanager
def _ours() -> Iterator[None]:
    """Errors of the board's package as ours, by what must be done about them."""
    try:
        yield
    except TrtError as error:
        kind = _KINDS.get(error.exit_code, CompressError)
        raise kind(
            error.what,
            where=error.where or "tensorrt",
            expected=error.expected,
            got=error.got,
            fix=error.fix,
        ) from error
