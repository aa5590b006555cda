"""Our result beside the defaults of NNCF, ONNX Runtime, ModelOpt and Olive, on every zoo model.

    python -m examples.zoo --out out/zoo
    python benchmarks/quantization/run.py --zoo out/zoo [--models a,b] [--effort quick]

Per model and engine, in one run: the FP32 twin (and OpenVINO's half twin), what
`compressor.compress` ships with the target's defaults, and what each peer's defaults make of the
same ONNX and calibration samples; all scored on the same evaluation samples and timed interleaved.
Peers that need an environment of their own are found in `--peers-env`/<modelopt|olive>:

    python -m venv ENV/modelopt && ENV/modelopt/bin/pip install "nvidia-modelopt[onnx]==0.47.0"
    python -m venv ENV/olive && ENV/olive/bin/pip install olive-ai==0.13.0 onnxruntime requests

Writes results.json (one entry a model, kept while its files are the same) and table.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.quantization import measuring, tables, verdicts  # noqa: E402
from benchmarks.quantization.cases import ENGINES, ROOT, Case, frozen, zoo  # noqa: E402
from benchmarks.stamp import stamp  # noqa: E402
from compressor.record import load_record  # noqa: E402
from compressor.result import RunRecord  # noqa: E402
from runtimes.types import Artifact  # noqa: E402

SCHEMA = 1


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    cache = cache / "edge-compressor" / "benchmarks" / "quantization"
    parser.add_argument("--zoo", type=Path, default=ROOT / "out" / "zoo")
    parser.add_argument("--models", default="", help="names, separated by commas")
    parser.add_argument("--list", action="store_true", help="what is there and what is done")
    parser.add_argument("--effort", choices=("quick", "default", "certify"), default="default")
    parser.add_argument("--gate", action="append", default=[], help="instead of the default gates")
    parser.add_argument("--skip-peers", action="store_true")
    parser.add_argument("--again", action="store_true", help="measure what is there already")
    parser.add_argument("--peers-env", type=Path, default=cache / "peers-env")
    parser.add_argument("--cache", type=Path, default=cache)
    parser.add_argument("--json", type=Path, default=HERE / "results.json")
    parser.add_argument("--limit-minutes", type=float, default=90.0, help="of our own run")
    return parser.parse_args()


def main() -> None:
    """Measure, merge, write."""
    args = arguments()
    names = [name for name in args.models.split(",") if name]
    cases = zoo(args.zoo, names, args.cache, args.effort)
    results = load(args.json)
    for case in cases:
        kept = results["models"].get(case.name)
        same = kept is not None and settings(case, args) == kept["settings"]
        if args.list:
            print(f"{case.name:24} {case.size_bytes:>12,} bytes  {_done(kept, same)}")
        elif same and not args.again:
            print(f"{case.name}: kept ({kept['date']})")
        else:
            results["models"][case.name] = one_model(case, args)
            save(results, args.json)
    if not args.list:
        save(results, args.json)
        print(json.dumps(results["summary"], indent=1, ensure_ascii=False))


def _done(kept: dict[str, Any] | None, same: bool) -> str:
    if kept is None:
        return "not measured"
    state = "" if same else ", with other files or settings"
    return f"measured {kept['date']} at {kept['commit']}{state}"


def settings(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """What an entry depends on besides the code: measured again where it differs."""
    return {
        "digests": case.digests,
        "effort": args.effort,
        "gates": args.gate,
        "peers": not args.skip_peers,
    }


def one_model(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """Everything of one model."""
    began, case = time.monotonic(), frozen(case)
    limits = measuring.Limits(run_s=60 * args.limit_minutes)
    env = args.peers_env if args.peers_env.is_dir() else None
    peers = {} if args.skip_peers else measuring.make_peers(case, limits, env)
    _say(case, f"peers made in {time.monotonic() - began:.0f} s")
    out, ours = measuring.run_ours(case, args.gate, limits)
    _say(case, f"ours in {ours['seconds']:.0f} s {ours.get('failed', '')}")
    record = None if "failed" in ours else load_record(out)
    engines = {}
    for engine in ENGINES:
        engines[engine] = one_pair(case, engine, out, record, peers, limits, ours)
        _say(case, f"{engine} {_shown(engines[engine])}")
    return {
        "card": {k: v for k, v in case.card.items() if k != "labels"},
        "bytes": case.size_bytes,
        "settings": settings(case, args),
        **stamp(),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "ours": ours,
        "peers": {n: {k: v for k, v in p.items() if k != "given"} for n, p in peers.items()},
        "engines": engines,
    }


def one_pair(
    case: Case,
    engine: str,
    out: Path,
    record: RunRecord | None,
    peers: dict[str, Any],
    limits: measuring.Limits,
    ours: dict[str, Any],
) -> dict[str, Any]:
    """Rows, verdict and explanation of one engine."""
    extract: dict[str, Any] = {}
    if record is not None:
        target = record.target(engine)
        keys = {step.digest: step.key for step in record.steps}
        entries = measuring.own_entries(case, out, target, keys)
        extract = measuring.run_extract(target)
    else:
        entries = _without_run(case, engine, ours)
    entries += measuring.peer_entries(case, engine, peers)
    rows = measuring.measured(case, engine, entries, limits)
    judged = verdicts.verdict(rows, case.size_bytes)
    why = verdicts.explain(judged["goals"], rows, extract)
    brief = {k: v for k, v in extract.items() if k not in ("layers", "twin_layers")}
    return {"rows": rows, "verdict": judged, "why": why, "run": brief}


def _without_run(case: Case, engine: str, ours: dict[str, Any]) -> list[measuring.Entry]:
    """The given file itself in place of the twins, where our run failed altogether."""
    failed = {"name": "ours", "kind": "ours", "status": "failed", "reason": ours["failed"]}
    made = [measuring.Entry(failed)]
    kinds = {"twin": "f32"} if engine == "onnxruntime" else {"twin": "f32", "half_twin": "default"}
    for kind, execution in kinds.items():
        root = case.cache / "given-as-twin" / case.name / f"{engine}-{kind}"
        root.mkdir(parents=True, exist_ok=True)
        for path in case.files:
            (root / path.name).unlink(missing_ok=True)
            (root / path.name).symlink_to(path.absolute())
        source = case.source
        facts_ = {**source.facts, "execution": execution, "container": "onnx"}
        artifact = Artifact.write(
            root, "onnx", case.model.name, source.inputs, source.outputs, facts_
        )
        made.append(measuring.Entry({"name": kind, "kind": kind, "status": "ok"}, artifact))
    return made


def _shown(pair: dict[str, Any]) -> str:
    goals = pair["verdict"]["goals"]
    return f"{pair['verdict']['all']}: " + ", ".join(
        f"{name} {goal['state']} {goal.get('value')}" for name, goal in goals.items()
    )


def _say(case: Case, text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {case.name}: {text}", flush=True)


def load(path: Path) -> dict[str, Any]:
    """results.json, or an empty one."""
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text())
        if found.get("schema") == SCHEMA:
            return found
    return {"schema": SCHEMA, "models": {}}


def save(results: dict[str, Any], path: Path) -> None:
    """results.json with its summary, and table.md beside it."""
    models = dict(sorted(results["models"].items()))
    for model in models.values():  # a goal may have changed since it was measured
        for pair in model["engines"].values():
            pair["verdict"] = verdicts.verdict(pair["rows"], model["bytes"])
    results["models"] = models
    results["versions"] = _versions()
    results["summary"] = verdicts.summary(models)
    text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
    path.write_text(text)
    (path.parent / "table.md").write_text(tables.document(models, results["summary"]))


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("nncf", "onnx", "onnxruntime", "openvino", "numpy")}


if __name__ == "__main__":
    main()
