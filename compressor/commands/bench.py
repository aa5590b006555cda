"""`compress bench`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from runtimes.errors import UsageError
from runtimes.types import Artifact


def bench_verb(args: argparse.Namespace) -> int:
    """`compress bench`: the first artifact is the baseline of every speed-up."""
    from compressor.bench import BenchPlan, bench
    from compressor.progress import on_stderr

    variants = _variants(args.artifacts, args.device)
    batches = tuple(args.batch or [1])
    feeds = {b: _bench_feeds(args, variants[0].artifact, b) for b in batches}
    plan = BenchPlan(args.effort, batches, args.threads, args.seed)
    with on_stderr() as progress:
        progress.begin("bench")
        found = bench(variants, feeds, plan, progress=progress.update)
        progress.end("")
    if args.json:
        print(json.dumps(found.to_json(), indent=1))
    else:
        _print_bench(found)
    return _bench_gates(found, args.gate)


def _variants(folders: list[str], device: str) -> list[Any]:
    from compressor.bench import Variant
    from compressor.steps import load_target, target_names

    found: list[Any] = []
    runtimes = {f: t.runtime for n in target_names() for t in [load_target(n)] for f in t.formats}
    for folder in folders:
        artifact = _artifact(Path(folder))
        artifact.verify()
        runtime = runtimes.get(artifact.format, "onnxruntime")
        name = Path(folder).name if folders.count(folder) == 1 else folder
        if any(v.name == name for v in found):
            name = f"{folder} ({len(found) + 1})"
        found.append(Variant(name, artifact, runtime, device))
    return found


def _artifact(folder: Path) -> Artifact:
    """The artifact in `folder`; `UsageError` naming those of a run where it is a run's folder."""
    if (folder / "artifact.json").is_file():
        return Artifact.load(folder)
    inside = sorted(p.parent for p in folder.glob("*/artifact.json"))
    raise UsageError(
        "not an artifact folder" if folder.is_dir() else "no such folder",
        where=str(folder),
        expected="a target's folder of a run, such as out/openvino",
        fix=f"name {' and '.join(map(str, inside))}" if inside else "check the path",
    )


def _bench_feeds(args: argparse.Namespace, artifact: Artifact, batch: int) -> list[Any]:
    """Eight feeds of `batch` samples, from `--feeds` or seeded examples."""
    import numpy as np

    from exporters.base import example_feeds

    if not args.feeds:
        dims = {str(s.shape[0]): batch for s in artifact.inputs if s.shape}
        dims = {**dict(artifact.facts.get("dims", {})), **dims}
        return [example_feeds(artifact.inputs, dims, args.seed + i) for i in range(8)]
    samples = _timing_samples(args.feeds, artifact)
    rng = np.random.default_rng(args.seed)
    return [samples.feeds(rng.integers(0, len(samples), batch).tolist()) for _ in range(8)]


def _timing_samples(path: str, artifact: Artifact) -> Any:
    """What `--feeds` names; of sequences single steps, with the states of the first artifact."""
    from compressor.opening import open_data_sets
    from compressor.stateful import RecurrentState, Steps

    state = RecurrentState.of(artifact)
    (samples,) = open_data_sets({"evaluation": path}, artifact.inputs, Path.cwd(), state).values()
    if state is None:
        return samples
    steps = Steps(samples, state)
    steps.original = artifact
    return steps


def _print_bench(found: Any) -> None:
    first = found.variants[0].name
    print(f"{'artifact':28} {'batch':>5} {'p50 ms':>9} {'p99 ms':>9}  times as fast as {first}")
    for variant in found.variants:
        for batch in found.batches:
            if failure := found.failure(variant.name, batch):
                print(f"{variant.name:28} {batch:5}  failed: {failure.message.splitlines()[0]}")
                continue
            over = None if variant.name == first else first
            t = found.timing(variant.name, batch, over)
            ratio = "(baseline)"
            if t.speedup is not None and t.speedup_interval is not None:
                low, high = t.speedup_interval
                ratio = f"{t.speedup:.2f}x ({low:.2f}–{high:.2f})"
            print(f"{variant.name:28} {batch:5} {t.p50_ms:9.3f} {t.p99_ms:9.3f}  {ratio}")
            for doubt in t.doubts:
                print(f"{'':28} in doubt: {doubt}")


def _bench_gates(found: Any, texts: list[str]) -> int:
    """Gates of `bench`, for every artifact but the baseline; the worst state's exit code."""
    from compressor.gates import parse_gate
    from compressor.judging import timings_of
    from compressor.result import Candidate, Reference
    from compressor.verdict import combine, judge

    codes = {"pass": 0, "fail": 1, "inconclusive": 3, "not_judged": 3}
    failed = 5 if found.failures else 0
    gates = [parse_gate(text) for text in texts]
    reference = Reference("", "", "", 0, "")
    worst: set[int] = {failed}
    for variant in found.variants[1:]:
        if not gates or found.failure(variant.name, found.batches[0]):
            continue
        timings = timings_of(found, variant.name, found.variants[0].name)
        candidate = Candidate(variant.name, "candidate", timings=timings)
        checks = [judge(gate, candidate, reference) for gate in gates]
        for made in checks:
            print(f"{made.state.upper():12} {variant.name}: {made.gate}: {made.text}")
        worst.add(codes[combine(checks)])
    return next(code for code in (5, 1, 3, 0) if code in worst)
