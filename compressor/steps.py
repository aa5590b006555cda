"""Finds steps and targets: a file in the right folder with the right name *is* the registration.

Passes are the modules of `compressor/passes`, exporters the `exporters/to_*.py` files; other
packages add theirs through the entry-point group `compress.steps` (name → module).
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Collection, Sequence
from dataclasses import asdict, fields, replace
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Any

import compressor.passes
import exporters
from exporters.base import Step, StepSpec, Target
from runtimes.errors import UsageError


@lru_cache(maxsize=1)
def step_modules() -> dict[str, str]:
    """Step name → dotted module, sorted by name."""
    found = {
        m.name: "compressor.passes." + m.name
        for m in pkgutil.iter_modules(compressor.passes.__path__)
        if not m.name.startswith("_")
    }
    for m in pkgutil.iter_modules(exporters.__path__):
        if m.name.startswith("to_"):
            found[m.name] = "exporters." + m.name
    for point in entry_points(group="compress.steps"):
        found.setdefault(point.name, point.value)
    return dict(sorted(found.items()))


def load_step(name: str, where: str = "steps") -> Step:
    """The step module of that name; `UsageError` with the closest match if there is none."""
    known = step_modules()
    if name not in known:
        raise unknown_name("step", name, list(known), where)
    module: Any = importlib.import_module(known[name])
    return module  # type: ignore[no-any-return]


def target_names() -> list[str]:
    """Targets: exporters that declare a `TARGET`, by name (imports every light exporter module)."""
    names = [n[3:] for n in step_modules() if n.startswith("to_") and n != "to_onnx"]
    return [n for n in names if hasattr(load_step("to_" + n), "TARGET")]


def load_target(name: str, where: str = "targets") -> Target:
    """The declaration of a target; `UsageError` with the closest match if there is none."""
    if "to_" + name not in step_modules():
        raise unknown_name("target", name, target_names(), where)
    target: Target = load_step("to_" + name).TARGET  # type: ignore[attr-defined]
    return target


def unknown_name(kind: str, name: str, known: list[str], where: str) -> UsageError:
    """The error for a name nobody knows, with the closest one that somebody does."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return UsageError(
        f"unknown {kind} {name!r}",
        where=where,
        expected="one of " + ", ".join(known),
        fix=f"did you mean {near[0]!r}?" if near else "",
    )


def parse_options(spec: StepSpec, where: str) -> Any:
    """`spec.options` as the step's own frozen `Options`; `UsageError` naming the bad field."""
    from compressor.schema import parse  # pydantic: only once a recipe is there to validate

    return parse(load_step(spec.name, where).Options, dict(spec.options), where)


def as_built(twin: Sequence[StepSpec], given: Sequence[StepSpec]) -> tuple[StepSpec, ...]:
    """The steps of a twin with what the recipe's own list says of how its artifact is built.

    Those are the options in a step's `BUILD`: another engine would be no fair comparison.
    """
    said = {spec.name: spec.options for spec in given}
    made = []
    for spec in twin:
        shared: frozenset[str] = getattr(load_step(spec.name), "BUILD", frozenset())
        more = {k: v for k, v in said.get(spec.name, {}).items() if k in shared}
        made.append(replace(spec, options={**spec.options, **more}))
    return tuple(made)


def check_targets(options: Any, known: Collection[str], where: str) -> None:
    """`UsageError` where an option that names a target (`metadata={"target": True}`) names none."""
    for option in (f.name for f in fields(options) if "target" in f.metadata):
        if (name := getattr(options, option)) and name not in known:
            raise UsageError(
                f"this run has no target {name!r}", where=f"{where}.{option}",
                expected="one of " + ", ".join(known) if known else "a target", got=name,
                fix=f"name one of its targets, or add `{name}: {{}}` to `targets`",
            )  # fmt: skip


def named_code(options: Any) -> dict[str, str]:
    """Options that are set and name a function of the user's (`metadata={"code": True}`)."""
    named = {f.name: getattr(options, f.name) for f in fields(options) if "code" in f.metadata}
    return {name: reference for name, reference in named.items() if reference}


def options_json(options: Any) -> dict[str, Any]:
    """All fields of an `Options` value as plain JSON, for keys and records."""
    from compressor.schema import to_json

    return dict(to_json(asdict(options)))
