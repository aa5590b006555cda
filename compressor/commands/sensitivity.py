"""`compress sensitivity`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from compressor.engine import Engine
from compressor.env import Progress
from compressor.opening import open_model, source_spec
from compressor.plan import Plan, PlannedTarget
from compressor.recipe import Recipe
from compressor.result import Damage, Divergence
from compressor.session import Request, Session, step_threads
from compressor.store import Store
from runtimes.errors import UsageError
from runtimes.types import Artifact

_SHOWN = 20
ALSO = ("int8", "w4")  # columns beside the precision asked for


def sensitivity_verb(args: argparse.Namespace, recipe_and_base: tuple[Recipe, Path]) -> int:
    """`compress sensitivity`: per target the ranked layers, and what to keep float."""
    from compressor.diagnosis import calibration, float_model, measure_damage
    from compressor.progress import on_stderr

    recipe, base = recipe_and_base
    store = Store()
    found: dict[str, tuple[Damage, Divergence | None]] = {}
    with on_stderr(args.quiet) as progress:
        session = _opened(recipe, base, store, progress)
        engine, plan = session.engine, session.plan
        calibration(engine, "--calibration")
        compressed = engine.advance(engine.source, plan.shared)
        for planned in plan.targets:
            name = planned.target.name
            source = float_model(engine, planned, compressed)
            gap = _against(args, engine, planned, plan, source) if args.against else None
            progress.begin(f"{name}: damage per layer")
            made = measure_damage(
                engine,
                planned,
                source,
                args.precision,
                samples=args.samples,
                minutes=args.minutes,
                target_db=args.sqnr,
                also=ALSO,
            )
            progress.end(f"{made.measured} of {made.groups} layers, {made.seconds} s")
            found[name] = made, gap
    if args.json:
        print(json.dumps({t: _json(*pair) for t, pair in found.items()}, indent=1))
        return 0
    for i, (name, (made, gap)) in enumerate(found.items()):
        print("\n" * bool(i) + "\n".join(told(name, made, gap, everything=args.all)))
    return 0


def _json(made: Damage, gap: Divergence | None) -> dict[str, Any]:
    return {"damage": asdict(made), "divergence": None if gap is None else asdict(gap)}


def _opened(recipe: Recipe, base: Path, store: Store, progress: Progress) -> Session:
    """The model and data opened and the recipe planned; nothing is built yet."""
    session = Session(Request(recipe, base, base / "compress-out", store, progress=progress))
    opened, engine = session.opened, session.engine
    if opened.agreement_only and opened.evaluation is not None and not session.stateful:
        # what the ranges were not set on
        engine.data = {"selection": opened.evaluation, **opened.data}
    if session.stateful:
        session.original()  # later steps read the state that it gives
    return session


def _against(
    args: argparse.Namespace, engine: Engine, planned: PlannedTarget, plan: Plan, source: Artifact
) -> Divergence:
    from compressor.diagnosis import calibration
    from compressor.quantization.divergence import divergence

    engine.progress.begin(f"{planned.target.name}: compare with {args.against}")
    candidate = _artifact(Path(args.against), engine)
    if candidate.format == "onnx" and source.format == "openvino":
        source = engine.advance(engine.source, plan.reference, "original")
    found = divergence(
        source,
        candidate,
        calibration(engine, "--calibration"),
        runtime=planned.runs_on[0],
        samples=min(args.samples, 32),
        threads=step_threads(),
    )
    engine.progress.end(f"{found.compared} tensors")
    return found


def _artifact(path: Path, engine: Engine) -> Artifact:
    """An artifact's folder (of a run, or of a candidate) or an ONNX file."""
    from compressor.recipe import parse_recipe

    if (path / "artifact.json").is_file():
        made = Artifact.load(path)
        made.verify()
        return made
    if path.is_file():
        spec = parse_recipe({"model": {"source": str(path.absolute())}}, "--against")
        return open_model(source_spec(spec, Path.cwd()), engine.store, engine.progress)[0]
    inside = sorted(str(p.parent) for p in path.glob("**/artifact.json"))
    raise UsageError(
        "nothing to compare with",
        where=f"--against {path}",
        expected="an artifact's folder of a run, such as out/candidates/openvino-int8, or an ONNX",
        got=f"a folder with {', '.join(inside[:3])}" if inside else "no such file or folder",
        fix=f"name {inside[0]}" if inside else "check the path",
    )


def told(name: str, made: Damage, gap: Divergence | None, *, everything: bool) -> list[str]:
    """What a person reads of one target."""
    from compressor.report import damage as words
    from compressor.report import show

    what = words.WORDS[made.precision]
    lines = [f"{name}: what {what} costs, layer by layer (on {made.samples} samples)", ""]
    head, rows = words.table(made)
    shown = rows if everything else rows[:_SHOWN]
    lines += ["  " + line for line in words.aligned(head, shown)]
    if len(rows) > len(shown):
        lines.append(f"  and {len(rows) - len(shown)} more (--all)")
    lines += ["", *_legend(made)]
    if made.all_db is not None:
        lines += ["", f"every layer in {what}: SQNR {show.decibels(made.all_db)}"]
    if made.measured < made.groups:
        lines.append(f"{made.groups - made.measured} layers were not measured: time ran out")
    lines += _advice(made)
    if gap is not None:
        lines += ["", f"against the candidate: {words.compared(gap)}"]
        lines += [f"  {line}" for line in words.divergence_lines(gap)]
    return lines


def _legend(made: Damage) -> list[str]:
    from compressor.report.damage import WORDS

    known = " measured" if made.measured < made.groups else ""
    return [
        "  alone: SQNR of the outputs if only this layer changes (higher is better);",
        f"  of the damage: its share of the sum over all layers{known} in {WORDS[made.precision]}",
    ]


def _advice(made: Damage) -> list[str]:
    from compressor.report import damage as words

    goal = f"{made.target_db:g} dB"
    if made.all_db is None:
        return []
    if not made.keep:
        return [f"no layer needs to stay float for {goal} (another goal: --sqnr DB)"]
    reached = "" if (made.kept_db or 0) >= made.target_db else f", short of {goal}"
    return [
        f"with {len(made.keep)} of them float: {words.effect(made)}{reached}. In the recipe:",
        f"    {words.recipe_line(made)}",
        "or as flags of compress run:",
        f"    {words.flags(made)}",
    ]
