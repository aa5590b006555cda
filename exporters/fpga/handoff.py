"""The hand-off: a QONNX file that was executed and agrees, and FINN's folding beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporters.base import Env, where_installed
from exporters.fpga import qonnx
from exporters.fpga.finn import folding
from exporters.fpga.hls_report import FORMULA
from exporters.fpga.project import figure, handed_out, vectors
from exporters.fpga.tools import run_python
from runtimes.errors import BadArtifact, Unsupported
from runtimes.fixed import reference
from runtimes.fixed.spec import Spec, read_spec
from runtimes.types import Artifact

if TYPE_CHECKING:
    import onnx

MODEL, FOLDING = "model.qonnx.onnx", "folding.json"

# onnx may write a newer version of its format than ONNX Runtime reads, by which qonnx executes.
_QONNX = """
import sys
import numpy as np
import onnx
onnx.IR_VERSION = onnx.helper.IR_VERSION = min(onnx.IR_VERSION, 13)
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.transformation.infer_shapes import InferShapes
source, given, taken = sys.argv[1:]
feeds = dict(np.load(given))
model = ModelWrapper(source)
for value in [*model.graph.input, *model.graph.output]:
    value.type.tensor_type.shape.dim[0].dim_value = len(next(iter(feeds.values())))
np.savez(taken, **execute_onnx(model.transform(InferShapes()), feeds))
"""


def evaluate(model: onnx.ModelProto, names: list[str], feeds: Mapping[str, Any]) -> dict[str, Any]:
    """Outputs by ONNX Runtime, every Quant node written out as QONNX specifies it."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 3  # it warns of the constants of Quant nodes
    data = _plain(model).SerializeToString()
    session = onnxruntime.InferenceSession(data, settings, providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def _plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """Divided, clipped, rounded, multiplied: zero points are 0."""
    import onnx
    from onnx import helper, numpy_helper

    made = onnx.ModelProto()
    made.CopyFrom(model)
    values = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    del made.graph.node[:]
    for node in model.graph.node:
        if node.op_type != "Quant":
            made.graph.node.append(node)
            continue
        said = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        bits, signed = int(values[node.input[3]]), said["signed"]
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        name, (value, scale) = node.output[0], node.input[:2]
        ends = [f"{name}.low", f"{name}.high"]
        made.graph.initializer.extend(
            numpy_helper.from_array(np.float32(end), one)
            for end, one in zip((low + said["narrow"] * signed, high), ends, strict=True)
        )
        rounding = "Floor" if said["rounding_mode"] == b"FLOOR" else "Round"
        made.graph.node.extend([
            helper.make_node("Div", [value, scale], [f"{name}.over"]),
            helper.make_node("Clip", [f"{name}.over", *ends], [f"{name}.held"]),
            helper.make_node(rounding, [f"{name}.held"], [f"{name}.whole"]),
            helper.make_node("Mul", [f"{name}.whole", scale], [name]),
        ])  # fmt: skip
    return made


def build(source: Artifact, options: Any, env: Env) -> Artifact:
    """The artifact with file, folding and cycles; every evaluation equal to the reference."""
    import onnx

    spec = read_spec(source.root)
    if found := qonnx.refused(spec):
        raise Unsupported("QONNX cannot say it exactly", found, where="to_qonnx")
    given = vectors(spec, options.vectors, env)
    made = qonnx.model(spec)
    onnx.save(made, env.work / MODEL)
    feeds = {i.name: reference.dequantize(given[i.name], i.format) for i in spec.inputs}
    expected = reference.outputs(spec, reference.integers(spec, given))
    names = [out.name for out in spec.outputs]
    count = len(next(iter(given.values())))
    checks = {"numpy": count}
    checks["onnxruntime"] = _same(evaluate(made, names, feeds), expected, "onnxruntime")
    tools = where_installed(("onnx", "onnxruntime", "qonnx"))
    if "qonnx" in tools:
        env.progress(0.3, "qonnx executes the file")
        checks["qonnx"] = _same(execute(env, feeds, options), expected, "qonnx")
    return handed_out(source, spec, _told(spec, options, env.work, checks, tools), env)


def execute(env: Env, feeds: Mapping[str, Any], options: Any) -> dict[str, Any]:
    """Outputs by qonnx' executor, in a process of its own."""
    given, taken = env.scratch / "given.npz", env.scratch / "taken.npz"
    np.savez(given, **feeds)
    log = env.checkpoint / "logs" / "qonnx.log"
    arguments = [str(env.work / MODEL), str(given), str(taken)]
    run_python(_QONNX, arguments, log, 60.0 * options.limit_minutes, env.scratch)
    with np.load(taken) as file:
        return dict(file)


def _same(found: Mapping[str, Any], expected: Mapping[str, Any], engine: str) -> int:
    for name, want in expected.items():
        got = np.asarray(found[name]).reshape(want.shape)
        if not np.array_equal(got, want):
            wrong = int((got != want).reshape(len(want), -1).any(1).sum())
            raise BadArtifact(
                f"the QONNX file gives other numbers in {engine} than the reference",
                where="to_qonnx", expected="no difference",
                got=f"{name}: {wrong} of {len(want)} vectors differ",
                fix="this is a bug: please report it with fixed.json and weights.npz",
            )  # fmt: skip
    return len(next(iter(expected.values())))


def _told(
    spec: Spec, options: Any, folder: Path, checks: dict[str, int], tools: dict[str, str]
) -> dict[str, Any]:
    configuration, rows = folding(spec, options.cycles)
    text = json.dumps(configuration, indent=1)
    (folder / FOLDING).write_text(text + "\n", encoding="utf-8")
    slowest = max((row["cycles"] for row in rows), default=1)
    total = sum(row["cycles"] for row in rows)
    tool = "FINN's formulas, folding.json"
    figures = {
        "interval_cycles": figure(slowest, FORMULA, tool),
        "latency_cycles": figure(total, FORMULA, tool),
    }
    ran = ", ".join(f"{name} {count}" for name, count in checks.items())
    notes = [f"0 mismatches of the QONNX file (vectors: {ran})"]
    if "qonnx" not in checks:
        notes.append("qonnx is not installed: ONNX Runtime alone executed the file")
    if slowest > options.cycles:
        notes.append(f"no folding keeps {options.cycles} cycles: the slowest takes {slowest}")
    notes.append("FINN and vendors' tools were not run: cycles are formulas")
    return {"layers": rows, "figures": figures, "tools": tools, "checks": checks, "notes": notes}
