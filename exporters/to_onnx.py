"""Step `to_onnx`: a torch module or exported program → ONNX with the source's names and dimensions.

torch's dynamo exporter does the work. Recurrent modules, and whatever it fails on, go through the
TorchScript-based one. The result is checked against torch on several inputs and sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from exporters._check import Error, compare, onnx_session, ort_errors, run_onnx, sizes_to_try
from exporters._drop_in import require_drop_in
from exporters._onnx_cleanup import drop_identities
from exporters._onnx_dims import set_specs
from exporters._onnx_graph import OPSET, count_parameters, normalise, opset_of, save_model, specs
from exporters.base import Context, Env, Refusal, example_feeds, installed
from runtimes.errors import BuildFailed
from runtimes.types import Artifact

REV = 1
ACCEPTS = frozenset({"module", "exported"})
PRODUCES = "onnx"
NEEDS: frozenset[str] = frozenset()
USES: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Options:
    """How to export.

    Attributes:
        opset: the ONNX operator set; weights can be stored in 4 bits from 21 on.
        exporter: `dynamo`, `torchscript`, or `auto`: the second for recurrent modules and
            wherever the first fails.
        tolerance: largest difference from torch, relative to an output's largest magnitude.
    """

    opset: int = OPSET
    exporter: Literal["auto", "dynamo", "torchscript"] = "auto"
    tolerance: float = 1e-4


def tools() -> dict[str, str]:
    """Versions of what writes the file; `MissingTool` naming the extra."""
    return installed(
        ("torch", "onnxscript", "onnx"), "to_onnx", "pip install edge-compressor[torch]"
    )


def refusals(source: Artifact, options: Options, context: Context) -> list[Refusal]:
    """None before the export itself: only a dry run can tell (`compress plan --deep`)."""
    del source, options, context
    return []


def run(source: Artifact, options: Options, env: Env) -> Artifact:
    """Export, normalise, check against torch, and write `model.onnx`.

    Raises `BuildFailed` where every exporter that may be used fails or computes something else.
    """
    model = _open(source, env)
    work = _Work(model, source, options, _example_sizes(source, env.context), env.context.seed)
    env.progress(0.1, "exporting and checking against torch")
    made = _first_that_works(work)
    save_model(made.proto, env.work / "model.onnx")
    found = specs(made.proto)
    artifact = Artifact.write(env.work, "onnx", "model.onnx", *found, _facts(source, made))
    return require_drop_in(source, artifact)


@dataclass(frozen=True)
class _Work:
    model: Any
    source: Artifact
    options: Options
    dims: Mapping[str, int]
    seed: int


@dataclass(frozen=True)
class _Made:
    proto: Any
    exporter: str
    error: Error
    notes: list[str]


def _open(source: Artifact, env: Env) -> Any:
    if source.format == "module":
        return env.load_module(source)
    import torch

    return torch.export.load(str(source.path))


def _example_sizes(source: Artifact, context: Context) -> dict[str, int]:
    """Sizes for tracing: at least 2, because the exporters take a size of 1 for a constant."""
    known = {**source.facts.get("dims", {}), **context.dims}
    return {str(name): max(2, int(size)) for name, size in known.items()}


def _first_that_works(work: _Work) -> _Made:
    """The first exporter's result that passes the check; a note says why an earlier one did not."""
    from exporters._torch_export import export_errors, is_recurrent

    order = ["dynamo", "torchscript"]
    if work.options.exporter != "auto":
        order = [work.options.exporter]
    elif is_recurrent(work.model):
        order.reverse()
    reasons: list[str] = []
    for name in order:
        try:
            proto = _export(work, name)
            return _Made(proto, name, _check(work, proto), _notes(order, name, reasons))
        except BuildFailed as error:
            reasons.append(f"{name}: {error.text()}")
        except export_errors() as error:
            reasons.append(f"{name}: {summary(error)}")
    raise BuildFailed(
        "no torch exporter gives this model; " + "\n  ".join(reasons), where="to_onnx"
    )


def _notes(order: list[str], name: str, reasons: list[str]) -> list[str]:
    if not reasons:
        return []
    why = " ".join(reasons[0].split())
    return [
        f"torch's {order[0]} exporter did not give this model, the {name} one did ({why[:300]})"
    ]


def _export(work: _Work, name: str) -> Any:
    from exporters import _torch_export as torch_export

    source = work.source
    feeds = example_feeds(source.inputs, work.dims, work.seed)
    export = {"dynamo": torch_export.export_dynamo, "torchscript": torch_export.export_torchscript}
    made = export[name](work.model, source.inputs, source.outputs, feeds, work.options.opset)
    _require_free_dims(made, source)
    return _finish(made, source)


def summary(error: Exception) -> str:
    """The one line of a torch error that says what happened."""
    text = str(error)
    text = text.partition("## Exception summary")[2] or text
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:400] if lines else type(error).__name__


def last_lines(error: Exception | str, count: int) -> str:
    """The last lines of a message that say something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " | ".join(lines[-count:])[:600] or type(error).__name__


def _require_free_dims(made: Any, source: Artifact) -> None:
    for value, spec in zip(made.graph.input, source.inputs, strict=True):
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if isinstance(spec.shape[axis], str) and dim.dim_value:
                raise BuildFailed(
                    f"it made axis {axis} of {spec.name} a constant {dim.dim_value}",
                    where="to_onnx",
                )


def _finish(exported: Any, source: Artifact) -> Any:
    from exporters._torch_names import name_nodes_after_modules, name_weights_after_modules

    wrapped = source.format == "module"
    name_nodes_after_modules(exported, wrapped)
    proto, _ = normalise(exported)
    drop_identities(proto.graph)
    name_weights_after_modules(proto, wrapped)
    set_specs(proto, source.inputs, source.outputs)
    del proto.metadata_props[:]
    return proto


def _check(work: _Work, proto: Any) -> Error:
    """The largest error over three seeds at the example sizes and one at every other size."""
    from exporters._torch_call import runner

    source, seed = work.source, work.seed
    reference = runner(work.model, source.inputs)
    session = _session(proto)
    tries = [(sizes, seed + 10) for sizes in sizes_to_try(source.inputs, work.dims)]
    tries += [(tries[0][0], seed + 11), (tries[0][0], seed + 12)]
    error = Error()
    for number, (sizes, one_seed) in enumerate(tries):
        feeds = example_feeds(source.inputs, sizes, one_seed)
        try:
            found = reference(feeds)
        except (RuntimeError, ValueError, IndexError, AssertionError):
            if number:
                continue  # torch itself refuses this size (a table of positions, say)
            raise
        names = [spec.name for spec in source.outputs]
        want = {n: _array(t) for n, (_, t) in zip(names, found, strict=True)}
        where = "to_onnx, " + (", ".join(f"{k}={v}" for k, v in sizes.items()) or "fixed shapes")
        error = error.worst(
            compare(want, _run(session, feeds, where), work.options.tolerance, where)
        )
    return error


def _array(tensor: Any) -> Any:
    import torch

    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _session(proto: Any) -> Any:
    try:
        return onnx_session(proto.SerializeToString())
    except ort_errors() as error:
        raise BuildFailed(
            f"ONNX Runtime cannot load the exported model: {last_lines(error, 2)}", where="to_onnx"
        ) from error


def _run(session: Any, feeds: Any, where: str) -> Any:
    try:
        return run_onnx(session, feeds)
    except ort_errors() as error:
        raise BuildFailed(
            f"the exported model fails where torch runs: {last_lines(error, 2)}",
            where=where,
            fix="write a number for a dimension under `inputs:` that the export made a constant",
        ) from error


def _facts(source: Artifact, made: _Made) -> dict[str, Any]:
    wanted = ("dims", "removed", "factorized", "pattern", "macs", "state")
    kept = {k: source.facts[k] for k in wanted if k in source.facts}
    return {
        **kept,
        "opset": opset_of(made.proto),
        "parameters": count_parameters(made.proto),
        "exporter": made.exporter,
        "check": made.error.to_json(),
        "metadata": {},
        "notes": made.notes,
    }
