"""`model.onnx` with flags is a recipe too: this file says which."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from compressor.recipe import (
    Recipe,
    TargetSpec,
    load_recipe,
    parse_recipe,
    read_yaml,
    recipe_folder,
    with_targets,
)
from runtimes.errors import UsageError

RECIPES = (".yaml", ".yml")
DATA = ("calibration", "evaluation", "training", "selection")


def recipe_from_flags(args: argparse.Namespace) -> tuple[Recipe, Path]:
    """The recipe of the command line and the folder its paths are relative to.

    With a recipe file the flags override it; with a model file they are all there is. Paths given
    as flags are relative to the working directory and made absolute, so that both may be mixed.
    """
    source = Path(args.source)
    if source.suffix in RECIPES:
        recipe, base = load_recipe(source), recipe_folder(source)
    else:
        model = {"source": _absolute(args.source)}
        recipe, base = parse_recipe({"model": model}, "command line"), Path.cwd()
        if not args.target:
            raise UsageError(
                "no target named", where="--target", fix="add --target onnxruntime (or openvino, …)"
            )
    recipe = _with_state(recipe, args.state)
    recipe = with_targets(recipe, args.target)
    recipe = replace(recipe, data={**recipe.data, **_data(args)})
    recipe = _judged_by(recipe, args)
    return _measured(_shaped(recipe, args), args), base


def _with_state(recipe: Recipe, pairs: list[str]) -> Recipe:
    state = dict(recipe.model.state)
    for text in pairs:
        source, sep, result = text.partition("=")
        if not (source and sep and result):
            raise UsageError("not a state", where=f"--state {text}", expected="h_in=h_out")
        state[source] = result
    return replace(recipe, model=replace(recipe.model, state=state)) if pairs else recipe


def _absolute(text: str) -> str:
    """A path as an absolute one; `module:function` stays."""
    path = Path(text)
    looks_like_reference = ":" in text and not path.exists()
    return text if looks_like_reference else str(path.absolute())


def _data(args: argparse.Namespace) -> dict[str, str]:
    given = {role: getattr(args, role) for role in DATA}
    return {role: _absolute(value) for role, value in given.items() if value}


def _judged_by(recipe: Recipe, args: argparse.Namespace) -> Recipe:
    gates: list[Any] = list(recipe.gates)
    if args.max_drop is not None:
        gates.append(f"accuracy_drop<={args.max_drop:g}")
    if args.max_relative_drop is not None:
        gates.append(f"relative_drop<={args.max_relative_drop:g}")
    changed = replace(recipe, gates=[*gates, *args.gate])
    if args.gate or len(gates) > len(recipe.gates):
        changed = replace(changed, targets=_without_same(changed, args))
    if args.metric:
        changed = replace(changed, metric=_metric(args.metric))
    if args.evaluator:
        changed = replace(changed, evaluator=args.evaluator)
    keep = replace(changed.keep, float=[*changed.keep.float, *args.keep_float])
    return replace(changed, keep=keep)


def _metric(text: str) -> Any:
    """A name, a `module:function`, or a mapping in YAML's one-line form."""
    if not text.lstrip().startswith("{"):
        return text
    import yaml

    try:
        return read_yaml(text)
    except yaml.YAMLError as error:
        raise UsageError(
            "not a metric", where=f"--metric {text}", expected="{name: top1, output: logits}"
        ) from error


def _without_same(recipe: Recipe, args: argparse.Namespace) -> dict[str, TargetSpec | None]:
    """A gate on the command line overrides a target's own of the same name."""
    from compressor.gates import parse_gate

    given = {(g.metric, g.batch) for g in map(parse_gate, args.gate)}
    if args.max_drop is not None:
        given.add(("accuracy_drop", None))
    if args.max_relative_drop is not None:
        given.add(("relative_drop", None))

    def kept(raw: Any) -> bool:
        gate = parse_gate(raw)
        return (gate.metric, gate.batch) not in given

    return {
        name: spec and replace(spec, gates=[g for g in spec.gates if kept(g)])
        for name, spec in recipe.targets.items()
    }


def shape_flags(texts: Sequence[str]) -> dict[str, Any]:
    """`--shape INPUT=RANGE[,RANGE…]` as the entries of a recipe's `shape:`."""
    shape: dict[str, Any] = {}
    for text in texts:
        name, sep, value = text.rpartition("=")
        if not sep:
            raise UsageError("not a shape", where=f"--shape {text}", expected="image=1..8@4")
        dims: Any = value.replace("x", ",").split(",")
        shape[name] = dims if len(dims) > 1 else value
    return shape


def _shaped(recipe: Recipe, args: argparse.Namespace) -> Recipe:
    recipe = replace(recipe, shape={**recipe.shape, **shape_flags(args.shape)})
    if not args.device:
        return recipe
    devices: dict[str, TargetSpec | None] = {
        name: replace(spec or TargetSpec(), device=args.device)
        for name, spec in recipe.targets.items()
    }
    return replace(recipe, targets=devices)


def _measured(recipe: Recipe, args: argparse.Namespace) -> Recipe:
    measure = recipe.measure
    if args.batch:
        measure = replace(measure, batch=args.batch)
    if args.threads is not None:
        measure = replace(measure, threads=args.threads)
    seed = recipe.seed if args.seed is None else args.seed
    minutes = recipe.minutes if args.minutes is None else args.minutes
    return replace(recipe, measure=measure, seed=seed, minutes=minutes)
