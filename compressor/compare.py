"""What differs between two runs, or between two artifacts.

Sizes, scores and digests compare wherever they were made. Times compare only between runs on the
same machine, and even then were not measured side by side: they are marked `informational`
otherwise, and `compress bench a b` is the way to a verdict.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from compressor.record import RUN_FILE, load_record
from compressor.report import show
from compressor.result import Candidate, LayerRow, LedgerRow, RunRecord, TargetResult
from runtimes.errors import UsageError
from runtimes.types import MANIFEST, Artifact

# What decides how fast a machine is; load, temperature and free memory come and go.
SPEED_FACTS = ("cpu", "machine", "isa", "cpus_usable", "cpu_quota", "governor")
Kind = Literal["run", "artifact"]


def compare(a: Path, b: Path) -> dict[str, Any]:
    """Differences between two runs (folders with `run.json`) or two artifacts (`artifact.json`).

    Returns:
        Plain JSON: `kind`, `a`, `b`, and for runs `original`, `host`, `same_host` and `targets`,
        for artifacts `size_bytes`, `format`, `inputs`, `outputs`, `facts`, `ledger` and `layers`.
        A difference is `[of a, of b]`; what is equal is left out of `host`, `ledger`, `layers`.

    Raises:
        UsageError: one is a run and the other an artifact, or one is neither.
        BadArtifact: one is damaged.
    """
    kinds = _kind(a), _kind(b)
    if kinds[0] != kinds[1]:
        raise UsageError(
            "a run and an artifact cannot be compared",
            where=f"{a}, {b}",
            expected="two output folders of `compress run`, or two artifact folders",
            got=f"{kinds[0]} and {kinds[1]}",
            fix=f"name a target's folder: {a if kinds[0] == 'run' else b}/<target>",
        )
    head = {"kind": kinds[0], "a": str(a), "b": str(b)}
    if kinds[0] == "run":
        return head | compare_records(load_record(a), load_record(b))
    return head | _compare_artifacts(Artifact.load(a), Artifact.load(b))


def compare_records(a: RunRecord, b: RunRecord) -> dict[str, Any]:
    """Differences between two runs' records, as `compare` returns them."""
    keys = list(dict.fromkeys([*a.host, *b.host]))
    facts = {
        key: [a.host.get(key), b.host.get(key)] for key in keys if key in (*SPEED_FACTS, "python")
    }
    same_host = all(facts[key][0] == facts[key][1] for key in SPEED_FACTS if key in facts)
    names = list(dict.fromkeys(t.name for t in [*a.targets, *b.targets]))
    ours, theirs = ({t.name: t for t in record.targets} for record in (a, b))
    return {
        "original": [a.reference.digest, b.reference.digest],
        "source": [a.reference.source, b.reference.source],
        "started_utc": [a.started_utc, b.started_utc],
        "exit_code": [a.exit_code, b.exit_code],
        "same_host": same_host,
        "host": {key: pair for key, pair in facts.items() if pair[0] != pair[1]},
        "targets": {name: _targets(ours.get(name), theirs.get(name)) for name in names},
    }


def compare_lines(found: Mapping[str, Any]) -> list[str]:
    """What `compare` found, for people."""
    lines = [f"a  {found['a']}", f"b  {found['b']}"]
    body = _run_lines(found) if found["kind"] == "run" else _artifact_lines(found)
    return lines + body


def _kind(path: Path) -> Kind:
    if (path / RUN_FILE).is_file() or (path.is_file() and path.name.endswith(".json")):
        return "run"
    if (path / MANIFEST).is_file():
        return "artifact"
    raise UsageError(
        "neither a run nor an artifact",
        where=str(path),
        expected=f"a folder with {RUN_FILE} or {MANIFEST}",
        fix="name the folder given with -o, or a target's folder inside it",
    )


def _targets(a: TargetResult | None, b: TargetResult | None) -> dict[str, Any]:
    if a is None or b is None:
        return {"only_in": "b" if a is None else "a"}
    found: dict[str, Any] = {
        "state": [a.state, b.state],
        "exit_code": [a.exit_code, b.exit_code],
        "shipped": [a.shipped, b.shipped],
        "failure": [t.failure.message if t.failure else None for t in (a, b)],
        "versions": {
            name: [a.versions.get(name), b.versions.get(name)]
            for name in sorted({*a.versions, *b.versions})
            if a.versions.get(name) != b.versions.get(name)
        },
    }
    left, right = show.subject(a), show.subject(b)
    if left is not None and right is not None:
        found |= _candidates(left, right)
    return found


def _candidates(a: Candidate, b: Candidate) -> dict[str, Any]:
    batches = sorted({t.batch for t in a.timings} & {t.batch for t in b.timings})
    return {
        "candidate": [a.name, b.name],
        "digest": [a.digest, b.digest],
        "size_bytes": [a.size_bytes, b.size_bytes],
        "package_bytes": [a.package_bytes, b.package_bytes],
        "metric": [c.score.metric if c.score else None for c in (a, b)],
        "score": [c.score.value if c.score else None for c in (a, b)],
        "drop": [c.comparison.drop if c.comparison else None for c in (a, b)],
        "drop_interval": [c.comparison.interval if c.comparison else None for c in (a, b)],
        "timings": {str(batch): _timings(a, b, batch) for batch in batches},
        "ledger": _ledgers(a.ledger, b.ledger),
        "layers": _layers(a.layers, b.layers),
    }


def _timings(a: Candidate, b: Candidate, batch: int) -> dict[str, Any]:
    pair = [t for t in (show.timing_at(a, batch), show.timing_at(b, batch)) if t is not None]
    return {
        "threads": [t.threads for t in pair],
        "source": [t.source for t in pair],
        "p50_ms": [t.p50_ms for t in pair],
        "p50_interval_ms": [list(t.p50_interval_ms) for t in pair],
        "p99_ms": [t.p99_ms for t in pair],
        "speedup": [t.speedup for t in pair],
        "speedup_interval": [t.speedup_interval for t in pair],
    }


def _ledgers(a: list[LedgerRow], b: list[LedgerRow]) -> dict[str, list[int]]:
    left, right = ({row.kind: row.size_bytes for row in rows} for rows in (a, b))
    kinds = list(dict.fromkeys([*left, *right]))
    pairs = {kind: [left.get(kind, 0), right.get(kind, 0)] for kind in kinds}
    changed = {kind: pair for kind, pair in pairs.items() if pair[0] != pair[1]}
    return dict(sorted(changed.items(), key=lambda item: -abs(item[1][0] - item[1][1])))


def _layers(a: list[LayerRow], b: list[LayerRow]) -> dict[str, list[str | None]]:
    left, right = ({row.layer: row.achieved for row in rows} for rows in (a, b))
    names = list(dict.fromkeys([*left, *right]))
    pairs = {name: [left.get(name), right.get(name)] for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _compare_artifacts(a: Artifact, b: Artifact) -> dict[str, Any]:
    from compressor.quantization.ledger import ledger

    wanted = ("parameters", "macs", "opset", "removed", "factorized", "state")
    facts = {key: [a.facts.get(key), b.facts.get(key)] for key in wanted}
    asked = [
        {row["layer"]: row["requested"] for row in artifact.facts.get("requested", [])}
        for artifact in (a, b)
    ]
    layers = list(dict.fromkeys([*asked[0], *asked[1]]))
    return {
        "digest": [a.digest(), b.digest()],
        "format": [a.format, b.format],
        "size_bytes": [a.size_bytes, b.size_bytes],
        "inputs": [[str(spec) for spec in x.inputs] for x in (a, b)],
        "outputs": [[str(spec) for spec in x.outputs] for x in (a, b)],
        "facts": {key: pair for key, pair in facts.items() if pair[0] != pair[1]},
        "ledger": _ledgers(ledger(a), ledger(b)),
        "layers": {
            name: [asked[0].get(name), asked[1].get(name)]
            for name in layers
            if asked[0].get(name) != asked[1].get(name)
        },
    }


def _run_lines(found: Mapping[str, Any]) -> list[str]:
    same = found["original"][0] == found["original"][1]
    lines = [f"original    {'the same' if same else _arrow(found['source']) + ' (other bytes)'}"]
    if found["same_host"]:
        lines.append("host        the same kind of machine; times are of separate runs")
    else:
        lines.append("host        another machine: times are informational")
    lines += [f"            {key}: {_arrow(pair)}" for key, pair in found["host"].items()]
    for name, target in found["targets"].items():
        lines += ["", name, *(f"  {line}" for line in _target_lines(target, found["same_host"]))]
    return lines


def _target_lines(target: Mapping[str, Any], same_host: bool) -> list[str]:
    if "only_in" in target:
        return [f"only in {target['only_in']}"]
    lines = [_row("verdict", _arrow([state.replace("_", " ") for state in target["state"]]))]
    lines.append(_row("ships", _arrow([name or "nothing" for name in target["shipped"]])))
    lines += [
        _row(f"error in {side}", text)
        for side, text in zip("ab", target["failure"], strict=True)
        if text
    ]
    lines += [_row(name, _arrow(pair)) for name, pair in target["versions"].items()]
    if "candidate" not in target:
        return lines
    if target["digest"][0] == target["digest"][1]:
        lines.append(_row("artifact", "the same bytes"))
    lines.append(_row("size", _sizes(target["size_bytes"])))
    lines += _score_lines(target)
    for batch, timing in target["timings"].items():
        lines.append(_row(f"batch {batch}", _timing_text(timing, same_host)))
    return lines + _ledger_lines(target["ledger"]) + _layer_lines(target["layers"])


def _score_lines(target: Mapping[str, Any]) -> list[str]:
    name = next((m for m in target["metric"] if m), "")
    if not name:
        return []
    lines = [_row(name, _arrow([show.metric(name, value) for value in target["score"]]))]
    drops = zip(target["drop"], target["drop_interval"], strict=True)
    shown = [show.drop(name, drop, interval) for drop, interval in drops]
    return [*lines, _row("drop", _arrow(shown))]


def _timing_text(timing: Mapping[str, Any], same_host: bool) -> str:
    low = [show.ms(value) for value in timing["p50_ms"]]
    text = f"p50 {_arrow(low)}"
    (a_low, a_high), (b_low, b_high) = timing["p50_interval_ms"]
    if a_high < b_low or b_high < a_low:
        ratio = timing["p50_ms"][0] / timing["p50_ms"][1]
        text += f", b is {ratio:.2f}x as fast as a" if timing["p50_ms"][1] else ""
    else:
        text += ", intervals overlap"
    speedups = zip(timing["speedup"], timing["speedup_interval"], strict=True)
    if any(timing["speedup"]):
        text += f"; over its twin {_arrow([show.ratio(*pair) for pair in speedups])}"
    comparable = same_host and len(set(timing["threads"])) == len(set(timing["source"])) == 1
    return text if comparable else f"{text} (informational)"


def _artifact_lines(found: Mapping[str, Any]) -> list[str]:
    same = found["digest"][0] == found["digest"][1]
    lines = [_row("artifact", "the same bytes" if same else "differs")]
    lines.append(_row("format", _arrow(found["format"])))
    lines.append(_row("size", _sizes(found["size_bytes"])))
    for key in ("inputs", "outputs"):
        if found[key][0] != found[key][1]:
            lines.append(_row(key, _arrow(["; ".join(specs) for specs in found[key]])))
    lines += [_row(key, _arrow(pair)) for key, pair in found["facts"].items()]
    return lines + _ledger_lines(found["ledger"]) + _layer_lines(found["layers"])


def _ledger_lines(ledger: Mapping[str, list[int]]) -> list[str]:
    return [_row(kind, _sizes(pair)) for kind, pair in ledger.items()]


def _layer_lines(layers: Mapping[str, list[str | None]], limit: int = 20) -> list[str]:
    shown = list(layers.items())[:limit]
    lines = [f"{name}: {_arrow([kind or 'absent' for kind in pair])}" for name, pair in shown]
    if len(layers) > limit:
        lines.append(f"and {len(layers) - limit} more layers")
    head = [f"{len(layers)} layers differ in precision:"] if layers else []
    return head + [f"  {line}" for line in lines]


def _row(label: str, text: str) -> str:
    return f"{label.ljust(15)} {text}"


def _sizes(pair: list[int]) -> str:
    change = "" if not pair[0] or pair[0] == pair[1] else f" ({pair[1] / pair[0] - 1:+.1%})"
    return _arrow([show.size(value) for value in pair]) + change


def _arrow(pair: list[Any]) -> str:
    left, right = ("unknown" if value is None else str(value) for value in pair)
    return left if left == right else f"{left} -> {right}"
