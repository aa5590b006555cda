"""Results that came back from a board, taken into the run that its bundle is from.

They stand beside what the run itself found out and change none of it: an accuracy that was only
emulated stays so. What the run could not judge for want of the device, the board's figures may:
limits on p50 and p99, as `reported` values of one process without an interval.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from compressor.board_result import BoardResult, BoardTiming
from compressor.gates import parse_gate
from compressor.record import from_json
from compressor.report.boards import name
from compressor.result import (
    Candidate,
    Check,
    RunRecord,
    State,
    TargetResult,
    Timing,
)
from compressor.verdict import combine, judge
from runtimes.errors import BadArtifact, UsageError
from runtimes.types import Artifact

SCHEMA = 1
ON_BOARDS = frozenset({"tensorrt"})
JUDGED = ("p50", "p99")
UNSTEADY = 0.05  # standard deviation over mean of the GPU's compute, above which no verdict rests
EXIT_CODES: dict[State, int] = {"pass": 0, "not_judged": 0, "inconclusive": 3, "fail": 1}


def read_result(path: Path) -> BoardResult:
    """What `build_engine.py --result-json` wrote.

    Raises:
        UsageError: there is no such file.
        BadArtifact: it is no such JSON, or of another schema.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError("no such file", where=str(path)) from error
    except (OSError, ValueError) as error:
        raise BadArtifact(f"cannot be read: {error}", where=str(path)) from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        got = str(data.get("schema")) if isinstance(data, dict) else type(data).__name__
        raise BadArtifact(
            "not the results of a board, or of another schema",
            where=str(path),
            expected=f'"schema": {SCHEMA}, as build_engine.py --result-json writes',
            got=got,
        )
    if isinstance(data.get("timing"), dict):
        data["timing"] = [data["timing"]]
    found = from_json(BoardResult, data, str(path))
    assert isinstance(found, BoardResult)
    return found


def add_result(record: RunRecord, out: Path, found: BoardResult) -> RunRecord:
    """`record` with a board's results at the candidate whose bundle they are of.

    Args:
        record: the run in `out`.
        out: its output folder, which holds the bundles.
        found: what the board told.

    Raises:
        UsageError: no bundle of this run has the digest that the results name.
        BadArtifact: a bundle in `out` is not the one of the record.
    """
    bundles = _bundles(record, out)
    targets, hits = [], 0
    for target in record.targets:
        candidates = []
        for candidate in target.candidates:
            fits = bundles.get((target.name, candidate.name)) == found.bundle
            candidates.append(_with(candidate, found, record) if fits else candidate)
            hits += fits
        targets.append(_judged(replace(target, candidates=candidates), target))
    if not hits:
        raise UsageError(
            "results of another bundle",
            where=str(out),
            expected=", ".join(sorted({d[:16] + "…" for d in bundles.values()}))
            or "a run that made a TensorRT bundle",
            got=found.bundle[:16] + "…" if found.bundle else "none: the board read no bundle",
            fix="name the output folder of the run that the bundle was copied from",
        )
    from compressor.run import overall, worst

    exit_code = worst([target.exit_code for target in targets])
    return replace(record, targets=targets, exit_code=exit_code, state=overall(targets))


def _bundles(record: RunRecord, out: Path) -> dict[tuple[str, str], str]:
    """(target, candidate) → digest of the model file of every bundle that lies in `out`."""
    made = {}
    for target in record.targets:
        for candidate in target.candidates:
            root = out / candidate.path
            if candidate.format not in ON_BOARDS or not candidate.path or not root.is_dir():
                continue
            bundle = Artifact.load(root)
            if candidate.digest and bundle.digest() != candidate.digest:
                raise BadArtifact(
                    "not the bundle of this run",
                    where=str(root),
                    expected=candidate.digest,
                    got=bundle.digest(),
                )
            made[target.name, candidate.name] = bundle.files[bundle.entry]
    return made


def _with(candidate: Candidate, found: BoardResult, record: RunRecord) -> Candidate:
    """With the results (a board's newest only), its times where there are none, its checks."""
    others = [board for board in candidate.boards if name(board) != name(found)]
    made = replace(candidate, boards=[*others, found], timings=_timings(candidate, found))
    checks = [_check(check, made, found, record) for check in made.checks]
    own = _own_check(found)
    checks = [check for check in checks if check.gate != own.gate] + [own]
    return replace(made, checks=checks, state=combine(checks))


def _timings(candidate: Candidate, found: BoardResult) -> list[Timing]:
    """Times that this machine took stay; those reported before make room for newer ones."""
    timed = [timing for timing in candidate.timings if timing.source != "reported"]
    known = {timing.batch for timing in timed}
    plain = [t for t in _plain(found) if t.batch not in known]
    return [*timed, *(_timing(t, found) for t in plain)] if plain else candidate.timings


def _plain(found: BoardResult) -> list[BoardTiming]:
    """Times without a CUDA graph, which a program must be written to use."""
    return [timing for timing in found.timing if not timing.graph]


def _timing(told: BoardTiming, found: BoardResult) -> Timing:
    where = f"reported by {name(found)}, by {told.source}, transfers included, one process"
    return Timing(
        batch=told.batch,
        threads=1,
        source="reported",
        p50_ms=told.latency_p50_ms,
        p50_interval_ms=told.latency_p50_interval_ms,
        p90_ms=told.latency_p90_ms,
        p99_ms=told.latency_p99_ms,
        p99_upper_ms=None,
        min_ms=told.latency_min_ms,
        n=told.samples,
        rounds=1,
        doubts=[where, *told.doubts],
    )


def _check(check: Check, candidate: Candidate, found: BoardResult, record: RunRecord) -> Check:
    """A gate that this machine could not judge, on the board's times."""
    words = tuple(name + op for name in JUDGED for op in ("@", "<"))
    ours = check.state == "not_judged" or "(reported)" in check.text
    mixed = any(timing.source != "reported" for timing in candidate.timings)
    if not ours or mixed or not check.gate.startswith(words) or not _plain(found):
        return check
    made = judge(parse_gate(check.gate), candidate, record.reference)
    unsteady = max(timing.cov for timing in _plain(found))
    if made.state in ("pass", "fail") and unsteady > UNSTEADY:
        why = f"GPU compute varied by {unsteady:.0%}, more than {UNSTEADY:.0%}"
        return replace(made, state="not_judged", text=f"not judged: {name(found)}: {why}")
    return replace(made, text=f"{name(found)}: {made.text}")


def _own_check(found: BoardResult) -> Check:
    """Whether the bundle became a validated engine there; a board that cannot take it says so."""
    figures = [row.get("sqnr_db") for row in found.numeric.values() if row.get("float", True)]
    worst = [value for value in figures if isinstance(value, (int, float))]
    gate = f"engine on {name(found)}"
    if found.status == "validated" and found.exit_code == 0:
        numbers = f": outputs keep {min(worst):.1f} dB of ONNX Runtime's" if worst else ""
        return Check(gate, "pass", f"built and validated{numbers}: pass")
    if found.exit_code in (5, 7):
        return Check(gate, "fail", f"{found.reason}: fail")
    return Check(gate, "not_judged", f"not judged: {found.reason or found.status}")


def _judged(target: TargetResult, before: TargetResult) -> TargetResult:
    """The target's state and exit code, where a candidate that ships was judged anew.

    A target whose twin ships failed by its candidates, which no board can mend; one that waits for
    everything to be judged (`--require-judged`) goes on waiting.
    """
    shipped = next((c for c in target.candidates if c.name == target.shipped), None)
    if shipped is None or shipped in before.candidates or shipped.role != "candidate":
        return target
    waits = target.state == "inconclusive" and any(c.state == "not_judged" for c in shipped.checks)
    if target.state == shipped.state or (waits and shipped.state == "pass"):
        return target
    return replace(target, state=shipped.state, exit_code=EXIT_CODES[shipped.state])
