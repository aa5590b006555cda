"""Layers of an OpenVINO IR that stay in float32 where the CPU computes in bfloat16 or float16.

The IR attribute `precise` (`ov::disable_fp16_compression`) does it: OpenVINO 2026.4's CPU plugin
then runs convolutions, norms, recurrent layers, reductions and element-wise layers in float32, and
ignores it on matrix products with constant weights, which are therefore left out here. It also has
faults there (float32 convolutions before a bfloat16 pooling gave outputs without rows), so a mark
stays only where the outputs were seen to come closer.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compressor.quantization.calibration import batches
from compressor.quantization.half_keep import ROUNDS, decibels
from exporters._openvino_ir import write_xml
from exporters.base import Env
from runtimes.base import Feeds
from runtimes.errors import UsageError
from runtimes.types import Artifact

_HONOURED = frozenset(
    {"Convolution", "GroupConvolution", "ConvolutionBackpropData", "MVN", "GRUSequence",
     "LSTMSequence", "RNNSequence", "Add", "Multiply", "Subtract", "Divide", "Power", "Sqrt", "Exp",
     "Log", "ReduceMean", "ReduceSum", "ReduceL2", "ReduceMax", "SoftMax", "LogSoftmax"}
)  # fmt: skip


def mark(path: Path, names: set[str]) -> None:
    """Let the layers `names` of the IR at `path` compute in float32, in place."""
    root = ET.parse(path).getroot()  # noqa: S314 - our own file
    for layer in root.iterfind("layers/layer"):
        if layer.get("name") not in names or layer.find("rt_info") is not None:
            continue
        places = [i for i, part in enumerate(layer) if part.tag in {"input", "output"}]
        info = ET.Element("rt_info")
        ET.SubElement(info, "attribute", {"name": "precise", "version": "0"})
        layer.insert(places[0] if places else len(layer), info)
    write_xml(root, path)


def keep_precise(path: Path, source: Artifact, options: Any, env: Env) -> list[str]:
    """Mark what loses too much at the device's precision; returns notes.

    Raises `UsageError` where this device computes in float32 anyway, or no data is given.
    """
    data = env.data.get("calibration")
    if data is None:
        why = "which layers lose in half is seen on calibration data, and none is given"
        raise UsageError(why, where="cast_half", fix="add data.calibration")
    feeds = list(batches(data, source.inputs, options.samples, source.facts.get("bounds")))
    precision = _default_precision(path, env)
    if precision == "f32":
        raise UsageError(
            "this device computes in float32: there is nothing to keep in it",
            where="cast_half",
            fix="leave compute out, or run where the CPU has bfloat16",
        )
    chosen: set[str] = set()
    tried: set[str] = set()
    first = reached = _sqnr(path, feeds, precision, env)
    for _ in range(ROUNDS):
        if reached >= options.least_db:
            break
        more = _noisiest(path, feeds, precision, tried, env)
        if not more:
            break
        tried |= more
        before = path.read_bytes()
        mark(path, more)
        now = _sqnr(path, feeds, precision, env)
        if now > reached:
            chosen, reached = chosen | more, now
        else:
            path.write_bytes(before)
    told = f"outputs have {first:.0f} dB over their error in {precision}, the device's default"
    if not chosen:
        return [told]
    names = sorted(chosen)
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    notes = [f"{told}; {reached:.0f} dB with {len(names)} layers kept in float32: {shown}"]
    if reached < options.least_db:
        notes.append(
            f"fewer than {options.least_db:g} dB: OpenVINO runs matrix products in {precision} "
            "whatever the IR says; `execution: f32` runs everything in float32"
        )
    return notes


def _compiled(model: Any, precision: str, env: Env) -> Any:
    import openvino as ov

    config: dict[str, Any] = {"INFERENCE_NUM_THREADS": env.context.threads}
    if precision:
        config["INFERENCE_PRECISION_HINT"] = precision
    return ov.Core().compile_model(model, "CPU", config)


def _read(path: Path) -> Any:
    import openvino as ov

    return ov.Core().read_model(str(path))


def _default_precision(path: Path, env: Env) -> str:
    compiled = _compiled(_read(path), "", env)
    return str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())


def _run(model: Any, feeds: Sequence[Feeds], precision: str, env: Env) -> list[list[Any]]:
    compiled = _compiled(model, precision, env)
    made = []
    for given in feeds:
        results = compiled(dict(given))
        made.append([np.array(results[port]) for port in compiled.outputs])
    return made


def _noise(want: list[list[Any]], got: list[list[Any]], place: int) -> float:
    if any(a[place].shape != b[place].shape for a, b in zip(want, got, strict=True)):
        return float("inf")
    error = sum(
        float(((b[place].astype(np.float64) - a[place]) ** 2).sum())
        for a, b in zip(want, got, strict=True)
    )
    power = sum(float((a[place].astype(np.float64) ** 2).sum()) for a in want)
    return error / max(power, 1e-30)


def _sqnr(path: Path, feeds: Sequence[Feeds], precision: str, env: Env) -> float:
    """Of all float outputs, the worst one's."""
    want = _run(_read(path), feeds, "f32", env)
    got = _run(_read(path), feeds, precision, env)
    floats = [i for i, value in enumerate(want[0]) if value.dtype.kind == "f"]
    return decibels(max((_noise(want, got, i) for i in floats), default=0.0))


def _noisiest(
    path: Path, feeds: Sequence[Feeds], precision: str, tried: set[str], env: Env
) -> set[str]:
    """A fifth of the layers that can be kept: those that add most noise to what they read."""
    models = [_read(path), _read(path)]
    shown: dict[str, int] = {}
    for model in models:
        shown = {}
        for name, ports in _candidates(model).items():
            if not any(
                r.get_node().get_type_name() == "Result" for r in ports[0].get_target_inputs()
            ):
                shown[name] = len(model.outputs)
                model.add_outputs([ports[0]])
    want = _run(models[0], feeds[:2], "f32", env)
    got = _run(models[1], feeds[:2], precision, env)
    noise = {name: _noise(want, got, place) for name, place in shown.items()}
    added = _added(models[0], noise)
    worst = sorted((n for n in added if n not in tried), key=lambda n: (-added[n], n))
    return set(worst[: max(1, len(added) // 5)])


def _candidates(model: Any) -> dict[str, list[Any]]:
    found = {}
    for op in model.get_ordered_ops():
        makers = (i.get_source_output().get_node().get_type_name() for i in op.inputs())
        floats = op.get_output_element_type(0).get_type_name() == "f32"
        if op.get_type_name() in _HONOURED and floats and {*makers} - {"Constant"}:
            found[op.get_friendly_name()] = op.outputs()
    return found


def _added(model: Any, noise: Mapping[str, float]) -> dict[str, float]:
    found = {}
    for op in model.get_ordered_ops():
        name = op.get_friendly_name()
        if name in noise:
            makers = (i.get_source_output().get_node().get_friendly_name() for i in op.inputs())
            before = max((noise.get(maker, 0.0) for maker in makers), default=0.0)
            found[name] = noise[name] if np.isinf(before) else noise[name] - before
    return found
