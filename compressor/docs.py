"""`python -m compressor.docs`: the recipe reference, written from the code it describes.

Reads the dataclasses of the recipe, every step's `Options` and every target's declaration, as they
are found by file name. `docs/recipe.md` is its output; a test holds the two together.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any

HEAD = """\
# Recipe reference

<!-- Written by `make docs` from the code; do not edit. -->

A recipe is one YAML file. Paths in it, and the modules it names as `module:function`, are looked
for beside it. An unknown key is an error that names the closest known one.

```yaml
schema: 1
model:
  source: "fashion_resnet:build"          # a torch factory; or model.onnx, model.pt2
  weights: resnet.safetensors
  inputs: {image: [batch, 1, 28, 28]}
data:
  calibration: "fashion_data:calibration"
  training: "fashion_data:training"
  evaluation: "fashion_data:evaluation"
metric: top1
keep: {float: ["head.*", {op: Softmax}], channels: ["stem.*"]}
steps:                                    # shared by all targets
  - prune_channels: {keep: {macs: 40%}}   # what stays
  - recover: {epochs: 3}
targets:
  openvino: {}                            # the target's own ladder
  onnxruntime: {}
gates: [accuracy_drop<=1%, size_reduction>=75%, speedup>=1.0]
measure: {batch: [1, 16], threads: 1, effort: default}
```
"""

GATES = """\
## Gates
One grammar in recipes, `--gate` and `bench`. A target's own gates override the recipe's of the same name.

| gate | holds when |
|---|---|
| `accuracy_drop<=1%` | the metric fell by at most that much, in its own units (upper 95 % bound) |
| `relative_drop<=1%` | the same, as a share of the original's metric |
| `agreement>=99%` | top-1 answers equal the original model's that often |
| `size_reduction>=75%` | the model file is that much smaller than the original as FP32 ONNX |
| `size<=3MB` | the model file is at most that large |
| `speedup>=1.5`, `speedup@16>=3.5` | faster than the fastest twin, at every measured batch, or at the one named (lower bound) |
| `p50<=5ms`, `p99@1<=9ms` | latency percentiles |
| `memory<=200MB` | peak resident memory |

`{gate: "size<=1MB", of: package}` judges the compressed package instead of the model file, as the default size gate does
where `prune_pattern` makes zeros, which no file is smaller by;
`{gate: "accuracy_drop<=1%", point_estimate: allow}` accepts an evaluator that gives no per-sample values.
A gate that cannot be measured here is `not_judged`: listed, never a pass.
"""  # noqa: E501 - table rows


def reference() -> str:
    """The whole of `docs/recipe.md`."""
    from compressor.recipe import KeepSpec, MeasureSpec, ModelSpec, Recipe, TargetSpec
    from compressor.steps import step_modules, target_names

    parts = [HEAD, "## Keys"]
    places = ("", "model", "keep", "targets.<name>", "measure")
    for place, kind in zip(
        places, (Recipe, ModelSpec, KeepSpec, TargetSpec, MeasureSpec), strict=True
    ):
        parts.append(f"### `{place}`" if place else "### At the top")
        parts.append("\n".join(option_table(kind)) + "\n")
    parts += [GATES, "## Targets"]
    parts += ["\n".join(_target_lines(name)) + "\n" for name in target_names()]
    parts.append("## Steps")
    parts += ["\n".join(_step_lines(name)) + "\n" for name in step_modules()]
    return "\n".join(parts).rstrip() + "\n"


def option_docs(kind: Any) -> dict[str, str]:
    """Field → its explanation, from the `Attributes:` section of a dataclass's docstring."""
    section = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")[2]
    found: dict[str, str] = {}
    names: list[str] = []
    for line in section.splitlines():
        if line and not line.startswith(" "):
            break  # the next section
        entry = re.match(r"^ {4}(\w+(?:, \w+)*): ?(.*)$", line)
        if entry:
            names = entry[1].split(", ")
            found.update(dict.fromkeys(names, entry[2].strip()))
        else:
            found.update({name: f"{found[name]} {line.strip()}".strip() for name in names})
    return found


def option_table(kind: Any) -> Iterator[str]:
    """A Markdown table of a dataclass's fields: name, type, default, meaning."""
    explained = option_docs(kind)
    yield "| key | type | default | meaning |"
    yield "|---|---|---|---|"
    for field in dataclasses.fields(kind):
        cells = (f"`{field.name}`", f"`{_type(field)}`", _default(field), explained[field.name])
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _type(field: dataclasses.Field[Any]) -> str:
    text = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", "")
    return str(text).replace("Any", "any")


def _default(field: dataclasses.Field[Any]) -> str:
    factory = field.default_factory
    value = field.default if factory is dataclasses.MISSING else factory()
    if value is None or value in ({}, [], (), ""):
        return ""
    return "see below" if dataclasses.is_dataclass(value) else f"`{_plain(value)}`"


def _plain(value: Any) -> str:
    """The value as one would write it in a recipe."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_plain(v) for v in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_plain(v)}" for k, v in value.items()) + "}"
    return str(value)


def _target_lines(name: str) -> Iterator[str]:
    from compressor.steps import load_target

    target = load_target(name)
    yield f"### `{name}`"
    yield (
        f"Runs on `{target.runtime}`, device `{target.device}`; ships {_names(target.formats)}; "
        f"channel counts round to a multiple of {target.width_multiple}."
    )
    if target.emulator:
        yield f"Where that cannot run, `{target.emulator}` gives the scores and nothing is timed."
    yield ""
    yield "| tried in this order | steps |"
    yield "|---|---|"
    for rung in target.ladder:
        yield f"| {rung.name} | {_specs(rung.steps)} |"
    if target.twin:
        yield f"| twin (the reference) | {_specs(target.twin)} |"
    if target.half_twin:
        yield f"| half twin | {_specs(target.half_twin)} |"


def _specs(steps: Iterable[Any]) -> str:
    texts = (f"{s.name}: {_plain(dict(s.options))}" if s.options else s.name for s in steps)
    return " → ".join(f"`{text}`" for text in texts)


def _step_lines(name: str) -> Iterator[str]:
    from compressor.steps import load_step

    step: Any = load_step(name)
    yield f"### `{name}`"
    yield inspect.cleandoc(step.__doc__ or "").partition("\n\n")[0].replace("\n", " ")
    yield ""
    makes = "the same" if step.PRODUCES == "same" else f"`{step.PRODUCES}`"
    line = f"Takes {_names(step.ACCEPTS)}, makes {makes}."
    line += f" Needs {_names(step.NEEDS)} data." if step.NEEDS else ""
    more = step.USES - step.NEEDS
    yield line + (f" Uses {_names(more)} data if given." if more else "")
    if dataclasses.fields(step.Options):
        yield ""
        yield from option_table(step.Options)


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


if __name__ == "__main__":
    sys.stdout.write(reference())
