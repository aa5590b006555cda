"""`compress plan`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from compressor.recipe import Recipe


def plan_verb(args: argparse.Namespace, recipe_and_base: tuple[Recipe, Path]) -> int:
    """`compress plan`: every step that would run, or every problem (then it raises)."""
    from compressor.api import make_plan_for

    recipe, base = recipe_and_base
    planned = make_plan_for(recipe, base, deep=args.deep)
    if args.json:
        print(json.dumps(_plan_json(planned), indent=1))
        return 0
    for step in planned.shared:
        print(f"shared     {_spelled(step)}")
    for i, target in enumerate(planned.targets):
        if i or planned.shared:
            print()
        print(f"{target.target.name} on {target.context.device}")
        for rung in (*target.twins, *target.rungs):
            steps = " → ".join(_spelled(s) for s in rung.steps) or "as it is"
            print(f"  {rung.name:10} {'skipped: ' + rung.skipped if rung.skipped else steps}")
        if target.without:
            told = f"{target.runs_on[0]} gives the scores, nothing is timed: {target.without}"
            print(f"  engine     {told}")
        for line in target.recurrent:
            print(f"  recurrent  {line}")
        if target.memory:
            print(f"  memory     {target.memory}")
        print(f"  gates      {', '.join(str(g) for g in target.gates)}")
    print()
    for warning in planned.warnings:
        print(f"warning: {warning}")
    print("nothing stands in the way of a run")
    return 0


def _spelled(step: Any) -> str:
    from compressor.steps import load_step, options_json

    options = options_json(step.options)
    usual = options_json(load_step(step.name).Options())
    changed = {k: v for k, v in options.items() if v != usual[k]}
    inner = ", ".join(f"{k}: {json.dumps(v)}" for k, v in changed.items())
    return f"{step.name} {{{inner}}}" if inner else str(step.name)


def _plan_json(planned: Any) -> dict[str, Any]:
    return {
        "shared": [_spelled(s) for s in planned.shared],
        "warnings": list(planned.warnings),
        "targets": {
            t.target.name: {
                "device": t.context.device,
                "without": t.without,
                "gates": [str(g) for g in t.gates],
                "recurrent": list(t.recurrent),
                "memory": t.memory,
                "rungs": [
                    {
                        "name": r.name,
                        "role": r.role,
                        "skipped": r.skipped,
                        "steps": [_spelled(s) for s in r.steps],
                    }
                    for r in (*t.twins, *t.rungs)
                ],
            }
            for t in planned.targets
        },
    }
