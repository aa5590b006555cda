"""Step and target `onnxruntime`: the source's own graph, cleaned of what slows an engine down.

The file is ours, not one that ONNX Runtime serialised (that one writes folded float weights back
and fits one machine). Batch norms are folded, dead and idle nodes dropped, nothing else changes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporters import _schemes
from exporters._check import (
    Error,
    accepted_sizes,
    compare,
    declared_otherwise,
    onnx_session,
    ort_errors,
    run_onnx,
    sizes_to_try,
)
from exporters._drop_in import require_drop_in
from exporters._onnx_cleanup import clean
from exporters._onnx_dims import fix_dims, fixed_sizes, infer_fixed_outputs
from exporters._onnx_graph import load_model, normalise, opset_of, save_model, specs
from exporters._onnx_support import unsupported_by_onnxruntime
from exporters.base import (
    Context,
    Env,
    QuantScheme,
    Refusal,
    Rung,
    StepSpec,
    Target,
    example_feeds,
    installed,
)
from runtimes.base import Feeds, Outputs
from runtimes.errors import BuildFailed
from runtimes.types import Artifact, TensorSpec

REV = 2
ACCEPTS = frozenset({"onnx"})
PRODUCES = "onnxruntime"
NEEDS: frozenset[str] = frozenset()
USES: frozenset[str] = frozenset()

_TWIN = StepSpec("to_onnxruntime")
_FOUR = StepSpec("reconstruct_weights", optional=True)
_EIGHT = StepSpec("quantize_weights", {"bits": 8}, optional=True)
_SIX = StepSpec("reconstruct_weights", {"share": 0.5})
_FUSED = StepSpec("fuse_products", optional=True)


def _int8(store: int) -> tuple[StepSpec, ...]:
    """Static INT8, and dynamic for layers that have no static kernel (LSTMs above all)."""
    dynamic = StepSpec("quantize_dynamic", {"store": store}, optional=True)
    return (StepSpec("quantize_static", optional=True), dynamic)


TARGET = Target(
    name="onnxruntime",
    runtime="onnxruntime",
    formats=frozenset({"onnxruntime"}),
    twin=(_TWIN,),
    ladder=(
        Rung("int8-w4", (_TWIN, *_int8(4), _FOUR, _FUSED)),
        Rung("dynamic-w4", (_TWIN, StepSpec("quantize_dynamic", {"store": 4}), _FOUR)),
        Rung("mixed", (_TWIN, StepSpec("quantize_mixed"), _FUSED)),
        Rung("int8-w6", (_TWIN, *_int8(8), _SIX, _FUSED)),
        Rung("int8", (_TWIN, *_int8(8), _EIGHT, _FUSED)),
        Rung("w8", (_TWIN, StepSpec("quantize_weights", {"bits": 8}))),
        Rung("half", (_TWIN, StepSpec("cast_half"))),
    ),
    scheme=_schemes.ONNXRUNTIME,
)


@dataclass(frozen=True)
class Options:
    """How far the result may be from the source.

    Attributes:
        tolerance: largest difference, relative to an output's largest magnitude.
    """

    tolerance: float = 1e-4


def scheme_for(flags: Collection[str]) -> QuantScheme:
    """The scheme for a CPU with these feature flags (as /proc/cpuinfo names them).

    A 32-bit ARM (`neon`) gets u8 activations: its kernels flip the sign of s8 ones.
    """
    if "asimd" in flags:
        return _schemes.ONNXRUNTIME_ARM
    return _schemes.ONNXRUNTIME_X86 if _schemes.saturates(flags) else _schemes.ONNXRUNTIME


def tools() -> dict[str, str]:
    """Versions of onnx and onnxruntime."""
    return installed(("onnx", "onnxruntime"), "to_onnxruntime", "pip install onnxruntime")


def refusals(source: Artifact, options: Options, context: Context) -> list[Refusal]:
    """Nodes that ONNX Runtime's CPU provider does not have."""
    del options, context
    return unsupported_by_onnxruntime(source) if source.format == "onnx" else []


def run(source: Artifact, options: Options, env: Env) -> Artifact:
    """Clean the graph, fix the dimensions `shape` names, check it, write `model.onnx`.

    Raises `BuildFailed` where ONNX Runtime refuses the model or its results change.
    """
    sizes = fixed_sizes(env.context.shapes)
    model = load_model(source.path)
    fix_dims(model, sizes)
    if sizes:
        infer_fixed_outputs(model)
    counts = clean(model)
    model, _ = normalise(model, copy=False)
    save_model(model, env.work / "model.onnx")
    found, opset = specs(model), opset_of(model)
    del model  # two engines load it next
    error, notes = _check(source, env.work / "model.onnx", found[0], options, env)
    notes = [*(f"{number} {what}" for what, number in counts.items()), *notes]
    facts = {
        **source.facts,
        "opset": opset,
        "check": error.to_json(),
        "notes": notes,
    }
    made = Artifact.write(env.work, "onnxruntime", "model.onnx", *found, facts)
    return require_drop_in(source, made, sizes)


def _check(
    source: Artifact, path: Path, inputs: Sequence[TensorSpec], options: Options, env: Env
) -> tuple[Error, list[str]]:
    """The largest difference from the source, at the example sizes and at others it accepts."""
    dims = {**source.facts.get("dims", {}), **env.context.dims}
    tried, notes = _wanted(source, inputs, dims, env)
    after = _loaded(path, env.context.threads)
    worst = Error()
    for sizes, feeds, want in tried:
        where = "to_onnxruntime, " + ", ".join(f"{k}={v}" for k, v in sizes.items())
        worst = worst.worst(compare(want, run_onnx(after, feeds), options.tolerance, where))
    return worst, notes


def _loaded(path: Path, threads: int) -> Any:
    try:
        return onnx_session(path, threads)
    except ort_errors() as error:
        raise BuildFailed(
            f"ONNX Runtime cannot load the model: {error}", where="to_onnxruntime"
        ) from error


def _wanted(
    source: Artifact, inputs: Sequence[TensorSpec], dims: Mapping[str, int], env: Env
) -> tuple[list[tuple[dict[str, int], Feeds, Outputs]], list[str]]:
    """What the source gives at the sizes it takes; its engine is gone before the next one loads."""
    before = _loaded(source.path, env.context.threads)
    notes = ["not checked: the source takes none of the example shapes"]
    tried: list[tuple[dict[str, int], Feeds, Outputs]] = []
    for number, sizes in enumerate(sizes_to_try(inputs, accepted_sizes(before, inputs, dims))):
        feeds = example_feeds(inputs, sizes, env.context.seed + number)
        try:
            want = run_onnx(before, feeds)
        except ort_errors():
            continue  # the model itself does not take these sizes
        notes = declared_otherwise(source.outputs, want)
        tried.append((sizes, feeds, want))
    return tried, notes
