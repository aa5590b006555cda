"""Full runs of large shapes: bytes, legality, speed, minutes and peak memory; and calibration.

    python benchmarks/scale/run.py [--models resnet50,bert_base,gpt2_small] [--effort quick]

ResNet-50, BERT-base and GPT-2-small with random weights (see models.py), whose answers mean
nothing: the gates are size and speed, and of accuracy only that noise stays below the signal. The
second run, under `--minutes`, has the tool's own gates of accuracy, which send such models into the
search for mixed precision: the longest way there is. Each `compress run` is a process of its own
whose tree is watched; so is calibration on 1,000 samples by our step and by ONNX Runtime's entropy
calibrator, whose address space is bounded. Writes results.json and table.md beside this file,
merged per model.

The goals: 30 minutes a run, a peak of 3 times the model and 600 MB, `--minutes` kept within 10 %.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.children import Ended, run_child  # noqa: E402
from benchmarks.stamp import stamp  # noqa: E402
from compressor.record import load_record  # noqa: E402
from compressor.result import Candidate, TargetResult  # noqa: E402
from runtimes.base import load_runtime  # noqa: E402
from runtimes.types import Artifact  # noqa: E402

MODELS = ("resnet50", "bert_base", "gpt2_small")
GATES = ("size_reduction>=75%", "speedup>=0.97")
ANY_ACCURACY = ("agreement>=0%", "sqnr>=0dB")
CALIBRATION = 1000
GOAL_MINUTES = 30.0
MEMORY_TIMES, MEMORY_MORE = 3, 600_000_000
MINUTES_TOLERANCE = 1.1
PEER_MEMORY = 12 << 30
Row = dict[str, Any]


def goals(model_bytes: int, run: Row) -> Row:
    """Which goals a run keeps."""
    allowed = MEMORY_TIMES * model_bytes + MEMORY_MORE
    return {
        "minutes": run["seconds"] <= 60 * GOAL_MINUTES,
        "memory": run["process_bytes"] <= allowed,
        "memory_of_tree": run["tree_bytes"] <= allowed,
        "allowed_bytes": allowed,
        "size": all(t["reduction"] >= 0.75 for t in run["targets"].values()),
        "legal": all(t["runs"] for t in run["targets"].values()),
        "not_slower": all((t["speedup"] or [0, 0])[1] >= 0.97 for t in run["targets"].values()),
    }


def make(name: str, folder: Path) -> Row:
    """Export the model and its samples, in a process of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    about = folder / "about.json"
    if not about.is_file():
        command = [sys.executable, HERE / "models.py", name, folder, str(CALIBRATION)]
        ended = run_child(command, limit_s=900)
        if ended.code != 0:
            raise SystemExit(f"{name}: {ended.why}\n{ended.log}")
        size = (folder / "model.onnx").stat().st_size
        parameters = int(ended.out.strip().splitlines()[-1])
        about.write_text(json.dumps({"parameters": parameters, "bytes": size}))
    found: Row = json.loads(about.read_text())
    return found


def compress(folder: Path, args: argparse.Namespace, minutes: float | None = None) -> Row:
    """`compress run` for both engines."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    command: list[str | Path] = [
        sys.executable, "-m", "compressor", "run", folder / "model.onnx", "--calibration",
        folder / "calibration.npz", "--effort", args.effort, "-o", out,
    ]  # fmt: skip
    command += [part for engine in ("onnxruntime", "openvino") for part in ("--target", engine)]
    gates = GATES if minutes else (*GATES, *ANY_ACCURACY)
    command += [part for gate in gates for part in ("--gate", gate)]
    command += ["--minutes", str(minutes)] if minutes else []
    with tempfile.TemporaryDirectory(dir=folder) as store:
        ended = run_child(command, limit_s=60 * args.limit_minutes, env={"COMPRESS_HOME": store})
    row = _memory(ended) | {"exit_code": ended.code, "steps": {}, "targets": {}}
    if not (out / "run.json").is_file():
        return row | {"failed": ended.why}
    record = load_record(out)
    for step in record.steps:
        name = f"{step.target or ''} {step.rung or ''} {step.step}".strip()
        row["steps"][name] = round(row["steps"].get(name, 0.0) + step.seconds, 1)
    row["targets"] = {t.name: _target(out, t, record.reference.size_bytes) for t in record.targets}
    return row


def _memory(ended: Ended) -> Row:
    return {
        "seconds": round(ended.seconds, 1),
        "tree_bytes": ended.tree_bytes,
        "process_bytes": ended.process_bytes,
        "anonymous_bytes": ended.anonymous_bytes,
    }


def _target(out: Path, target: TargetResult, reference: int) -> Row:
    if not target.shipped:
        return {
            "shipped": "",
            "reason": target.reason,
            "reduction": 0,
            "runs": False,
            "speedup": None,
        }
    shipped = target.candidate(target.shipped)
    return {
        "shipped": target.shipped,
        "state": target.state,
        "reason": target.reason,
        "bytes": shipped.size_bytes,
        "reduction": round(1 - shipped.size_bytes / reference, 4),
        "runs": _runs(Artifact.load(out / target.name), target.runtime),
        "speedup": _speedup(shipped),
        "p50_ms": shipped.timings[0].p50_ms if shipped.timings else None,
        "candidates": [_tried(c, reference) for c in target.candidates],
    }


def _speedup(candidate: Candidate) -> list[float] | None:
    timing = candidate.timings[0] if candidate.timings else None
    if timing is None or timing.speedup is None or timing.speedup_interval is None:
        return None
    return [round(x, 3) for x in (timing.speedup, *timing.speedup_interval)]


def _tried(candidate: Candidate, reference: int) -> Row:
    stopped = [f"{c.gate}: {c.text}" for c in candidate.checks if c.state != "pass"]
    failure = candidate.failure.message.splitlines()[0] if candidate.failure else ""
    return {
        "name": candidate.name,
        "reduction": round(1 - candidate.size_bytes / reference, 4),
        "speedup": _speedup(candidate),
        "sqnr_db": candidate.comparison.sqnr_db if candidate.comparison else None,
        "stopped_by": [*([failure] if failure else []), *stopped],
    }


def _runs(artifact: Artifact, runtime: str) -> bool:
    """Whether what ships loads and computes finite outputs, at a batch it was not timed at."""
    import numpy as np

    from exporters.base import example_feeds

    feeds = example_feeds(artifact.inputs, {"batch": 2, "length": 17}, 0)
    with load_runtime(runtime).open_session(artifact, threads=1) as session:
        return all(np.isfinite(array).all() for array in session.run(feeds).values())


def calibration(folder: Path) -> Row:
    """Peak memory and seconds of calibrating on 1,000 samples, each in a process of its own."""
    found = {}
    for who in ("minmax", "ours", "entropy"):
        with tempfile.TemporaryDirectory(dir=folder) as out:
            data = [folder / "model.onnx", folder / "calibration.npz", str(CALIBRATION), out]
            bound = PEER_MEMORY if who == "entropy" else None
            ended = run_child(
                [sys.executable, HERE / "calibrate.py", who, *data],
                limit_s=3600,
                memory_bytes=bound,
            )
        found[who] = _memory(ended) | ({"failed": ended.why} if ended.code else {})
        print(f"  calibration {who}: {found[who]}", flush=True)
    return found


def one(name: str, args: argparse.Namespace) -> Row:
    """Everything of one model."""
    folder = args.folder / name
    row = make(name, folder)
    row["run"] = compress(folder, args, args.minutes if args.bounded else None)
    print(f"{name}: {_brief(row['run'])}", flush=True)
    if row["run"]["targets"]:
        row["goals"] = goals(row["bytes"], row["run"])
    if args.bounded:
        row["minutes"] = {"asked": args.minutes, "kept": _kept(row["run"], args.minutes)}
    elif args.minutes and not _knows_minutes():
        row["minutes"] = "compress run has no --minutes"
    elif args.minutes:
        bounded = compress(folder, args, args.minutes)
        kept = _kept(bounded, args.minutes)
        row["minutes"] = {"asked": args.minutes, "kept": kept, "run": bounded}
    row["calibration"] = {} if args.skip_calibration else calibration(folder)
    return row | stamp() | {"effort": args.effort}


def _kept(run: Row, minutes: float) -> bool:
    return bool(run["seconds"] <= MINUTES_TOLERANCE * 60 * minutes)


def _brief(run: Row) -> str:
    return json.dumps({k: v for k, v in run.items() if k not in ("targets", "steps")})


def _knows_minutes() -> bool:
    command = [sys.executable, "-m", "compressor", "run", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return "--minutes" in done.stdout


def table(models: dict[str, Row]) -> str:
    """`table.md`."""
    lines = [
        "# Large shapes, random weights",
        "",
        "Written by `python benchmarks/scale/run.py`. The goal for memory is 3 times the model and",
        "600 MB for one process; the tree is the largest sum over it and those that time models.",
        "",
        "| model | bytes | minutes | MB | tree | goal | engine | ships | size | over twin | runs |",
        "|---|--:|--:|--:|--:|--:|---|---|--:|--:|:-:|",
    ]
    for name, row in models.items():
        run = row["run"]
        allowed = (MEMORY_TIMES * row["bytes"] + MEMORY_MORE) / 1e6
        head = (
            f"| {name} | {row['bytes']:,} | {run['seconds'] / 60:.1f}{_of(row)} | "
            f"{run['process_bytes'] / 1e6:.0f} | {run['tree_bytes'] / 1e6:.0f} | {allowed:.0f} |"
        )
        if "failed" in run:
            lines.append(f"{head} | {run['failed'][:80]} | | | |")
        for engine, made in run["targets"].items():
            fast = made["speedup"]
            speed = f"{fast[0]:.2f} ({fast[1]:.2f}–{fast[2]:.2f})" if fast else ""
            lines.append(
                f"{head} {engine} | {made['shipped']} | −{100 * made['reduction']:.1f} % | "
                f"{speed} | {'✓' if made['runs'] else '✗'} |"
            )
    lines += _bounded(models)
    lines += [line for row in models.values() if "note" in row for line in ("", row["note"])]
    lines += ["", f"Calibration on {CALIBRATION:,} samples, ONNX Runtime:", ""]
    lines += [
        "| model | who | peak MB | without mapped files | minutes | |",
        "|---|---|--:|--:|--:|---|",
    ]
    for name, row in models.items():
        for who, found in row["calibration"].items():
            lines.append(
                f"| {name} | {who} | {found['tree_bytes'] / 1e6:.0f} | "
                f"{found['anonymous_bytes'] / 1e6:.0f} | {found['seconds'] / 60:.1f} | "
                f"{found.get('failed', '')[:100]} |"
            )
    return "\n".join(lines) + "\n"


def _bounded(models: dict[str, Row]) -> list[str]:
    """A line for every second run, which was held to a budget."""
    told = []
    for name, row in models.items():
        held = row.get("minutes")
        if isinstance(held, dict) and "run" in held:
            run = held["run"]
            told.append(
                f"{name} with the default gates under `--minutes {held['asked']:g}` took "
                f"{run['seconds'] / 60:.1f} minutes and {run['process_bytes'] / 1e6:.0f} MB."
            )
    return ["", *told] if told else []


def _of(row: Row) -> str:
    """The budget that a row's run was held to."""
    minutes: Any = row.get("minutes")
    bounded = isinstance(minutes, dict) and "run" not in minutes
    return f" of {minutes['asked']:g}" if bounded else ""


def main() -> None:
    """Measure, merge, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--effort", choices=("quick", "default", "certify"), default="default")
    parser.add_argument("--minutes", type=float, help="a second run under this budget")
    parser.add_argument("--bounded", action="store_true", help="only the run under --minutes")
    parser.add_argument("--limit-minutes", type=float, default=60.0)
    parser.add_argument("--skip-calibration", action="store_true")
    parser.add_argument("--json", type=Path, default=HERE / "results.json")
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "scale")
    args = parser.parse_args()
    if args.bounded and not args.minutes:
        parser.error("--bounded needs --minutes")
    results: Row = json.loads(args.json.read_text()) if args.json.is_file() else {}
    for name in args.models.split(","):
        results[name] = one(name, args)
        results = {key: results[key] for key in MODELS if key in results}
        args.json.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        (args.json.parent / "table.md").write_text(table(results))
        print(json.dumps(results[name].get("goals", {}), indent=1))


if __name__ == "__main__":
    main()
