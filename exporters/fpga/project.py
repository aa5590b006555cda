"""What all back ends share: the vectors they are compared on, and the artifact they hand out."""

from __future__ import annotations

import json
from typing import Any

from exporters._drop_in import require_drop_in
from exporters.base import Env
from runtimes.fixed import reference
from runtimes.fixed.spec import SPEC, WEIGHTS, Spec, write_spec
from runtimes.fpga import words
from runtimes.types import Artifact

RESOURCES = "resources.json"


def vectors(spec: Spec, count: int, env: Env) -> dict[str, Any]:
    """Integers of the inputs: the ends, calibration data where there is any, and random ones."""
    parts = [words.edges(spec)]
    data = env.data.get("calibration") or env.data.get("training")
    if data is not None and len(data) and not data.ragged:
        feeds = data.feeds(list(range(min(count, len(data)))))
        parts.append({i.name: reference.quantize(feeds[i.name], i.format) for i in spec.inputs})
    there = sum(len(part[spec.inputs[0].name]) for part in parts)
    parts.append(words.random_vectors(spec, max(count - there, count // 4), env.context.seed))
    return words.joined(parts)


def figure(value: float, provenance: str, tool: str) -> dict[str, Any]:
    """One figure, with what it is from."""
    return {"value": value, "provenance": provenance, "tool": tool}


def handed_out(source: Artifact, spec: Spec, told: dict[str, Any], env: Env) -> Artifact:
    """Write the specification and `resources.json`; the artifact with what is in `told`.

    `told` has figures, checks and notes; `stages` where there are any.
    """
    write_spec(spec, env.work)
    kept = {name: value for name, value in told.items() if name != "notes"}
    text = json.dumps(kept, indent=1, sort_keys=True)
    (env.work / RESOURCES).write_text(text + "\n", encoding="utf-8")
    facts: dict[str, Any] = {
        **source.facts,
        **{name: told[name] for name in ("figures", "checks", "stages") if name in told},
        "notes": [*source.facts.get("notes", []), *told["notes"]],
        "model_files": [SPEC, WEIGHTS],
    }
    made = Artifact.write(env.work, "fpga", SPEC, source.inputs, source.outputs, facts)
    return require_drop_in(source, made)
