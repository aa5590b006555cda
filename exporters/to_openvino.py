"""Step and target `openvino`: ONNX → OpenVINO IR, the same bytes every time."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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
from exporters._memory import release
from exporters._onnx_cleanup import clean
from exporters._onnx_dims import fix_dims, fixed_sizes, infer_fixed_outputs
from exporters._onnx_graph import load_model, normalise, save_model, specs
from exporters._onnx_session import save_for_engine
from exporters._onnx_support import openvino_lines, unsupported_by_openvino
from exporters._openvino_ir import marked, read_metadata, read_onnx, save_ir
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

REV = 5
ACCEPTS = frozenset({"onnx", "onnxruntime"})
PRODUCES = "openvino"
NEEDS: frozenset[str] = frozenset()
USES: frozenset[str] = frozenset()

_TWIN = StepSpec("to_openvino")
_INT8 = StepSpec("quantize_static", optional=True)
_FOUR = StepSpec("reconstruct_weights", optional=True)
_ONNX_INT8 = (StepSpec("to_onnxruntime"), StepSpec("quantize_static"))
_ONNX = StepSpec("to_openvino", {"container": "onnx"})
_MARK = "onnx:"

TARGET = Target(
    name="openvino",
    runtime="openvino",
    formats=frozenset({"openvino"}),
    twin=(StepSpec("to_openvino", {"execution": "f32"}),),
    half_twin=(_TWIN,),
    half_isa=frozenset({"avx512_bf16", "amx_bf16", "avx512_fp16", "bf16", "fp16"}),
    ladder=(
        Rung("int8-w4", (_TWIN, _INT8, _FOUR)),
        Rung("int8-w4-onnx", (*_ONNX_INT8, _FOUR, _ONNX)),
        Rung("mixed", (_TWIN, StepSpec("quantize_mixed"))),
        Rung("int8-w6", (_TWIN, _INT8, StepSpec("reconstruct_weights", {"share": 0.5}))),
        Rung("int8", (_TWIN, _INT8, StepSpec("quantize_weights", {"bits": 8}, optional=True))),
        Rung("w8", (_TWIN, StepSpec("quantize_weights", {"bits": 8}))),
        Rung("half", (StepSpec("to_openvino", {"precision": "f16"}),)),
    ),
    scheme=_schemes.OPENVINO,
)


@dataclass(frozen=True)
class Options:
    """How the IR is written.

    Attributes:
        precision: of the stored weights, `f32` or `f16` (the CPU still computes in its default).
        execution: `f32` runs it in FP32 through our runtime; `default` leaves that to the device,
            which is bf16 or f16 where a CPU computes in them.
        container: `ir`, or `onnx`: OpenVINO reads the ONNX file itself, whose graph takes far
            fewer bytes than an IR's. For models quantized before this step (an IR cannot be turned
            back).
        tolerance: largest difference from the source, relative to an output's largest magnitude;
            None means 1e-3 for f32 and 3e-2 for f16.
    """

    precision: Literal["f32", "f16"] = "f32"
    execution: Literal["default", "f32"] = "default"
    container: Literal["ir", "onnx"] = "ir"
    tolerance: float | None = None


def scheme_for(flags: Collection[str]) -> QuantScheme:
    """The scheme for a CPU with these feature flags (as /proc/cpuinfo names them)."""
    return _schemes.OPENVINO_X86 if _schemes.saturates(flags) else _schemes.OPENVINO


def tools() -> dict[str, str]:
    """OpenVINO's version; `MissingTool` naming the extra."""
    return installed(("openvino", "onnx"), "to_openvino", "pip install edge-compressor[openvino]")


def refusals(source: Artifact, options: Options, context: Context) -> list[Refusal]:
    """Nodes that OpenVINO cannot convert; nothing where it is not installed."""
    from importlib.util import find_spec

    del options, context
    if source.format != "onnx" or find_spec("openvino") is None:
        return []
    return unsupported_by_openvino(source)


def run(source: Artifact, options: Options, env: Env) -> Artifact:
    """Convert, set the bounds that `shape` names, write `model.xml` and `.bin`, check them.

    Raises `BuildFailed` where OpenVINO cannot convert or compile the model, or computes something
    else than the source.
    """
    sizes = fixed_sizes(env.context.shapes)
    proto = _cleaned(source, sizes)
    inputs, outputs = specs(proto)
    if options.container == "onnx":
        path = env.work / "model.onnx"
        save_model(proto, path)
        del proto
    else:
        path = env.work / "model.xml"
        given = env.scratch / "marked.onnx"
        _save_marked(proto, given)
        del proto  # OpenVINO holds the weights next
        release()
        _write_ir(given, inputs, path, source, options, env)
    error, notes = _check(source, path, inputs, options, env)
    facts = _facts(source, path, error, notes, options)
    if ranges := _ranges(env.context.shapes):
        facts["bounds"] = {name: list(ends) for name, ends in ranges.items()}
    made = Artifact.write(env.work, "openvino", path.name, inputs, outputs, facts)
    return require_drop_in(source, made, sizes)


def _cleaned(source: Artifact, sizes: Mapping[str, int]) -> Any:
    proto = load_model(source.path)
    fix_dims(proto, sizes)
    if sizes:
        infer_fixed_outputs(proto)
    clean(proto)
    return normalise(proto, copy=False)[0]


def _before(source: Artifact) -> list[str]:
    """What earlier steps said of a model that was quantized before it came here."""
    return list(source.facts.get("notes", [])) if source.format == "onnxruntime" else []


def _save_marked(proto: Any, path: Path) -> None:
    """Write `proto`, which is changed, with the names of its nodes marked as the source's."""
    del proto.metadata_props[:]
    marked(proto, _MARK)
    save_for_engine(proto, path)


def _write_ir(
    given: Path,
    inputs: tuple[TensorSpec, ...],
    path: Path,
    source: Artifact,
    options: Options,
    env: Env,
) -> None:
    model = _convert(given)
    _bound(model, inputs, env.context.shapes)
    metadata = dict(source.facts.get("metadata") or {})
    half = options.precision == "f16"
    save_ir(model, path, given=(), prefix=_MARK, half=half, metadata=metadata)


def _convert(path: Path) -> Any:
    try:
        return read_onnx(path)
    except RuntimeError as error:
        text = openvino_lines(str(error)).replace(_MARK, "")
        raise BuildFailed(
            f"OpenVINO cannot convert the model: {text}", where="to_openvino"
        ) from error
    finally:
        path.unlink()


def _bound(
    model: Any, inputs: tuple[TensorSpec, ...], shapes: Mapping[str, Mapping[str, Any]]
) -> None:
    """Give free dimensions the range `shape` allows, so that a device can plan for it."""
    import openvino

    ranges = _ranges(shapes)
    if not any(dim in ranges for spec in inputs for dim in spec.shape):
        return
    wanted = {}
    for spec in inputs:
        dims = [
            openvino.Dimension(*ranges[d]) if d in ranges
            else openvino.Dimension(d if isinstance(d, int) else -1)
            for d in spec.shape
        ]  # fmt: skip
        wanted[spec.name] = openvino.PartialShape(dims)
    try:
        model.reshape(wanted)
    except RuntimeError as error:
        raise BuildFailed(
            f"the model does not take these shapes: {openvino_lines(str(error))}",
            where="to_openvino, shape",
        ) from error


def _ranges(shapes: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[int, int]]:
    """Free dimension → the sizes it may have, where they are more than one."""
    return {
        name: (bounds[0], bounds[-1])
        for dims in shapes.values()
        for name, bounds in dims.items()
        if not isinstance(bounds, int) and bounds[0] != bounds[-1]
    }


def _check(
    source: Artifact, path: Path, inputs: tuple[TensorSpec, ...], options: Options, env: Env
) -> tuple[Error, list[str]]:
    """The largest difference from the source in ONNX Runtime, at sizes that it accepts."""
    tolerance = options.tolerance or (3e-2 if options.precision == "f16" else 1e-3)
    if source.facts.get("quantized") or source.facts.get("quantization"):
        tolerance = float("inf")  # rounding differs by a step between engines: told, not judged
    try:
        tried, notes = _wanted(source, inputs, env)
    except ort_errors() as error:
        tried, notes = [], [f"not checked: ONNX Runtime cannot load the source ({error})"]
    release()
    compiled, worst = compile_for_check(path, env.context.threads), Error()
    for sizes, feeds, want in tried:
        where = "to_openvino, " + ", ".join(f"{k}={v}" for k, v in sizes.items())
        worst = worst.worst(compare(want, _run(compiled, feeds, where), tolerance, where))
    return worst, notes


def _wanted(
    source: Artifact, inputs: tuple[TensorSpec, ...], env: Env
) -> tuple[list[tuple[dict[str, int], Feeds, Outputs]], list[str]]:
    """What the source gives at the sizes it takes; its engine is gone before the next one loads."""
    session = onnx_session(source.path, env.context.threads)
    dims = {**source.facts.get("dims", {}), **env.context.dims}
    dims = accepted_sizes(session, inputs, _allowed(dims, env.context.shapes))
    notes = ["not checked: the source takes none of the example shapes"]
    tried: list[tuple[dict[str, int], Feeds, Outputs]] = []
    for number, sizes in enumerate(sizes_to_try(inputs, dims)):
        feeds = example_feeds(inputs, sizes, env.context.seed + number)
        if not _within(sizes, env.context.shapes):
            continue
        try:
            want = run_onnx(session, feeds)
        except ort_errors():
            continue  # the model itself does not take these sizes
        tried.append((sizes, feeds, want))
        notes = declared_otherwise(source.outputs, want)
    return tried, notes


def _allowed(dims: Mapping[str, int], shapes: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    typical = {
        name: bounds[len(bounds) // 2]
        for given in shapes.values()
        for name, bounds in given.items()
        if not isinstance(bounds, int)
    }
    return {**dims, **typical}


def _within(sizes: Mapping[str, int], shapes: Mapping[str, Mapping[str, Any]]) -> bool:
    return all(
        bounds[0] <= sizes[name] <= bounds[-1]
        for given in shapes.values()
        for name, bounds in given.items()
        if name in sizes and not isinstance(bounds, int)
    )


def compile_for_check(path: Path, threads: int) -> Any:
    """The IR compiled in float32 on the CPU; `BuildFailed` with OpenVINO's last lines."""
    import openvino

    config = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    core = openvino.Core()
    try:
        return core.compile_model(core.read_model(str(path)), "CPU", config)
    except RuntimeError as error:
        raise BuildFailed(
            f"OpenVINO cannot compile the model: {openvino_lines(str(error))}", where="to_openvino"
        ) from error


def _run(compiled: Any, feeds: Mapping[str, Any], where: str) -> dict[str, Any]:
    try:
        results = compiled(dict(feeds))
    except RuntimeError as error:
        raise BuildFailed(
            f"OpenVINO fails where the source runs: {openvino_lines(str(error))}", where=where
        ) from error
    return {name: results[port] for port in compiled.outputs for name in port.get_names()}


def _facts(
    source: Artifact, path: Path, error: Error, notes: list[str], options: Options
) -> dict[str, Any]:
    return {
        **source.facts,
        "container": options.container,
        "precision": options.precision,
        "execution": options.execution,
        "check": error.to_json(),
        "metadata": source.facts.get("metadata") or {}
        if options.container == "onnx"
        else read_metadata(path),
        "notes": [*_before(source), *notes],
    }
