"""ONNX file → engine file, in the child process that `main` starts for it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Dict, List, Mapping

from . import api
from .cuda import Cuda
from .errors import FAILED, TrtError
from .timing import timed


def build(job: Mapping[str, Any]) -> Dict[str, Any]:
    """Build an engine.

    Args:
        job: `gpu` (an index, or None for a builder that needs no GPU), `api` (back end), `model`
            and `engine` (paths), `precision`, `inputs` (as in trt.json), `builder` (options),
            `timing_cache` (path; read where it is there, then written).

    Returns:
        seconds, notes (sentences), warnings (the builder's own).

    Raises:
        TrtError: the parser or the builder refused; nothing is written then.
    """
    if job.get("gpu") is None:
        return _build(job)
    cuda = Cuda(int(job["gpu"]))  # before TensorRT, which then builds for this GPU
    try:
        return _build(job)
    finally:
        cuda.close()


def _build(job: Mapping[str, Any]) -> Dict[str, Any]:
    trt = api.load(job["api"])
    log = api.Log(trt)
    builder = trt.Builder(log.listener)
    network = builder.create_network(api.network_flags(trt))
    api.parse(trt, network, log, job["model"])
    config = builder.create_builder_config()
    for name in api.precision_flags(trt, job["precision"]):
        api.set_flag(trt, config, name)
    notes = api.configure(trt, config, builder, job["builder"])
    api.add_profile(network, config, builder, job["inputs"])
    monitor = api.watch_progress(trt, config, _say)
    notes += _use_cache(config, job.get("timing_cache"))
    plan, taken_ns = timed(lambda: builder.build_serialized_network(network, config))
    if plan is None:
        raise _gave_up(log, job)
    Path(job["engine"]).write_bytes(bytes(plan))
    _keep_cache(config, job.get("timing_cache"))
    del monitor  # it was only lent to the builder
    return {"seconds": taken_ns / 1e9, "notes": notes, "warnings": log.warnings[-20:]}


def _use_cache(config: Any, path: Any) -> List[str]:
    """Start from the timings of earlier builds on this board."""
    if not path:
        return []
    known = Path(path).read_bytes() if Path(path).is_file() else b""
    cache = config.create_timing_cache(known)
    if cache is not None and config.set_timing_cache(cache, False):
        return []
    config.set_timing_cache(config.create_timing_cache(b""), False)
    return ["timing.cache is of another version or GPU: timed anew"] if known else []


def _keep_cache(config: Any, path: Any) -> None:
    cache = config.get_timing_cache() if path else None
    if cache is not None:
        Path(path).write_bytes(bytes(cache.serialize()))


def _gave_up(log: api.Log, job: Mapping[str, Any]) -> TrtError:
    text = " ".join(log.errors).lower()
    memory = any(word in text for word in ("out of memory", "outofmemory", "out_of_memory"))
    return TrtError(
        ("too little memory to build: " if memory else "the builder gave up: ") + log.last(),
        FAILED,
        where=str(job["model"]),
        fix="end other programs, add swap, or lower --workspace" if memory else "",
    )


def _say(text: str) -> None:
    sys.stderr.write("build: " + text + "\n")
    sys.stderr.flush()
