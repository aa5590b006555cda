"""Engine file → its layers, its numbers beside the reference's, its times; in a child process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence, Tuple

import numpy as np

from . import api, compare, layers
from .cuda import Cuda
from .errors import TrtError
from .power import Watch
from .session import Engine
from .timing import Plan, measure


def validate(job: Mapping[str, Any]) -> Dict[str, Any]:
    """Look into an engine, run it on the reference inputs, time it.

    Args:
        job: `api`, `engine` and `reference` (paths), `compatible` (with other versions), `gpu`,
            `inputs` and `layers` (as in trt.json),
            `seconds` (0: no timing), `batches` (sizes, or empty for the profile's `opt`), `graph`
            (list of booleans).

    Returns:
        layers, numeric, timing and slowest (lists), memory (bytes), notes.
    """
    cuda = Cuda(int(job["gpu"]))  # before TensorRT: without a driver that one ends the process
    trt = api.load(job["api"])
    before = cuda.memory()[0]
    engine = Engine(trt, cuda, Path(job["engine"]).read_bytes(), job["compatible"])
    try:
        feeds, expected = compare.read_reference(Path(job["reference"]))
        _say("comparing with the reference outputs")
        calls = compare.batches(feeds, job["inputs"])
        numeric = compare.compare(compare.run_all(engine.run, feeds, calls), expected)
        notes: List[str] = []
        timing = _times(engine, feeds, job, notes) if job["seconds"] else []
        sized = resized(feeds, job["inputs"], None)
        return {
            "layers": _layers(trt, engine, job["layers"], notes),
            "numeric": numeric,
            "timing": timing,
            "slowest": slowest(engine.profile(sized)) if job["seconds"] else [],
            "memory": _memory(engine, sized, before),
            "notes": notes,
        }
    finally:
        engine.close()
        cuda.close()


def _layers(
    trt: Any, engine: Engine, wanted: Sequence[Mapping[str, Any]], notes: List[str]
) -> Dict[str, Any]:
    found = layers.read_layers(api.inspector_json(trt, engine.engine))
    counted = layers.count(found, wanted)
    for name in counted["fell_back"]:
        notes.append(f"{name} was to run in INT8 and runs in float")
    return counted


def _memory(engine: Engine, feeds: compare.Arrays, before: int) -> Dict[str, int]:
    """GPU memory that went away between before the engine was loaded and while it runs."""
    bound = engine.bind(feeds)
    try:
        bound()
        used = before - engine.cuda.memory()[0]
    finally:
        bound.close()
    activations = api.activation_bytes(engine.engine)
    return {"gpu_used_bytes": max(0, used), "activation_bytes": activations}


def _times(
    engine: Engine, feeds: compare.Arrays, job: Mapping[str, Any], notes: List[str]
) -> List[Dict[str, Any]]:
    made = []
    plan = Plan(duration_ms=1e3 * float(job["seconds"]))
    for batch in job["batches"] or [None]:
        sized = resized(feeds, job["inputs"], batch)
        for graph in job["graph"]:
            bound = engine.bind(sized)
            try:
                if graph:
                    bound.use_graph()
                _say("timing" + (" with a CUDA graph" if graph else ""))
                with Watch() as watch:
                    taken = measure(engine.cuda, engine.stream, bound, plan)
                made.append(
                    {"graph": graph, "batch": compare.rows(sized), **taken, **energy(watch, taken)}
                )
            except TrtError as error:
                if not graph:
                    raise
                notes.append(f"no CUDA graph: {error.what}")
            finally:
                bound.close()
    return made


def energy(watch: Watch, taken: Mapping[str, Any]) -> Dict[str, Any]:
    """Power of the board while it was timed, and energy of one inference (of a batch)."""
    if not watch.told or not taken["throughput_per_s"]:
        return {}
    energy_mj = watch.told["mean_mw"] / taken["throughput_per_s"]
    return {"power": watch.told, "energy_mj": energy_mj}


def slowest(profile: Sequence[Tuple[str, float]], count: int = 10) -> List[Dict[str, Any]]:
    """The layers that take longest, by the engine's own profile."""
    ordered = sorted(profile, key=lambda row: -row[1])[:count]
    return [{"layer": name, "ms": taken_ms} for name, taken_ms in ordered]


def resized(
    feeds: compare.Arrays, specs: Sequence[Mapping[str, Any]], batch: Any
) -> compare.Arrays:
    """The reference inputs repeated or cut to the profile's `opt` shapes, or to a batch size."""
    made = {}
    for spec in specs:
        given = feeds[spec["name"]]
        shape = list(spec.get("opt") or given.shape)
        if batch is not None and shape and isinstance(spec["shape"][0], str):
            shape[0] = int(batch)
        made[spec["name"]] = np.resize(given, shape)
    return made


def _say(text: str) -> None:
    sys.stderr.write("validate: " + text + "\n")
    sys.stderr.flush()
