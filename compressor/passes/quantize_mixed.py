"""Mixed precision: per layer INT8, stored integers or float, so that accuracy, size and speed hold.

What each layer's lower precision costs is measured on the target's model (`compress sensitivity`
prints that table); an integer program picks the smallest and fastest assignment within a damage
budget and the size limit; the budget is then bisected with real builds, scored on selection data.
INT8 kernels are used only where they are measured to be no slower than float.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from exporters.base import Context, Env, StepSpec, where_installed
from runtimes.errors import Refusal
from runtimes.types import Artifact

REV = 10
ACCEPTS = frozenset({"onnx", "onnxruntime", "openvino"})
PRODUCES = "same"
NEEDS = frozenset({"calibration"})
USES = frozenset({"calibration", "selection"})


@dataclass(frozen=True)
class Options:
    """What the result must keep, and how long the search may take.

    Attributes:
        min_reduction: the artifact is at least this much smaller than the original (0-1).
        max_drop: relative loss allowed (without labels: disagreement). On selection data an
            attempt keeps it with half of that, or with a 95 % bound of four fifths.
        min_sqnr_db: signal over noise that the outputs keep on selection data; an attempt keeps
            half a decibel more.
        speed: leave layers float whose INT8 kernel is measured to be no faster; nothing is timed
            for TensorRT, whose engine runs on a board, and whose layers are INT8 or float.
        dynamic: let LSTMs whose weights are integers run in dynamic INT8 where the engine can.
        samples: measure each layer's damage on this many; on fewer where that takes minutes.
        minutes: end the search after about this long with the best found; None: no limit.
        method: of calibration, as in `quantize_static`.
        assign: layer → precision (`float`, `half`, `w8`, `int8`, `w4`, `int8-w4`, or `w4-32`: 4
            bits with a scale for every 32 columns); given, nothing is searched.
    """

    min_reduction: float = 0.75
    max_drop: float = 0.01
    min_sqnr_db: float | None = None
    speed: bool = True
    dynamic: bool = True
    samples: int = 64
    minutes: float | None = None
    method: Literal["minmax", "mse"] = "minmax"
    assign: Mapping[str, str] = field(default_factory=dict)


def tools() -> dict[str, str]:
    """Versions of what calibrates, computes and solves."""
    return where_installed(("onnx", "onnxruntime", "nncf", "openvino", "scipy"))


def refusals(source: Artifact, options: Options, context: Context) -> list[Refusal]:
    """Models without a weight that could be stored in fewer bits, and quantized ones."""
    del options
    from compressor.steps import load_step, parse_options

    if source.format != "openvino":
        from compressor.quantization.onnx_pass import model_refusals
        from exporters._onnx_graph import load_model

        if found := model_refusals(load_model(source.path)):
            return found
    storing = StepSpec("quantize_weights")
    return load_step(storing.name).refusals(source, parse_options(storing, storing.name), context)


def run(source: Artifact, options: Options, env: Env) -> Artifact:
    """Search (or take `assign`), and write the best artifact found with what was learned."""
    from compressor.quantization.search import Search, build
    from compressor.quantization.sensitivity import Budget
    from compressor.quantization.workbench import open_workbench

    bench = open_workbench(source, env, options.samples, options.method)
    if options.assign:
        made = build(source, bench.groups, options.assign, env, "assigned", options)
        return _write(made, env, {"assign": dict(options.assign)}, [])
    original = int(env.reference.facts.get("given_bytes") or env.reference.size_bytes)
    limit = int(original * (1 - options.min_reduction))
    search = Search(source, bench, env, options, Budget(options.minutes), limit)
    best = search.run()
    facts: dict[str, Any] = {
        "assign": best.assign,
        "predicted_damage": float(f"{best.damage:.4g}"),
        "builds": len(search.tried),
        "selection_drop": best.trial.drop,
    }
    notes = _notes(best.assign)
    if env.context.scheme is not None and env.context.scheme.explicit:
        notes.append("chosen by accuracy and size alone: no layer was timed")
    return _write(best.artifact, env, facts, notes, timed=search.timed)


def _notes(assign: Mapping[str, str]) -> list[str]:
    words = {
        "int8-w4": "in INT8 with 4-bit weights",
        "int8": "in INT8",
        "w4": "float with 4-bit weights",
        "w4-32": "float with 4-bit weights in blocks",
        "w8": "float with 8-bit weights",
        "half": "float with half weights",
        "float": "float",
    }
    counts = Counter(assign.values())
    parts = [f"{counts[option]} {words[option]}" for option in words if counts[option]]
    return ["mixed precision over groups of layers: " + ", ".join(parts)]


def _explained(row: Mapping[str, str], env: Env) -> dict[str, str]:
    """A row of `requested` whose layer the search left float, and not the user."""
    reason = row.get("reason", "")
    pattern = reason.removeprefix("keep.float ")
    if reason.startswith("keep.float ") and pattern not in env.context.keep.float:
        return {**row, "reason": "mixed precision keeps it float: see `mixed` in its facts"}
    return dict(row)


def _write(
    made: Artifact,
    env: Env,
    found: dict[str, Any],
    notes: list[str],
    *,
    timed: bool = False,
) -> Artifact:
    for name in made.files:
        target = env.work / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(made.root / name, target)
    facts = {
        **made.facts,
        "requested": [_explained(row, env) for row in made.facts.get("requested", [])],
        "mixed": found,
        "notes": [*made.facts.get("notes", []), *notes],
    }
    if timed:
        facts["not_reproducible"] = "quantize_mixed chose by measured times"
    return Artifact.write(env.work, made.format, made.entry, made.inputs, made.outputs, facts)
