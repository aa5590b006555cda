"""The recipe: what the user wants, and the one place that validates it.

`docs/recipe.md` is generated from the dataclasses here and from every step's `Options`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from compressor.schema import Problem, Problems, parse, to_json
from exporters.base import Keep, StepSpec
from runtimes.errors import UsageError

SCHEMA = 1
LOCKED = "locked"  # the part of recipe.lock.yaml that a run wrote: digests, versions, base
ROLES = ("calibration", "training", "selection", "evaluation")


@dataclass(frozen=True)
class ModelSpec:
    """The model.

    Attributes:
        source: a path (`model.onnx`, `model.pt2`) or `module:function` that builds a torch module.
        weights: safetensors or `.pt` state dict for a torch factory.
        inputs: input name → shape (a `str` names a free dimension), or
            `{shape: […], dtype: int64}`; required for torch modules.
        outputs: output names, for torch modules.
        state: recurrent state of a model that takes one step a call, input name → name of the
            output that is its next value. Data sets then hold sequences: the other inputs have an
            axis of steps behind the batch axis, [n, steps, …]; an array of a state input's name
            gives initial states, [n, …], which are zeros otherwise. Labels are one a sequence
            (its last step is scored) or [n, steps, …]; a `module:function` metric gets outputs
            stacked as [n, steps, …].
    """

    source: str = ""
    weights: str | None = None
    inputs: dict[str, Any] = field(default_factory=dict)
    outputs: list[str] | None = None
    state: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TargetSpec:
    """One deployment target.

    Attributes:
        steps: the target's own list after the shared one; left out, the target's ladder is tried.
        device: the engine's device name (`CPU`).
        shape: input name → dimension or range `min..max@opt`.
        gates: gates of this target; they override the recipe's gates of the same name.
    """

    steps: list[Any] | None = None
    device: str | None = None
    shape: dict[str, Any] = field(default_factory=dict)
    gates: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class MeasureSpec:
    """How latency is measured.

    Attributes:
        batch: batch sizes; a latency gate holds at each unless it names one.
        threads: engine threads.
        mode: `latency`: one synchronous request at a time.
        effort: `quick`, `default` or `certify` (more rounds, narrower intervals).
        step_ms: what one step of a recurrent model lasts in real life (a frame of audio, say);
            the report then tells the real-time factor, time needed over time lasted.
    """

    batch: list[int] = field(default_factory=lambda: [1])
    threads: int = 1
    mode: Literal["latency"] = "latency"
    effort: Literal["quick", "default", "certify"] = "default"
    step_ms: float | None = None


@dataclass(frozen=True)
class KeepSpec:
    """What stays as it is.

    Attributes:
        float: globs on the source's layer names, or `{op: Softmax}`: never quantized.
        channels: globs on names of modules, or layers of an ONNX file: never pruned, factorized or
            given zeros.
    """

    float: list[Any] = field(default_factory=list)
    channels: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Recipe:
    """A whole recipe.

    Attributes:
        model: what to compress.
        data: role (`calibration`, `training`, `selection`, `evaluation`) → a path, a
            `module:function`, or a mapping `{path: …, preprocess: {…}}`.
        metric: name of the accuracy metric, `module:function`, or a mapping `{name: …, …}`.
        evaluator: `module:function` called with `run(feeds) -> outputs`, for tasks that are a loop.
        keep: what stays as it is.
        steps: shared by all targets, before each target's own.
        targets: target name → its settings.
        gates: what must hold; default: relative drop ≤ 1 %, not slower, not larger.
        measure: how latency is measured.
        shape: input name → dimension or range, for every target.
        seed: of every random choice.
        minutes: end the run after about this long with the best found so far: each candidate gets
            at most half of what is left, and steps that take longer are stopped. Shared steps are
            done first and whole: give `recover` minutes of its own.
        schema: version of this format.
    """

    model: ModelSpec = field(default_factory=ModelSpec)
    data: dict[str, Any] = field(default_factory=dict)
    metric: Any = None
    evaluator: Any = None
    keep: KeepSpec = field(default_factory=KeepSpec)
    steps: list[Any] = field(default_factory=list)
    targets: dict[str, TargetSpec | None] = field(default_factory=dict)
    gates: list[Any] = field(default_factory=list)
    measure: MeasureSpec = field(default_factory=MeasureSpec)
    shape: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    minutes: float | None = None
    schema: int = SCHEMA

    def shared_steps(self) -> tuple[StepSpec, ...]:
        """The shared steps, parsed."""
        return parse_steps(self.steps, "steps")

    def target(self, name: str) -> TargetSpec:
        """Settings of a target (`{}` and nothing both mean its defaults)."""
        return self.targets.get(name) or TargetSpec()

    def target_steps(self, name: str) -> tuple[StepSpec, ...] | None:
        """A target's own steps, parsed, or None for its ladder."""
        steps = self.target(name).steps
        return None if steps is None else parse_steps(steps, f"targets.{name}.steps")

    def kept(self) -> Keep:
        """`keep` as the steps read it."""
        names = [k for k in self.keep.float if isinstance(k, str)]
        ops = [k["op"] for k in self.keep.float if not isinstance(k, str)]
        return Keep(tuple(names), tuple(ops), tuple(self.keep.channels))


def load_recipe(source: str | Path | Mapping[str, Any]) -> Recipe:
    """A recipe from a YAML file or a mapping; raises `Problems` listing all that is wrong."""
    if isinstance(source, Mapping):
        return parse_recipe(source, "recipe")
    import yaml

    path = Path(source)
    try:
        data = read_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError("no such recipe", where=str(path), fix="check the path") from None
    except IsADirectoryError:
        raise UsageError("is a folder", where=str(path), expected="a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"not valid YAML: {error}", where=str(path)) from error
    if not isinstance(data, dict):
        raise UsageError(
            "not a recipe", where=str(path), expected="a mapping", got=type(data).__name__
        )
    return parse_recipe(data, path.name)


def read_yaml(text: str) -> Any:
    """YAML text as plain values; `yaml.YAMLError` where it is none.

    As in YAML 1.2, `on`, `off`, `yes` and `no` are words: some are names of options and values.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    boolean = "tag:yaml.org,2002:bool"
    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if tag != boolean]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    words = re.compile(r"(true|True|TRUE|false|False|FALSE)\Z")
    Loader.add_implicit_resolver(boolean, words, list("tTfF"))
    return yaml.load(text, Loader)  # noqa: S506 - a safe loader


def recipe_folder(path: Path) -> Path:
    """The folder that a recipe's paths are relative to: its own, or the one a lock file names."""
    data = read_yaml(path.read_text(encoding="utf-8"))
    locked = data.get(LOCKED) if isinstance(data, Mapping) else None
    base = locked.get("base", ".") if isinstance(locked, Mapping) else "."
    return Path(os.path.abspath(path.absolute().parent / str(base)))  # noqa: PTH100


def parse_recipe(data: Mapping[str, Any], where: str) -> Recipe:
    """A mapping as a `Recipe`, every field checked; what a lock file adds is left aside."""
    data = {key: value for key, value in data.items() if key != LOCKED}
    if data.get("schema", SCHEMA) != SCHEMA:
        raise UsageError(
            "recipe of another schema",
            where=f"{where} schema",
            expected=str(SCHEMA),
            got=repr(data.get("schema")),
        )
    recipe = parse(Recipe, dict(data), where)
    problems = list(_checks(recipe, where))
    if problems:
        raise Problems(problems)
    return recipe


def _checks(recipe: Recipe, where: str) -> list[Problem]:
    found: list[Problem] = []
    for role in recipe.data:
        if role not in ROLES:
            found.append(
                Problem(f"{where}.data.{role}", "unknown role", "one of " + ", ".join(ROLES), role)
            )
    for i, entry in enumerate(recipe.keep.float):
        if not isinstance(entry, str) and not (isinstance(entry, dict) and list(entry) == ["op"]):
            place = f"{where}.keep.float[{i}]"
            found.append(Problem(place, "not a pattern", "a glob or {op: Type}", repr(entry)))
    if any(b < 1 for b in recipe.measure.batch) or not recipe.measure.batch:
        found.append(Problem(f"{where}.measure.batch", "not batch sizes", "integers ≥ 1"))
    if recipe.measure.threads < 1:
        found.append(Problem(f"{where}.measure.threads", "not a thread count", "an integer ≥ 1"))
    if recipe.measure.step_ms is not None and not recipe.measure.step_ms > 0:
        found.append(Problem(f"{where}.measure.step_ms", "not a duration", "milliseconds > 0"))
    for place, steps in _step_lists(recipe, where):
        try:
            parse_steps(steps, place)
        except UsageError as error:
            found.append(Problem.of(error))
    return found


def _step_lists(recipe: Recipe, where: str) -> list[tuple[str, list[Any]]]:
    lists = [(f"{where}.steps", recipe.steps)]
    for name, spec in recipe.targets.items():
        if spec is not None and spec.steps is not None:
            lists.append((f"{where}.targets.{name}.steps", spec.steps))
    return lists


def parse_steps(steps: Sequence[Any], where: str) -> tuple[StepSpec, ...]:
    """`name` or `{name: {option: value}}` entries as `StepSpec`s."""
    return tuple(_parse_step(step, f"{where}[{i}]") for i, step in enumerate(steps))


def _parse_step(step: Any, where: str) -> StepSpec:
    if isinstance(step, StepSpec):
        return step
    if isinstance(step, str):
        return StepSpec(step)
    if isinstance(step, Mapping) and len(step) == 1:
        ((name, options),) = step.items()
        if options is None or isinstance(options, Mapping):
            return StepSpec(str(name), dict(options or {}))
    raise UsageError(
        "not a step",
        where=where,
        expected="a step's name, or {name: {option: value}}",
        got=repr(step)[:80],
    )


_RANGE = re.compile(r"^(\d+)(?:\.\.(\d+)(?:@(\d+))?)?$")


def parse_range(text: Any, where: str) -> tuple[int, int, int]:
    """`4`, `1..8` or `1..8@4` (min..max@opt) as (min, opt, max)."""
    match = _RANGE.match(str(text).strip())
    if match:
        low = int(match[1])
        high = int(match[2] or low)
        best = int(match[3] or high)
        if 1 <= low <= best <= high:
            return low, best, high
    raise UsageError(
        "not a dimension", where=where, expected="4, 1..8 or 1..8@4 (min..max@opt)", got=repr(text)
    )


def with_targets(recipe: Recipe, names: Sequence[str]) -> Recipe:
    """`--target X`: selects X from the recipe, or adds it with its defaults."""
    if not names:
        return recipe
    return replace(recipe, targets={n: recipe.targets.get(n) for n in names})


def recipe_json(recipe: Recipe) -> dict[str, Any]:
    """The recipe as the plain mapping that would parse to it; defaults left out."""
    plain: dict[str, Any] = to_json(recipe)
    empty = to_json(Recipe())
    kept = {k: v for k, v in plain.items() if v != empty.get(k) or k == "schema"}
    for name, spec in kept.get("targets", {}).items():
        kept["targets"][name] = {k: v for k, v in (spec or {}).items() if v not in (None, {}, [])}
    if "model" in kept:
        kept["model"] = {k: v for k, v in kept["model"].items() if v not in (None, {}, [], "")}
    return kept
