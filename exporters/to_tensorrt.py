"""Step and target `tensorrt`: ONNX → a bundle from which a board builds its engine.

TensorRT's builder needs the GPU that it builds for. So the bundle holds a model that its parser
takes, checked rule by rule, with the precision typed in the file (TensorRT 11 knows no other), and
what it takes to build, check and time the engine on the board. Where this machine has a GPU and
TensorRT, the engine is built right away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exporters import _trt_bundle as bundle
from exporters._check import Error, compare, onnx_session, ort_errors, run_onnx
from exporters._drop_in import require_drop_in
from exporters._onnx_dims import fix_dims, fixed_sizes, infer_fixed_outputs
from exporters._onnx_graph import load_model, opset_of, save_model, specs
from exporters._onnx_opset import quantized_ops
from exporters._rtx_check import in_a_sentence, proxy_check
from exporters._rtx_compile import PACKAGES, wrong_capabilities
from exporters._trt_bfloat16 import in_float32
from exporters._trt_check import after_mending, check_rows, errors
from exporters._trt_engine import build_here, versions_here
from exporters._trt_layers import Row, in_words, layers
from exporters._trt_normalise import normalised
from exporters._trt_profiles import BATCH, profile, ranges, shape_flag
from exporters._trt_rules import findings
from exporters._trt_target import bundle_target
from exporters._trt_types import SMS, Needs, in_bfloat16, needs
from exporters.base import (
    Context,
    Env,
    Refusal,
    StepSpec,
    batch_names,
    example_feeds,
    installed,
    where_installed,
)
from runtimes.base import Feeds, Outputs
from runtimes.errors import BuildFailed, Unsupported
from runtimes.types import Artifact, TensorSpec

REV = 2
ACCEPTS = frozenset({"onnx", "onnxruntime"})
PRODUCES = "tensorrt"
NEEDS: frozenset[str] = frozenset()
USES = frozenset({"calibration"})
BUILD = frozenset(
    {"workspace_bytes", "optimization_level", "version_compatible", "hardware_compatible",
     "sparsity", "dla_core", "sms", "proxy"}
)  # fmt: skip

REFERENCE_SAMPLES, REFERENCE_BYTES = 4, 16 << 20
TUNED = "TensorRT chooses kernels by timing them on this GPU"
TOLERANCE = 1e-3  # of a float model, relative to an output's largest magnitude

TARGET = bundle_target("tensorrt", StepSpec("to_tensorrt"))


@dataclass(frozen=True)
class Options:
    """How the engine is built on the board, and what it must reach there.

    Attributes:
        workspace_bytes: memory that kernels may use besides weights and activations.
        optimization_level: 0 to 5; higher ones build longer for what may be faster.
        version_compatible: the engine also runs in later TensorRTs of its major version.
        hardware_compatible: it also runs on other GPUs from Ampere on (not on Jetson).
        sparsity: use kernels for weights with a 2:4 pattern, which `prune_pattern` makes.
        dla_core: build for this core of the deep-learning accelerator (Xavier, Orin), the GPU
            taking what it does not; experimental, and for fixed shapes.
        sms: compute capabilities the bundle may be built on (87 is Orin, 110 is Thor); none given:
            all that have its types (FP8 begins with 89, INT4 and BF16 with 80).
        least_db: SQNR that the engine's answers must have against ONNX Runtime's on the same file;
            none given: 50 dB in FP32, 30 in FP16 (and with INT4 weights), 25 in BF16, 20 in INT8
            and FP8.
        proxy: compute capabilities for which TensorRT-RTX, where it is installed, compiles the
            model: with TensorRT's own parser and without a GPU, but for none that a Jetson has.
            What it refuses or runs in float is told; it decides nothing. Those that lack the
            model's types are left out. Empty: not asked.
    """

    workspace_bytes: int = 1 << 30
    optimization_level: int = 3
    version_compatible: bool = False
    hardware_compatible: bool = False
    sparsity: bool = False
    dla_core: int | None = None
    sms: tuple[int, ...] | None = None
    least_db: float | None = None
    proxy: tuple[int, ...] = (86, 89)


def tools() -> dict[str, str]:
    """Versions of onnx, onnxruntime, TensorRT-RTX if it is there, and of TensorRT where an engine
    is built on this machine.
    """
    needed = installed(("onnx", "onnxruntime"), "to_tensorrt", "pip install onnxruntime")
    return {**needed, **where_installed(PACKAGES), **versions_here()}


def refusals(source: Artifact, options: Options, context: Context) -> list[Refusal]:
    """Every node that TensorRT's parser refuses or misreads, and free dimensions without a range.

    What can be mended without calibration data (see `_trt_normalise`) is not among them.
    """
    found = errors(after_mending(source, context.shapes))
    wrong = wrong_capabilities(options.proxy)
    lacking = needs(load_model(source.path)).refusals(options.sms or (), "sms")
    return [*found, *_dla(source.inputs, options, context), *lacking, *wrong]


def check_quantized(source: Artifact, context: Context) -> list[dict[str, str]]:
    """Rows of `compress check` for a model that is quantized already: every violation at once."""
    return check_rows(source, context.shapes)


def _dla(inputs: Sequence[TensorSpec], options: Options, context: Context) -> list[Refusal]:
    """The accelerator takes no dynamic shapes."""
    if options.dla_core is None:
        return []
    fixed = fixed_sizes(context.shapes)
    free = [s for s in inputs if any(isinstance(d, str) and d not in fixed for d in s.shape)]
    why = "a DLA core takes fixed shapes only"
    return [Refusal(s.name, why, f"add --shape {s.name}=1, or drop dla_core") for s in free]


def run(source: Artifact, options: Options, env: Env) -> Artifact:
    """Bring the model to TensorRT's form, check it, and write the bundle.

    Raises:
        Unsupported: what TensorRT's parser would refuse or misread, node by node.
        BuildFailed: the model computes something else than its source.
    """
    sizes, shapes = fixed_sizes(env.context.shapes), env.context.shapes
    model, notes = _brought(source, sizes)
    inputs, outputs = specs(model)
    found = findings(model, inputs, shapes)
    asked = needs(model)
    lacking = asked.refusals(options.sms or (), "sms")
    if wrong := [*errors(found), *_dla(inputs, options, env.context), *lacking]:
        raise Unsupported("TensorRT does not take the model", wrong, where="to_tensorrt")
    save_model(model, env.work / bundle.MODEL)
    error, samples = _checked(source, inputs, env)
    dims = {**source.facts.get("dims", {}), **env.context.dims}
    rows = layers(model, dims, source.facts.get("requested", []))
    profiles = [profile(spec, shapes, inputs) for spec in inputs]
    rtx = _proxy(env.work / bundle.MODEL, asked, options, profiles, rows)
    content = bundle.Content(
        inputs=profiles,
        outputs=[spec.to_json() for spec in outputs],
        layers=rows,
        checks=[*(one.to_json() for one in found), *_of_proxy(rtx)],
        opset=opset_of(model),
        builder=_builder(options),
        sms=options.sms or [sm for sm in SMS if sm >= (asked.sm or 0)],
        least_sm=asked.sm,
        least_db=options.least_db,
        samples=samples,
        of_calibration="calibration" in env.data,
        rtx=rtx,
    )
    bundle.write_bundle(env.work, content)
    if versions_here():
        notes += _built(env)
    facts = _facts(source, content, error, [*notes, *_said(content, options, inputs, shapes)])
    facts["model_files"] = bundle.model_files(env.work)
    if (env.work / bundle.EMULATED).is_file():
        facts["emulated"] = bundle.EMULATED
    if bounds := ranges(inputs, shapes):
        facts["bounds"] = {name: [low, high] for name, (low, _, high) in bounds.items()}
    made = Artifact.write(env.work, "tensorrt", bundle.MODEL, inputs, outputs, facts)
    return require_drop_in(source, made, sizes)


def _built(env: Env) -> list[str]:
    """Build the engine beside the model; what it came to."""
    env.progress(0.5, "TensorRT builds the engine")
    told = build_here(env.work, env.scratch)
    device, engine, counts = told["device"], told["engine"], told["layers"]
    back = counts.get("fell_back", [])
    shown = f": {', '.join(back[:4])}" if back else ""
    size, took = f"{engine['bytes']:,} bytes", f"{engine['build_seconds']:.0f} s"
    return [
        f"engine for {device['name']} (SM {device['sm']}): {size}, built in {took}",
        f"{len(back)} layers that were to run in INT8 run in float there{shown}",
    ]


def _brought(source: Artifact, sizes: Mapping[str, int]) -> tuple[Any, list[str]]:
    model = load_model(source.path)
    fix_dims(model, sizes)
    if sizes:
        infer_fixed_outputs(model)
    return normalised(model)


def _proxy(
    path: Path, asked: Needs, options: Options, profiles: Sequence[Row], rows: Sequence[Row]
) -> Row | None:
    """What TensorRT-RTX makes of the file; None where it is not to be asked."""
    lacking = asked.lack(options.proxy)
    sms = [sm for sm in options.proxy if sm not in lacking]
    if not sms:
        return None
    macs = {row["name"]: int(row["macs"]) for row in rows}
    found = proxy_check(path, sms, profiles, macs)
    if lacking:
        without = ", ".join(f"SM{sm}" for sm in lacking)
        found["text"] += f"; {without} left out, which has no {asked.what}"
    return found


def _of_proxy(rtx: Row | None) -> list[dict[str, str]]:
    """Its objections as warnings: another compiler's, for other GPUs."""
    return [{"rule": "RTX", "level": "warning", **one} for one in (rtx or {}).get("problems", [])]


def _builder(options: Options) -> dict[str, Any]:
    return {
        "workspace_bytes": options.workspace_bytes,
        "optimization_level": options.optimization_level,
        "version_compatible": options.version_compatible,
        "hardware_compatible": options.hardware_compatible,
        "sparsity": options.sparsity,
        "dla_core": options.dla_core,
        "detailed": True,
    }


def _checked(source: Artifact, inputs: Sequence[TensorSpec], env: Env) -> tuple[Error, int]:
    """Write the reference, and hold it against the source; the error, and the number of samples."""
    feeds = _reference_feeds(inputs, env)
    path = _runnable(env.work / bundle.MODEL, env.work / bundle.EMULATED)
    try:
        got = _answers(path, feeds, env.context.threads)
    except ort_errors() as error:
        raise BuildFailed(
            f"ONNX Runtime, which gives the reference, cannot run the model: {error}",
            where="to_tensorrt",
        ) from error
    bundle.write_reference(env.work / bundle.REFERENCE, feeds, got)
    integers = quantized_ops(load_model(source.path))
    before = _runnable(source.path, env.scratch / bundle.EMULATED)
    want = _answers(before, feeds, env.context.threads)
    tolerance = float("inf") if integers else TOLERANCE  # grids may have changed: told, not judged
    return compare(want, got, tolerance, "to_tensorrt"), len(next(iter(feeds.values())))


def _runnable(path: Path, emulated: Path) -> Path:
    """The file, or what stands in for it where ONNX Runtime's CPU lacks its type."""
    model = load_model(path)
    if not in_bfloat16(model):
        return path
    save_model(in_float32(model), emulated)
    return emulated


def _answers(path: Path, feeds: Feeds, threads: int) -> Outputs:
    """What the file says, pair by pair: integer kernels of a CPU round in other places."""
    return run_onnx(onnx_session(path, threads, optimize=False), feeds)


def _reference_feeds(inputs: Sequence[TensorSpec], env: Env) -> dict[str, Any]:
    """A few calibration samples, or seeded examples, within the sizes the engine is built for."""
    bounds = ranges(inputs, env.context.shapes)
    data = env.data.get("calibration")
    if data is None:
        typical = {name: best for name, (_, best, _) in bounds.items()}
        return dict(example_feeds(inputs, typical, env.context.seed))
    one = data.feeds([0])
    size = max(1, sum(np.asarray(array).nbytes for array in one.values()))
    wanted = 1 if data.ragged else max(1, min(REFERENCE_SAMPLES, REFERENCE_BYTES // size))
    batch = next((bounds[name] for name in batch_names(inputs)), None)
    fixed = {s.shape[0] for s in inputs if s.shape and isinstance(s.shape[0], int)}
    if batch is None and fixed:
        wanted = int(min(fixed))
    if batch is not None:
        wanted = max(batch[0], min(wanted, batch[2]))
    count = min(wanted, len(data))
    feeds = data.feeds(list(range(count)))
    return {spec.name: np.asarray(feeds[spec.name], spec.dtype) for spec in inputs}


def _said(
    content: bundle.Content,
    options: Options,
    inputs: Sequence[TensorSpec],
    shapes: Mapping[str, Any],
) -> list[str]:
    notes = [in_words(content.layers)]
    if content.rtx is not None:
        notes.append(in_a_sentence(content.rtx))
    named = {name for dims in shapes.values() for name in dims}
    for spec in inputs:
        free = [d for d in batch_names(inputs) if d in spec.shape and d not in named]
        if free:
            low, best, high = BATCH
            flag = shape_flag(spec, shapes)
            notes.append(f"engine built for {free[0]} {low} to {high}, best at {best}: {flag}")
            break
    if options.dla_core is not None:
        notes.append(
            f"DLA core {options.dla_core} is experimental: what it does not take goes to the GPU, "
            "and engine.json on the board says which layers those were"
        )
    warned = [f"{one['rule']} {one['node']}: {one['text']}" for one in content.checks]
    return [*notes, *warned[:8]]


def _facts(
    source: Artifact, content: bundle.Content, error: Error, notes: Sequence[str]
) -> dict[str, Any]:
    before = source.facts.get("notes", [])
    return {
        **source.facts,
        "opset": content.opset,
        "precision": content.precision,
        "check": error.to_json(),
        "notes": [*before, *notes],
        **({"not_reproducible": TUNED} if versions_here() else {}),
    }
