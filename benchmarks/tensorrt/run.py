"""Models of the zoo through TensorRT-RTX's compiler: quantized by us, by NNCF, by ONNX Runtime.

    PYTHONPATH=.venv/rtx python -m benchmarks.tensorrt.run [NAME…] --zoo out/zoo

Ours is the INT8 candidate of the target `tensorrt`, step by step; the others are what NNCF's and
ONNX Runtime's quantizers write by default. Each goes through TensorRT-RTX for SM 86 and 89 as it
is, in a process of its own, without a GPU; then the layer table of the engine says how many of the
layers with weights multiply in INT8. Our model's score is ONNX Runtime's on the evaluation data:
engines on a GPU were not run, and nothing here says anything of speed.

Writes results.json and table.md beside this file; models there that are not asked for stay.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.children import run_child  # noqa: E402
from benchmarks.quantization.cases import Case, zoo  # noqa: E402
from benchmarks.stamp import stamp  # noqa: E402
from benchmarks.tensorrt.tables import table  # noqa: E402
from compressor.env import StepEnv  # noqa: E402
from compressor.steps import load_step, load_target, parse_options  # noqa: E402
from compressor.validate import compare  # noqa: E402
from exporters._onnx_macs import inferred, macs_of, shapes_of  # noqa: E402
from exporters._rtx_check import FOLDED, Row, counts, reread, rows  # noqa: E402
from exporters._rtx_compile import compile_plan, missing  # noqa: E402
from exporters._trt_rules import findings  # noqa: E402
from exporters.base import Context, StepSpec, batch_names  # noqa: E402
from runtimes.types import Artifact  # noqa: E402

HERE = Path(__file__).parent
PEERS_FILE = ROOT / "benchmarks" / "quantization" / "peers.py"
PEERS = {"nncf": "nncf-onnx", "onnxruntime": "ort-static"}
SMS = (86, 89)
LIMIT_S = 900.0
RECURRENT = {"LSTM", "GRU", "RNN"}
CALIBRATION = 300  # samples, as our own quantizer takes
VERSIONS = ("nncf", "numpy", "onnx", "onnxruntime", "tensorrt-rtx-cu13-libs")


def bundle_of(case: Case, root: Path) -> Artifact:
    """What the INT8 rung of the target makes of the model."""
    found = load_target("tensorrt")
    dims = case.judge.dims
    context = Context(target="tensorrt", scheme=found.scheme, dims=dims, shapes=_shapes(case))
    made = case.source
    for spec in found.ladder[0].steps:
        made = _step(spec, made, case, context, root)
    return made


def _shapes(case: Case) -> dict[str, dict[str, tuple[int, int, int]]]:
    """Free dimensions but the batch: from one to the data's size, which is also the usual one."""
    inputs, dims = case.source.inputs, case.judge.dims
    free = {s.name: [d for d in s.shape if isinstance(d, str)] for s in inputs}
    batch = set(batch_names(inputs))
    return {
        name: {d: (1, dims[d], dims[d]) for d in found if d not in batch}
        for name, found in free.items()
        if set(found) - batch
    }


def _step(spec: StepSpec, given: Artifact, case: Case, context: Context, root: Path) -> Artifact:
    step, options = load_step(spec.name), parse_options(spec, spec.name)
    if spec.optional and step.refusals(given, options, context):
        return given
    env = StepEnv(
        *(Path(tempfile.mkdtemp(dir=root)) for _ in range(3)),
        context=context,
        data={"calibration": case.opened.opened.data["calibration"]},
        reference=case.source,
        factory=None,
        log=logging.getLogger("benchmark"),
        on_progress=lambda *_: None,
        on_trial=_never,
        on_built=_never,
    )
    return step.run(given, options, env)


def _never(*_: Any) -> Any:
    raise RuntimeError("no step of this list tries anything out")


def compiled(path: Path, case: Case, inputs: list[dict[str, Any]]) -> dict[str, Any]:
    """How the compiler takes a file, and what its engine multiplies in."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "model.rtx.plan"
        outcome = compile_plan(path, plan, SMS, inputs, limit_s=LIMIT_S)
    model = onnx.load(path)
    shapes = shapes_of(inferred(model, case.judge.dims).graph)
    macs = {node.name: macs_of(node, shapes) or 0 for node in model.graph.node}
    every = rows(model, outcome.layers, macs)
    found = [row for row in every if row.got != FOLDED]
    made = {
        "layers": len(found),
        "folded": len(every) - len(found),
        "asked_for_int8": sum(row.wanted == "int8" for row in found),
        "int8": sum(row.got == "int8" for row in found),
        "unsigned_pairs": len(reread(model)),
        "refused": outcome.why_not,
    }
    if outcome.compiled:
        made |= {
            "int8_mac_share": counts(found)["int8_mac_share"],
            "seconds": outcome.seconds,
            "plan_bytes": outcome.plan_bytes,
            "not_int8": _left(found),
        }
    return made


def _left(found: list[Row]) -> list[dict[str, Any]]:
    whole = sum(row.macs for row in found) or 1
    return [
        {"node": row.node, "op": row.op, "got": row.got, "wanted": row.wanted,
         "mac_share": round(row.macs / whole, 4)}
        for row in found
        if row.got != "int8"
    ]  # fmt: skip


def ours(case: Case, root: Path) -> dict[str, Any]:
    """Our bundle: checked, compiled, scored."""
    import onnx

    bundle = bundle_of(case, root)
    told = json.loads((bundle.root / "trt.json").read_text())
    found = compiled(bundle.path, case, told["inputs"])
    reasons = {row["name"]: row["reason"] for row in told["layers"]}
    for left in found.get("not_int8", []):
        left["reason"] = reasons.get(left["node"], "")
    checks = findings(onnx.load(bundle.path), bundle.inputs, _shapes(case))
    base = case.base  # the judge compares with it
    score = case.judge.score(bundle, "onnxruntime", "CPU", case.name)
    assert case.judge.metric is not None
    assert score is not None
    drop = compare(case.judge.metric, base, score)
    return {
        **found,
        "precision": told["precision"],
        "recurrent_mac_share": _recurrent(told["layers"]),
        "rules": {level: sum(c.level == level for c in checks) for level in ("error", "warning")},
        "warnings": sorted({f"{c.rule}: {c.text}" for c in checks if c.level == "warning"}),
        "score": score.value,
        "relative_drop": drop.relative_drop,
        "sqnr_db": drop.sqnr_db,
        "bytes": bundle.size_bytes,
        "inputs": told["inputs"],
    }


def _recurrent(layers: list[dict[str, Any]]) -> float:
    """The share of all multiplications that is inside LSTM, GRU and RNN nodes."""
    whole = sum(row["macs"] for row in layers) or 1
    return round(sum(row["macs"] for row in layers if row["op"] in RECURRENT) / whole, 4)


def peer(case: Case, name: str, inputs: list[dict[str, Any]], root: Path) -> dict[str, Any]:
    """What a peer's default makes of it."""
    folder, out = root / name, root / name / "out"
    out.mkdir(parents=True)
    model, feeds = case.lay_out(folder, CALIBRATION)
    command = [sys.executable, PEERS_FILE, PEERS[name], model, feeds, out]
    ended = run_child(command, limit_s=LIMIT_S)
    if ended.code != 0:
        return {"failed": ended.why}
    return compiled(out / "model.onnx", case, inputs)


def measured(case: Case) -> dict[str, Any]:
    """Ours and both peers' on one model."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        base = case.base.value
        found = {"kind": case.card["kind"], "metric": case.card["metric"], "float": base}
        found["float_bytes"] = case.size_bytes
        found["ours"] = mine = ours(case, root)
        for other in PEERS:
            found[other] = peer(case, other, mine["inputs"], root)
    return found


def main() -> None:
    """Measure the named models, or all that are there; `--table` only writes the table again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--zoo", type=Path, default=ROOT / "out" / "zoo")
    parser.add_argument("--cache", type=Path, default=ROOT / "out" / "tensorrt")
    parser.add_argument("--table", action="store_true", help="write table.md from results.json")
    args = parser.parse_args()
    path = HERE / "results.json"
    kept = json.loads(path.read_text()) if path.is_file() else {"models": {}}
    if not args.table:
        if why := missing():
            print(f"nothing measured: {why}")
            return
        for case in zoo(args.zoo, args.names, args.cache, "quick"):
            print(case.name, flush=True)
            found = measured(case)
            kept["models"][case.name] = {**found, **stamp()}
            kept["versions"] = {name: metadata.version(name) for name in VERSIONS}
            path.write_text(json.dumps(kept, indent=1) + "\n")
            print(json.dumps({k: found["ours"].get(k) for k in ("int8", "layers", "int8_mac_share",
                              "relative_drop", "seconds")}), flush=True)  # fmt: skip
    (HERE / "table.md").write_text(table(kept))


if __name__ == "__main__":
    main()
