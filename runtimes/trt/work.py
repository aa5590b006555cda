"""What `main` does: probe, hold the bundle against the machine, build, validate, write."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from . import board, by_trtexec, trtexec
from .bundle import Bundle, check_gpu, check_version, read_bundle
from .child import run_child
from .compare import mismatches
from .engine_file import Here, facts_path, read_facts, why_not
from .errors import BAD, FAILED, UNSUPPORTED, USAGE, TrtError
from .files import sha256_of, write_json

RESULT_SCHEMA = 1
NAMES = {"tensorrt": "model.engine", "tensorrt_rtx": "model.rtx.plan"}
PROBE_LIMIT_S = 120
# What a build needs beside its workspace: the parsed weights, the builder's copies, the plan.
WEIGHTS_TIMES, OVERHEAD_BYTES = 3, 128 << 20


class Options(NamedTuple):
    """The command line, as values."""

    bundle: Path
    engine: Optional[str] = None
    api: str = "tensorrt"
    gpu: int = 0
    trtexec: Optional[str] = None
    use_trtexec: bool = False
    rebuild: bool = False
    no_build: bool = False
    try_anyway: bool = False
    time_limit_s: Optional[float] = None
    workspace_bytes: Optional[int] = None
    dla_core: Optional[int] = None
    seconds: float = 3.0
    batches: Tuple[int, ...] = ()
    graph: Tuple[bool, ...] = (False, True)


class Route(NamedTuple):
    """By what an engine is built and run: the Python binding, or `trtexec`."""

    here: Here
    tool: Optional[Path]
    free_bytes: int


def blank() -> Dict[str, Any]:
    """Results before anything was done."""
    return {
        "schema": RESULT_SCHEMA,
        "bundle": "",
        "status": "portable",
        "exit_code": 0,
        "reason": "",
        "versions": {},
        "device": {},
        "engine": {},
        "layers": {},
        "numeric": {},
        "timing": [],
        "slowest": [],
        "memory": {},
        "notes": [],
    }


def work(options: Options, result: Dict[str, Any]) -> None:
    """Fill `result` as far as it goes; `TrtError` where it ends early."""
    bundle = read_bundle(options.bundle)
    result["bundle"] = bundle.digest
    route = _route(bundle, options, result)
    engine = options.bundle / (options.engine or NAMES[options.api])
    if not _reusable(engine, bundle, route, options, result):
        _build(engine, bundle, route, options, result)
    result["status"] = "built"
    _validate(engine, bundle, route, options, result)
    wrong = mismatches(result["numeric"], bundle.tolerance_db)
    if wrong:
        result["exit_code"], result["reason"] = BAD, "; ".join(wrong)
    else:
        result["status"] = "validated"
    write_json(facts_path(engine), result)


def _route(bundle: Bundle, options: Options, result: Dict[str, Any]) -> Route:
    """The machine, checked against the bundle; its facts go into `result`."""
    asked = {"gpu": options.gpu, "apis": [options.api]}
    found = run_child("probe", asked, time_limit_s=PROBE_LIMIT_S)
    gpu = found["devices"][options.gpu]
    result["device"] = {**gpu, **board.facts()}
    tool, version = _tool(options, found)
    versions = {"cuda": found["cuda"], "driver": board.driver_version()}
    result["versions"] = {options.api: version, **versions}
    try:
        if options.api == "tensorrt":
            check_version(bundle, version)
        newer = check_gpu(bundle, gpu["name"], gpu["sm"])
        result["notes"] += [newer] if newer else []
    except TrtError as error:
        if not options.try_anyway:
            raise
        result["notes"].append(f"tried anyway: {error.sentence()}")
    here = Here(options.api, version, gpu["name"], gpu["sm"])
    free = int(found["free_bytes"])
    if gpu["integrated"]:  # the driver counts what the system caches as taken
        free = max(free, result["device"]["memory_available_bytes"] or 0)
    return Route(here, tool, free)


def _tool(options: Options, found: Dict[str, Any]) -> Tuple[Optional[Path], str]:
    """(trtexec or None for the Python binding, version)."""
    known = found["libraries"].get(options.api)
    if known and not options.use_trtexec:
        return None, str(known)
    tool = trtexec.find(options.trtexec) if options.api == "tensorrt" else None
    if tool is not None:
        return tool, trtexec.version_of(tool)
    raise TrtError(
        str(found["why"].get(options.api, "")) + "; and no trtexec was found",
        UNSUPPORTED,
        where="TensorRT",
        fix="on a Jetson: apt install nvidia-jetpack; or name the tool with --trtexec PATH",
    )


def _reusable(
    engine: Path, bundle: Bundle, route: Route, options: Options, result: Dict[str, Any]
) -> bool:
    """Whether the engine that is there serves; its facts then go into `result`."""
    reason = why_not(engine, bundle.digest, route.here)
    known = read_facts(engine)
    wanted = _builder(bundle, options)
    if reason is None and known is not None:
        changed = known["engine"].get("builder") != wanted
        if options.no_build or not (options.rebuild or changed):
            result["engine"] = known["engine"]
            result["notes"].append("the engine that was there was used")
            return True
    if options.no_build and reason is not None:
        raise reason
    if engine.is_file() and reason is not None:
        result["notes"].append(f"built again: {reason.sentence()}")
    return False


def _builder(bundle: Bundle, options: Options) -> Dict[str, Any]:
    """The bundle's builder options, with those of the command line over them."""
    asked = dict(bundle.data["builder"])
    if options.dla_core is not None:
        asked["dla_core"] = options.dla_core
    if options.workspace_bytes is not None:
        asked["workspace_bytes"] = options.workspace_bytes
    return asked


def _build(
    engine: Path, bundle: Bundle, route: Route, options: Options, result: Dict[str, Any]
) -> None:
    """Build beside the engine's place, then put it there: a reader sees the old or the new."""
    builder = _builder(bundle, options)
    limited = _within_memory(bundle, route, builder, result["notes"])
    try:
        place = Path(tempfile.mkdtemp(prefix=".building-", dir=str(engine.parent)))
    except OSError as error:
        raise TrtError(
            f"cannot be written: {error.strerror}", USAGE, where=str(engine.parent)
        ) from error
    try:
        job = _build_job(place / engine.name, bundle, route, limited, options.gpu)
        cache = engine.with_name("timing.cache")
        if cache.is_file() and _same_board(engine, result):
            shutil.copyfile(str(cache), job["timing_cache"])
        if route.tool is None:
            done = run_child("build", job, time_limit_s=options.time_limit_s)
        else:
            done = by_trtexec.build(job, options.time_limit_s)
        for made in sorted(place.iterdir()):
            made.replace(engine.with_name(made.name))
    finally:
        shutil.rmtree(str(place), ignore_errors=True)
    result["notes"] += done["notes"] + list(dict.fromkeys(done["warnings"]))[:5]
    result["engine"] = {
        "sha256": sha256_of(engine),
        "bytes": engine.stat().st_size,
        "build_seconds": done["seconds"],
        "api": route.here.api,
        "builder": builder,
        "version_compatible": bool(builder.get("version_compatible")),
    }
    write_json(facts_path(engine), {**result, "status": "built"})


def _build_job(
    engine: Path, bundle: Bundle, route: Route, builder: Dict[str, Any], gpu: int
) -> Dict[str, Any]:
    return {
        "api": route.here.api,
        "gpu": gpu,
        "trtexec": str(route.tool or ""),
        "version": route.here.version,
        "model": str(bundle.model),
        "engine": str(engine),
        "precision": bundle.data["precision"],
        "inputs": bundle.data["inputs"],
        "builder": builder,
        "timing_cache": str(engine.with_name("timing.cache")),
    }


def _same_board(engine: Path, result: Dict[str, Any]) -> bool:
    """Timings are of one GPU in one power mode; TensorRT itself refuses those of other versions."""
    known = (read_facts(engine) or {}).get("device", {})
    return all(known.get(key) == result["device"].get(key) for key in ("name", "power_mode"))


def _within_memory(
    bundle: Bundle, route: Route, builder: Dict[str, Any], notes: List[str]
) -> Dict[str, Any]:
    """The builder's options with a workspace that fits; `TrtError` (5) where nothing does."""
    weights = sum((bundle.root / name).stat().st_size for name in bundle.data["sha256"])
    needed = WEIGHTS_TIMES * weights + OVERHEAD_BYTES
    left = route.free_bytes - needed
    if left <= 0:
        raise TrtError(
            "too little memory to build",
            FAILED,
            where=route.here.device,
            expected=f"about {needed:,} bytes free",
            got=f"{route.free_bytes:,}",
            fix="end other programs, or add swap on a Jetson",
        )
    asked = int(builder.get("workspace_bytes") or 0)
    if asked > left:
        notes.append(f"workspace cut from {asked:,} to {left:,} bytes, which are free")
        return {**builder, "workspace_bytes": left}
    return builder


def _validate(
    engine: Path, bundle: Bundle, route: Route, options: Options, result: Dict[str, Any]
) -> None:
    job = {
        "api": route.here.api,
        "trtexec": str(route.tool or ""),
        "version": route.here.version,
        "engine": str(engine),
        "compatible": result["engine"]["version_compatible"],
        "reference": str(bundle.root / "reference.npz"),
        "gpu": options.gpu,
        "inputs": bundle.data["inputs"],
        "layers": bundle.data["layers"],
        "seconds": options.seconds,
        "batches": list(options.batches),
        "graph": list(options.graph),
    }
    if route.tool is None:
        done = run_child("validate", job, time_limit_s=options.time_limit_s)
    else:
        done = by_trtexec.validate(job, options.time_limit_s)
    for key in ("layers", "numeric", "timing", "slowest", "memory"):
        result[key] = done[key]
    result["notes"] += done["notes"]
    if result["engine"]["builder"].get("dla_core") is not None:
        result["notes"].append(f"{result['layers'].get('on_dla', 0)} layers run on the DLA")
    result["device"]["temperature_after_c"] = board.temperature_c()
