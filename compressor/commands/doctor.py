"""`compress doctor` and `compress targets`: what is there, here."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from compressor.schema import to_json


def doctor_verb(args: argparse.Namespace) -> int:
    """`compress doctor`: exit 4 where something every run needs is missing."""
    from compressor.doctor import diagnose, exit_code, render

    findings = diagnose()
    print(json.dumps(to_json(findings), indent=1) if args.json else "\n".join(render(findings)))
    return exit_code(findings)


def targets_verb(args: argparse.Namespace) -> int:
    """`compress targets`: targets with their ladders, and every step with its options."""
    from compressor.steps import load_step, load_target, step_modules, target_names
    from runtimes.base import load_runtime

    if args.json:
        print(json.dumps({"targets": target_names(), "steps": list(step_modules())}))
        return 0
    for name in target_names():
        target = load_target(name)
        reason = load_runtime(target.runtime).missing()
        state = f"cannot run here: {reason}" if reason else "ready"
        if reason and target.emulator:
            state = f"its engine is not here, {target.emulator} gives the scores: {reason}"
        print(f"{name}  ({state})")
        for rung in target.ladder:
            print(f"  {rung.name:10} {' → '.join(s.name for s in rung.steps)}")
    print("\nsteps")
    for name in step_modules():
        module: Any = load_step(name)
        summary = (module.__doc__ or "").strip().splitlines()[0]
        print(f"  {name:18} {summary}")
        for field in module.Options.__dataclass_fields__.values():
            print(f"    {field.name}: {_default(field)}")
    return 0


def _default(field: Any) -> str:

    if field.default is not dataclasses.MISSING:
        return json.dumps(to_json(field.default))
    if field.default_factory is not dataclasses.MISSING:
        return json.dumps(to_json(field.default_factory()))
    return "required"
