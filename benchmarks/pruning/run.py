"""Pruned and recovered models beside torch-pruning's defaults, at the same minutes of recovery.

    python -m examples.zoo resnet --out out/zoo
    python benchmarks/pruning/run.py --zoo out/zoo [--models resnet] [--minutes 5]

Per model and point, every way of pruning goes through `compress` with the same recovery
(distillation, `--minutes`), and is scored on the evaluation data and timed beside the untouched
model on ONNX Runtime and OpenVINO in the same run, batch 1, one thread. torch-pruning and other
criteria get the MACs that pruning to the latency arrived at, the knapsack after HALP the same share
of the time, so that rows of one point compare. `--kinds` are modules of other kinds, each pruned
once as `KINDS` says, towards 40 % fewer bytes or 30 % less time at 1 % relative loss. `--graphs`
are pruned as ONNX files, to `--macs` of their MACs, without training or labels. Writes results.json
and table.md, one entry a model and point.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import compressor  # noqa: E402
from benchmarks.modules import graph_recipe_of, recipe_of  # noqa: E402
from benchmarks.stamp import stamp  # noqa: E402
from compressor.result import RunRecord, TargetResult  # noqa: E402
from compressor.steps import step_modules  # noqa: E402
from examples.zoo import load  # noqa: E402

Row = dict[str, Any]
POINTS = (0.5, 0.25)  # of the latency
WAYS = "torch-pruning,HALP-like,macs,hessian,random"
ENGINES = ("onnxruntime", "openvino")
KINDS: dict[str, list[Row]] = {
    "efficientnet": [
        {"prune_channels": {"keep": {"params": 0.58}}},
        {"recover": {"batch": 32, "lr": 1e-4}},  # 256 photos are all there is to train on
    ],
    "vit": [{"prune_channels": {"keep": {"params": 0.55}}}],
    "bert": [{"prune_channels": {"keep": {"params": 0.55}}}],
    "gpt": [
        {"factorize_layers": {"keep": {"params": 0.58}}},
        {"recover": {"batch": 32, "aim": "scores"}},
    ],
    "lstm": [{"prune_channels": {"keep": {"params": 0.55}}}],
    "unet": [{"prune_channels": {"keep": {"params": 0.55}}}],
    "yolo": [{"prune_channels": {"keep": {"params": 0.57}}}],
    "autoencoder": [{"prune_channels": {"keep": {"params": 0.57}}}],
    "gan": [{"prune_channels": {"keep": {"params": 0.57}}}],
    "gcn": [{"prune_channels": {"keep": {"params": 0.55}}}],
}
GATES = ("relative_drop<=100%", "speedup>=0.1", "size_reduction>=0%")
PRUNING = ("prune_", "factorize_")
TIMES = "ONNX Runtime | OpenVINO | pruning | all"  # the last columns of every table
FEWER_BYTES, LESS_TIME, LOSS = 0.6, 0.7, 0.01


def main() -> None:
    """Measure, merge, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--zoo", type=Path, default=ROOT / "out" / "zoo")
    parser.add_argument("--models", default="resnet", help="pruned as torch modules")
    parser.add_argument("--kinds", default="", help=f"pruned once: {', '.join(KINDS)}")
    parser.add_argument("--graphs", default="", help="pruned as ONNX files")
    parser.add_argument("--macs", type=float, default=0.73, help="of a graph, that stay")
    parser.add_argument("--points", default=",".join(map(str, POINTS)))
    parser.add_argument("--minutes", type=float, default=5.0, help="of recovery")
    parser.add_argument("--ways", default=WAYS, help="besides pruning to the latency")
    parser.add_argument("--effort", choices=("quick", "default", "certify"), default="default")
    parser.add_argument("--json", type=Path, default=HERE / "results.json")
    args = parser.parse_args()
    args.json.parent.mkdir(parents=True, exist_ok=True)
    for name in ("prune_torch_pruning", "prune_halp"):
        step_modules()[name] = f"benchmarks.pruning.{name}"
    results: Row = json.loads(args.json.read_text()) if args.json.is_file() else {}
    points = [float(point) for point in args.points.split(",")]
    models = [(n, p) for n in filter(None, args.models.split(",")) for p in points]
    jobs = {f"{n} at {p:g} of its latency": (one_point, n, p) for n, p in models}
    kinds = filter(None, args.kinds.split(","))
    jobs |= {f"{n}": (one_kind, n, 0.0) for n in kinds}
    graphs = filter(None, args.graphs.split(","))
    jobs |= {f"{n}.onnx at {args.macs:g} of its MACs": (one_graph, n, args.macs) for n in graphs}
    for title, (measure, name, amount) in jobs.items():
        results[title] = measure(name, amount, args)
        args.json.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        args.json.with_name("table.md").write_text(table(results))


def one_point(name: str, point: float, args: argparse.Namespace) -> Row:
    """Every way of pruning at one share of the latency."""
    with tempfile.TemporaryDirectory() as store:
        first = {"prune_channels": {"keep": {"latency": point}, "on": "onnxruntime"}}
        rows = {"latency": measured(name, [first], args, Path(store))}
        share = rows["latency"]["macs"] / rows["latency"]["macs_before"]
        keep = {"keep": {"macs": share}}
        others = {
            "torch-pruning": {"prune_torch_pruning": {"macs": share}},
            "HALP-like": {"prune_halp": {"latency": point}},
            "macs": {"prune_channels": keep},
            "hessian": {"prune_channels": {**keep, "saliency": "hessian"}},
            "random": {"prune_channels": {**keep, "saliency": "random", "scope": "uniform"}},
        }
        for way in filter(None, args.ways.split(",")):
            rows[way] = measured(name, [others[way]], args, Path(store))
    return _entry(rows, args.minutes)


def one_kind(name: str, _: float, args: argparse.Namespace) -> Row:
    """One model pruned as `KINDS` says, and what it reaches of the goal."""
    with tempfile.TemporaryDirectory() as store:
        row = measured(name, KINDS[name], args, Path(store))
    row["steps"] = KINDS[name]
    row["reaches"] = {engine: _reaches(row[engine], row["bytes_before"]) for engine in ENGINES}
    return _entry({"pruned": row}, args.minutes) | {"kind": load(name).ABOUT.kind}


def _reaches(engine: Row, before: int) -> dict[str, bool]:
    if "failed" in engine:
        return dict.fromkeys(("loss", "bytes", "latency"), False)
    faster = _over_untouched(engine)
    return {
        "loss": _loss(engine) <= LOSS,
        "bytes": engine["bytes"] <= FEWER_BYTES * before,
        "latency": bool(faster) and faster[1] * LESS_TIME >= 1,
    }


def _over_untouched(engine: Row) -> list[float] | None:
    """Speed-up over the untouched model in the same precision: half where the engine's own is."""
    found: list[float] | None = engine.get("over_half_twin") or engine.get("over_twin")
    return found


def one_graph(name: str, macs: float, args: argparse.Namespace) -> Row:
    """An ONNX file, repaired and not, and by the weights alone."""
    keep = {"keep": {"macs": macs}}
    ways = {
        "reconstruction": keep,
        "without repair": {**keep, "repair": False},
        "l2": {**keep, "saliency": "l2"},
    }
    given = graph_recipe_of(name, args.zoo, ("calibration", "selection", "evaluation"))
    rows = {}
    for way, options in ways.items():
        recipe = given | {"steps": [{"prune_channels": options}]}
        with tempfile.TemporaryDirectory() as store:
            rows[way] = judged(f"{name}.onnx {options}", recipe, args, Path(store))
    return _entry(rows, 0.0)


def _entry(rows: Row, minutes: float) -> Row:
    return {"rows": rows, "recovery_minutes": minutes, **stamp()}


def measured(name: str, steps: list[Row], args: argparse.Namespace, store: Path) -> Row:
    """One way: pruned, recovered, built for both engines, scored and timed."""
    recipe = recipe_of(name, args.zoo, ("training", "calibration", "selection", "evaluation"))
    if not hasattr(load(name), "training"):  # weights from elsewhere: what there is, unlabelled
        recipe["data"]["training"] = recipe["data"]["calibration"]
    *before, last = steps if "recover" in steps[-1] else [*steps, {"recover": {}}]
    recipe["steps"] = [*before, {"recover": {"minutes": args.minutes, **last["recover"]}}]
    return judged(f"{name} {steps}", recipe, args, store)


def judged(title: str, recipe: Row, args: argparse.Namespace, store: Path) -> Row:
    """What a recipe's shared steps make of its model, on both engines."""
    recipe = recipe | {
        "targets": {engine: {"steps": [f"to_{engine}"]} for engine in ENGINES},
        "gates": list(GATES),
        "measure": {"effort": args.effort},
    }
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as out:
        record = compressor.compress(None, recipe, out=out, store=store).record
    row = _row(record) | {"seconds": round(time.monotonic() - began, 1)}
    print(f"{title}: {json.dumps(row)}", flush=True)
    return row


def _row(record: RunRecord) -> Row:
    pruning = next(s for s in record.steps if s.step.startswith(PRUNING))
    reference = record.reference
    found: Row = {
        "macs_before": reference.macs, "parameters_before": reference.parameters, "macs": None,
        "bytes_before": reference.size_bytes, "notes": pruning.notes,
        "seconds_of": {s.step: round(s.seconds, 1) for s in record.steps if s.target is None},
    }  # fmt: skip
    for target in record.targets:
        found[target.name] = _engine(target)
        built = next(c for c in target.candidates if c.role == "candidate")
        found |= {"macs": built.macs, "parameters": built.parameters}
    return found


def _engine(target: TargetResult) -> Row:
    built = next(c for c in target.candidates if c.role == "candidate")
    if built.failure is not None or built.comparison is None or not built.timings:
        return {"failed": built.failure.message if built.failure else target.reason}
    timing = built.timings[0]
    half = timing.ratios.get("half-twin")
    return {
        "score": built.score.value, "drop": built.comparison.drop,
        "drop_interval": built.comparison.interval, "bytes": built.size_bytes,
        "relative_drop": built.comparison.relative_drop, "sqnr_db": built.comparison.sqnr_db,
        "p50_ms": timing.p50_ms, "over_twin": timing.ratios.get("twin"), "over_half_twin": half,
    }  # fmt: skip


def table(results: Row) -> str:
    """`table.md`."""
    lines = [
        "# Pruning", "",
        "Written by `python benchmarks/pruning/run.py`, from results.json. The drop is in the",
        "metric's own units, on the evaluation data; bytes are the ONNX file's. Speed-ups are over",
        "the untouched model in the same precision and run: on OpenVINO both compute in bfloat16",
        "where the processor does. The last two columns are minutes: of pruning (and repairing)",
        "itself, and of everything with recovery, builds, scores and times on both engines.", "",
    ]  # fmt: skip
    kinds = {title: entry for title, entry in results.items() if "kind" in entry}
    if kinds:
        lines += _kinds(kinds)
    for title, entry in results.items():
        if title in kinds:
            continue
        where = f"{entry['date']}, commit {entry['commit']}, {entry['host']['cpu']}"
        lines += [
            f"## {title}", "", f"{entry['recovery_minutes']:g} minutes of recovery; {where}.", "",
            f"| way | MACs | parameters | score | drop | bytes | {TIMES} |",
            "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
        ]  # fmt: skip
        lines += [_line(way, row) for way, row in entry["rows"].items()] + [""]
    return "\n".join(lines)


def _kinds(entries: Row) -> list[str]:
    """A row for each kind of model; in bold what reaches its goal at 1 % relative loss."""
    lines = [
        "## Models of other kinds", "",
        "Pruned once and recovered without labels, in float32. In bold: 40 % fewer bytes, or 30 %",
        "less time, at a relative loss of at most 1 % (without a score: noise over signal, in",
        "power). Recovery in minutes too.", "",
        f"| model | kind | steps | recovery | loss | bytes | {TIMES} | processor |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|--:|---|",
    ]  # fmt: skip
    for name, entry in entries.items():
        row = entry["rows"]["pruned"]
        first, reaches = row[ENGINES[0]], row["reaches"]
        told = "; ".join(
            f"`{step}: {json.dumps(o)}`" for s in row["steps"] for step, o in s.items()
        )
        cells = [name, entry["kind"], told, f"{entry['recovery_minutes']:g}"]
        if "failed" in first:
            lines.append("| " + " | ".join([*cells, first["failed"][:80], *6 * [""]]) + " |")
            continue
        kept = reaches[ENGINES[0]]
        cells.append(
            f"{_loss(first):.2%}" + ("" if first["relative_drop"] is not None else " noise")
        )
        cells.append(_bold(f"−{1 - first['bytes'] / row['bytes_before']:.1%}", kept, "bytes"))
        for engine in ENGINES:
            cells.append(_bold(_speed(row[engine]), reaches[engine], "latency"))
        lines.append("| " + " | ".join([*cells, *_minutes(row), entry["host"]["cpu"]]) + " |")
    return [*lines, ""]


def _loss(engine: Row) -> float:
    """Relative; of a model without labels, the share of noise in its outputs' power."""
    if engine["relative_drop"] is not None:
        return float(engine["relative_drop"])
    return float(10 ** (-engine["sqnr_db"] / 10))


def _speed(engine: Row) -> str:
    faster = _over_untouched(engine)
    return f"{faster[0]:.2f} ({faster[1]:.2f}–{faster[2]:.2f})" if faster else ""


def _bold(text: str, reaches: dict[str, bool], goal: str) -> str:
    return f"**{text}**" if reaches["loss"] and reaches[goal] else text


def _line(way: str, row: Row) -> str:
    cells = [way, f"{row['macs'] / row['macs_before']:.1%}"]
    cells.append(f"{row['parameters'] / row['parameters_before']:.1%}")
    first = row[ENGINES[0]]
    if "failed" in first:
        cells += [first["failed"][:60], "", ""]
    else:
        cells += [f"{first['score']:.4f}", f"{first['drop']:.4f}", f"{first['bytes']:,}"]
    cells += [_speed(row[engine]) for engine in ENGINES]
    return "| " + " | ".join([*cells, *_minutes(row)]) + " |"


def _minutes(row: Row) -> list[str]:
    """Of pruning itself, and in all."""
    pruning = [s for step, s in row["seconds_of"].items() if step.startswith(PRUNING)]
    return [f"{sum(pruning) / 60:.1f}", f"{row['seconds'] / 60:.1f}"]


if __name__ == "__main__":
    main()
