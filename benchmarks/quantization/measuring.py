"""The rows of one model on one engine: every variant scored on the same samples and timed together.

A row is plain JSON. `kind` is `twin`, `half_twin`, `ours`, `candidate` (a rung of ours that was not
shipped: bytes and score of the run's own record) or `peer`; `status` is `ok` or `failed`, with the
`reason`.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.children import Ended, run_child
from benchmarks.quantization.cases import Case
from benchmarks.quantization.peers import PEERS
from benchmarks.quantization.verdicts import verdict
from compressor.bench import BenchResult, Variant
from compressor.result import Candidate, Reference, Score, TargetResult
from compressor.validate import Evaluation
from compressor.verdict import judge, parse_gate
from runtimes.types import Artifact, sha256_of

HERE = Path(__file__).resolve().parent
LOSS = parse_gate("relative_drop<=1%")
FORMATS = {"onnxruntime": "onnxruntime", "openvino": "openvino"}
Row = dict[str, Any]


@dataclass(frozen=True)
class Limits:
    """Seconds a child may take: a peer, the scoring of one artifact, our run."""

    peer_s: float = 600.0
    score_s: float = 900.0
    run_s: float = 5400.0


@dataclass(frozen=True)
class Entry:
    """One variant: a row, and the artifact behind it where there is one."""

    row: Row
    artifact: Artifact | None = None


# ── our run ──────────────────────────────────────────────────────────────────────────────────────


def run_ours(case: Case, gates: list[str], limits: Limits) -> tuple[Path, Row]:
    """(output folder, how it went) of `compressor.compress` in a process of its own."""
    out = case.cache / "ours" / case.name
    shutil.rmtree(out, ignore_errors=True)
    told = _case_file(case, gates)
    child = [sys.executable, HERE / "child.py", "run", told, out]
    ended = run_child(child, limit_s=limits.run_s)
    row = {
        "seconds": round(ended.seconds, 1),
        "tree_bytes": ended.tree_bytes,
        "process_bytes": ended.process_bytes,
    }
    return out, row | ({"failed": ended.why} if ended.code else {})


def _case_file(case: Case, gates: list[str]) -> Path:
    path = case.cache / "cases" / f"{case.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {
        "folder": str(case.folder.absolute()),
        "cache": str(case.cache.absolute()),
        "effort": case.effort,
        "gates": gates,
    }
    path.write_text(json.dumps(told))
    return path


def own_entries(
    case: Case, out: Path, target: TargetResult, steps: Mapping[str, str]
) -> list[Entry]:
    """Twins, what ships, and the rungs that do not, as the run's record names them.

    `steps` maps an artifact's digest to its key in the store.
    """
    made = []
    for candidate in target.candidates:
        shipped = candidate.name == target.shipped
        kind = candidate.role if candidate.role != "candidate" or not shipped else "ours"
        row: Row = {"name": candidate.name, "kind": kind, "status": "ok"}
        key = steps.get(candidate.digest)
        artifact = case.store.artifact(key) if key else None
        if kind == "candidate" or artifact is None:
            made.append(Entry(row | _told(case, candidate)))
        else:
            made.append(Entry(row | {"steps": candidate.steps}, artifact))
    if not any(e.row["kind"] == "ours" for e in made) and target.shipped:
        made.append(_shipped_twin(out, target))
    return made


def _shipped_twin(out: Path, target: TargetResult) -> Entry:
    row = {"name": f"{target.shipped} (shipped)", "kind": "ours", "status": "ok"}
    return Entry(row | {"note": target.reason}, Artifact.load(out / target.name))


def _told(case: Case, candidate: Candidate) -> Row:
    """A rung that was passed over: what the run found out about it."""
    if candidate.failure is not None and not candidate.size_bytes:
        return {"status": "failed", "reason": candidate.failure.message.splitlines()[0][:300]}
    failed = [f"{c.gate}: {c.text}" for c in candidate.checks if c.state != "pass"]
    compared = candidate.comparison
    return {
        "bytes": candidate.size_bytes,
        "reduction": round(1 - candidate.size_bytes / case.size_bytes, 5),
        "value": candidate.score.value if candidate.score else None,
        "relative_loss": compared.relative_drop if compared else None,
        "sqnr_db": compared.sqnr_db if compared else None,
        "agreement": compared.agreement if compared else None,
        "stopped_by": failed,
        "from": "the run's record",
    }


# ── peers ────────────────────────────────────────────────────────────────────────────────────────


def make_peers(case: Case, limits: Limits, peers_env: Path | None) -> dict[str, Row]:
    """Peer → how making its model went; the models lie in `case.cache`/peers and are kept."""
    made: dict[str, Row] = {}
    given: tuple[Path, Path] | None = None
    for name, (_, _, _, own) in PEERS.items():
        folder = case.cache / "peers" / case.name / name
        about = folder / "about.json"
        if about.is_file() and (kept := json.loads(about.read_text()))["given"] == case.digests:
            made[name] = kept
            continue
        python = _python(own, peers_env)
        if python is None:
            made[name] = {"failed": f"no environment for {own} (--peers-env)"}
            continue
        given = given or case.lay_out(case.cache / "given" / case.name)
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "made").mkdir(parents=True)
        before = sha256_of(given[0])
        command = [python, HERE / "peers.py", name, *given, folder / "made"]
        env = {"OMP_NUM_THREADS": "1", "NO_PROXY": "*", "HF_HUB_OFFLINE": "1"}
        ended = run_child(command, limit_s=limits.peer_s, env=env)
        made[name] = _peer_row(ended, folder / "made") | {"given": case.digests}
        if sha256_of(given[0]) != before:
            made[name]["note"] = "it rewrote its input"
        about.write_text(json.dumps(made[name], indent=1))
    if given is not None:
        shutil.rmtree(given[0].parents[1], ignore_errors=True)
    return made


def _python(own: str | None, peers_env: Path | None) -> Path | None:
    if own is None:
        return Path(sys.executable)
    found = peers_env / own / "bin" / "python" if peers_env else None
    return found if found is not None and found.exists() else None


def _peer_row(ended: Ended, folder: Path) -> Row:
    row: Row = {"seconds": round(ended.seconds, 1), "tree_bytes": ended.tree_bytes}
    if ended.code != 0:
        return row | {"failed": ended.why}
    if not any(path.suffix in (".onnx", ".xml") for path in folder.iterdir()):
        return row | {"failed": "it wrote no model"}
    return row | {"versions": json.loads(ended.out.strip().splitlines()[-1])}


def peer_entries(case: Case, engine: str, made: Mapping[str, Row]) -> list[Entry]:
    """The peers whose output is meant for this engine."""
    found = []
    for name, (_, _, engines, _) in PEERS.items():
        if engine not in engines or name not in made:
            continue
        row: Row = {"name": name, "kind": "peer", "status": "ok"}
        row |= {k: v for k, v in made[name].items() if k in ("versions", "note", "seconds")}
        if "failed" in made[name]:
            found.append(Entry(row | {"status": "failed", "reason": made[name]["failed"]}))
            continue
        folder = case.cache / "peers" / case.name / name
        found.append(Entry(row, _wrapped(case, engine, folder)))
    return found


def _wrapped(case: Case, engine: str, folder: Path) -> Artifact:
    """A peer's files as an artifact with the source's inputs and outputs."""
    root = folder / engine
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(folder / "made", root)
    entry = next(p.name for p in sorted(root.iterdir()) if p.suffix in (".onnx", ".xml"))
    source = case.source
    facts = {"container": "ir" if entry.endswith(".xml") else "onnx", "tool": folder.name}
    facts |= {k: v for k, v in source.facts.items() if k in ("state", "dims")}
    return Artifact.write(root, FORMATS[engine], entry, source.inputs, source.outputs, facts)


# ── scores and times ─────────────────────────────────────────────────────────────────────────────


def measured(case: Case, engine: str, entries: list[Entry], limits: Limits) -> list[Row]:
    """The rows with score, loss and times in them; what does not run says why."""
    base = case.base
    done: list[Entry] = []
    for entry in entries:
        if entry.artifact is None:
            done.append(entry)
            continue
        found = _scored(case, entry.artifact, engine, limits)
        row = entry.row | {"bytes": entry.artifact.size_bytes}
        row["reduction"] = round(1 - entry.artifact.size_bytes / case.size_bytes, 5)
        if isinstance(found, str):
            done.append(Entry(row | {"status": "failed", "reason": found}))
        else:
            row |= _accuracy(case, base, found)
            done.append(Entry(row, entry.artifact if row["status"] == "ok" else None))
    return _timed(case, engine, done)


def _scored(case: Case, artifact: Artifact, engine: str, limits: Limits) -> Evaluation | str:
    """An artifact's outcomes through the store, or why there are none."""
    told = _case_file(case, [])
    command = [sys.executable, HERE / "child.py", "score", told, artifact.root, engine]
    ended = run_child(command, limit_s=limits.score_s)
    if ended.code != 0:
        return ended.why
    found = case.judge.score(artifact, engine, "CPU", "score")
    return found if found is not None else "there is nothing to score on"


def _accuracy(case: Case, base: Evaluation, found: Evaluation) -> Row:
    if wrong := _wrong_outputs(base, found):
        return {"status": "failed", "reason": wrong}
    compared = case.judge.compare(found)
    metric = case.judge.metric
    assert compared is not None
    assert metric is not None
    score = Score(metric.name, found.value, metric.higher_is_better, found.n)
    original = Score(metric.name, base.value, metric.higher_is_better, base.n)
    reference = Reference("", "onnx", "", case.size_bytes, "the given ONNX", score=original)
    candidate = Candidate("", "candidate", score=score, comparison=compared)
    check = judge(LOSS, candidate, reference)
    upper = check.interval[1] if check.interval else None
    return {
        "status": "ok",
        "value": found.value,
        "relative_loss": compared.relative_drop,
        "relative_loss_upper": upper,
        "certified": check.state,
        "needed": check.needed,
        "judged": check.text,
        "agreement": compared.agreement,
        "sqnr_db": compared.sqnr_db,
        "cosine": cosine(base.kept, found.kept),
        "doubts": compared.doubts,
    }


def _wrong_outputs(base: Evaluation, found: Evaluation) -> str:
    for name, wanted in base.kept.items():
        got = found.kept.get(name)
        if got is None:
            return f"it has no output {name}"
        if got.shape != wanted.shape:
            return f"output {name} is {list(got.shape)}, the original's is {list(wanted.shape)}"
        if np.isfinite(wanted).all() and not np.isfinite(got).all():
            return f"output {name} holds NaN or infinity"
    return ""


def cosine(base: Mapping[str, Any], found: Mapping[str, Any]) -> float | None:
    """The smallest cosine between the same floating-point output of two models."""
    worst = None
    for name, wanted in base.items():
        if wanted.dtype.kind != "f":
            continue
        a, b = wanted.astype(np.float64).ravel(), found[name].astype(np.float64).ravel()
        size = float(np.linalg.norm(a) * np.linalg.norm(b))
        if size and np.isfinite(size):
            here = round(float(a @ b) / size, 6)
            worst = here if worst is None else min(worst, here)
    return worst


def _timed(case: Case, engine: str, entries: list[Entry]) -> list[Row]:
    """All that runs, interleaved in one benchmark; `ratios` has the speed-up over every other."""
    there = [e for e in entries if e.artifact is not None]
    variants = [Variant(e.row["name"], e.artifact, engine) for e in there if e.artifact]
    if not variants:
        return [e.row for e in entries]
    names = [v.name for v in variants]

    def rows(result: BenchResult) -> list[Row]:
        return [
            e.row if e.artifact is None else e.row | _times(result, e.row["name"], names)
            for e in entries
        ]

    def decided(result: BenchResult) -> bool:
        goals = verdict(rows(result), case.size_bytes)["goals"].values()
        return not any(goal["state"] == "open" and goal.get("interval") for goal in goals)

    return rows(case.judge.time(variants, f"{case.name}-{engine}", decide=decided))


def _times(result: BenchResult, name: str, names: list[str]) -> Row:
    batch = result.batches[0]
    if failure := result.failure(name, batch):
        return {"status": "failed", "reason": f"while timed: {failure.message.splitlines()[0]}"}
    timing = result.timing(name, batch)
    ratios = {}
    for other in names:
        if other != name and result.has(other, batch):
            over = result.timing(name, batch, other)
            if over.speedup is not None and over.speedup_interval is not None:
                ratios[other] = [round(x, 4) for x in (over.speedup, *over.speedup_interval)]
    return {
        "batch": batch,
        "p50_ms": round(timing.p50_ms, 5),
        "p50_interval_ms": [round(x, 5) for x in timing.p50_interval_ms],
        "rounds": timing.rounds,
        "load_ms": timing.cold_load_ms,
        "peak_rss_bytes": timing.peak_rss_bytes,
        "ratios": ratios,
        "timing_doubts": timing.doubts,
    }


def run_extract(target: TargetResult) -> Row:
    """What of a run explains a miss: what shipped and why, layers and bytes of it and the twin."""
    best = next((c for c in target.candidates if c.name == target.shipped), None)
    tried = [c for c in target.candidates if c.role == "candidate" and c.size_bytes]
    shown = best if best is not None and best.role == "candidate" else (tried[0] if tried else best)
    twin = next((c for c in target.candidates if c.role == "twin"), None)
    return {
        "shipped": target.shipped,
        "state": target.state,
        "reason": target.reason,
        "shown": shown.name if shown else "",
        "ledger": [dataclasses.asdict(row) for row in shown.ledger] if shown else [],
        "layers": [dataclasses.asdict(row) for row in shown.layers] if shown else [],
        "twin_layers": [dataclasses.asdict(row) for row in twin.layers] if twin else [],
    }
