"""Steps run inside another step: a search builds its candidates with the steps a user would."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

from compressor.env import Silent, StepEnv
from compressor.steps import load_step, parse_options
from exporters.base import Env, StepSpec
from runtimes.errors import Unsupported
from runtimes.types import Artifact


def run_steps(
    source: Artifact, specs: list[tuple[str, Mapping[str, Any]]], env: Env, name: str
) -> Artifact:
    """`source` through the named steps, into folders of `env.scratch` that start with `name`.

    Raises `Unsupported` with a step's refusals.
    """
    for number, (step, options) in enumerate(specs):
        module = load_step(step)
        parsed = parse_options(StepSpec(step, options), step)
        if refusals := module.refusals(source, parsed, env.context):
            raise Unsupported(f"{step} cannot take this model", refusals, where=step)
        source = module.run(source, parsed, _inner(env, f"{name}-{number}-{step}"))
    return source


def _inner(env: Env, name: str) -> StepEnv:
    work, scratch, checkpoint = (env.scratch / f"{name}{end}" for end in ("", ".tmp", ".kept"))
    shutil.rmtree(work, ignore_errors=True)
    for folder in (work, scratch, checkpoint):
        folder.mkdir(parents=True, exist_ok=True)
    return StepEnv(
        work,
        scratch,
        checkpoint,
        env.context,
        env.data,
        env.reference,
        env.factory,
        env.log,
        Silent().update,
        env.trial,
        env.built,
    )
