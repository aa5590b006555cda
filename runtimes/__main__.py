"""`python -m runtimes`: run or time an artifact on a board, with numpy and the engine alone.

    python -m runtimes run DIR --feeds x.npz --out y.npz      outputs of one batch of feeds
    python -m runtimes bench DIR [--feeds x.npz] [--seconds 3]  latency in this one process
    python -m runtimes unpack DIR [--base OLD]                decode a package, or apply a delta
    python -m runtimes facts                                  what this machine is
    python -m runtimes serve                                  JSON lines, for the host side

All but the last print one JSON document; whatever an engine prints goes to the standard error.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from runtimes import host
from runtimes.arrays import read_arrays, write_arrays
from runtimes.base import load_runtime, runtime_names
from runtimes.errors import CompressError, UsageError
from runtimes.serve import private_streams, serve
from runtimes.timing import Measurement, Stopwatch, TimingPlan, clock_overhead_ns
from runtimes.types import Artifact, TensorSpec
from runtimes.unpack import check, restore


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run one verb; returns the exit code and prints one JSON document."""
    args = _parser().parse_args(argv)
    requests, answers = private_streams()
    try:
        if args.verb == "serve":
            serve(requests, answers)
            return 0
        answers.write(json.dumps(args.run(args), indent=1, sort_keys=True) + "\n")
        answers.flush()
        return 0
    except CompressError as error:
        sys.stderr.write(error.text() + "\n")
        return error.exit_code


def runtime_of(artifact: Artifact, name: Optional[str]) -> str:
    """The runtime to open `artifact` with: `name`, else the engine of its format's name."""
    if name:
        return name
    if artifact.format in runtime_names():
        return artifact.format
    fitting = [n for n in runtime_names() if artifact.format in load_runtime(n).FORMATS]
    if not fitting:
        raise UsageError("no runtime opens this format", where=artifact.format)
    return fitting[0]


def _run(args: argparse.Namespace) -> Dict[str, Any]:
    artifact = Artifact.load(args.artifact)
    artifact.verify()
    runtime = load_runtime(runtime_of(artifact, args.runtime))
    with runtime.open_session(artifact, threads=args.threads, device=args.device) as session:
        outputs = session.run(read_arrays(args.feeds))
        settings = session.settings
    write_arrays(args.out, outputs)
    shown = {
        name: {"dtype": str(value.dtype), "shape": list(value.shape)}
        for name, value in outputs.items()
    }
    return {"outputs": shown, "settings": settings, "versions": runtime.versions()}


def _bench(args: argparse.Namespace) -> Dict[str, Any]:
    artifact = Artifact.load(args.artifact)
    runtime = load_runtime(runtime_of(artifact, args.runtime))
    feeds = read_arrays(args.feeds) if args.feeds else random_feeds(artifact, args.batch)
    plan = TimingPlan()
    with runtime.open_session(artifact, threads=args.threads, device=args.device) as session:
        watch = Stopwatch([session.bind(feeds)])
        warm = watch.warm_up(plan)
        count = max(3, round(args.seconds * 1e9 / plan.block_ns))
        blocks = [watch.block(plan.block_ns, plan.block_iterations) for _ in range(count)]
        settings = session.settings
    measured = Measurement(
        batch=args.batch,
        threads=args.threads,
        blocks=tuple(blocks),
        warmups=(warm,),
        plan=plan,
        host=host.facts(runtime.versions()),
        clock_overhead_ns=clock_overhead_ns(),
    )
    return {
        **measured.to_json(),
        "settings": settings,
        "peak_rss_bytes": host.peak_rss_bytes(),
        "feeds": str(args.feeds) if args.feeds else "random, seed 0",
    }


def _unpack(args: argparse.Namespace) -> Dict[str, Any]:
    written = restore(args.package, args.base)
    return {"written": written, "verified": check(args.package)}


def _facts(_: argparse.Namespace) -> Dict[str, Any]:
    versions: Dict[str, str] = {}
    for name in runtime_names():
        module = load_runtime(name)
        if module.missing() is None and name != "torch":  # importing torch takes seconds
            versions.update(module.versions())
    return host.facts(versions)


def random_feeds(artifact: Artifact, batch: int) -> Dict[str, np.ndarray[Any, Any]]:
    """Seeded arrays for a model's inputs; the first axis is `batch`, other free ones typical."""
    rng = np.random.default_rng(0)
    dims = artifact.facts.get("dims", {})
    return {spec.name: _random(spec, batch, dims, rng) for spec in artifact.inputs}


def _random(
    spec: TensorSpec, batch: int, dims: Dict[str, int], rng: np.random.Generator
) -> np.ndarray[Any, Any]:
    shape: List[int] = []
    for axis, dim in enumerate(spec.shape):
        free = batch if axis == 0 else int(dims.get(str(dim), 1))
        shape.append(dim if isinstance(dim, int) else free)
    if np.dtype(spec.dtype).kind == "f":
        return rng.standard_normal(shape).astype(spec.dtype)
    return rng.integers(0, 2, shape).astype(spec.dtype)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m runtimes", description=__doc__.split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = _model_verb(verbs, "run", "outputs of one batch of feeds", _run)
    run.add_argument("--feeds", type=Path, required=True, help="an .npz with arrays by input name")
    run.add_argument("--out", type=Path, required=True, help="where the outputs go, as .npz")
    bench = _model_verb(verbs, "bench", "latency in this one process", _bench)
    bench.add_argument("--feeds", type=Path, help="an .npz with arrays by input name")
    bench.add_argument("--batch", type=int, default=1, help="batch size, without --feeds")
    bench.add_argument("--seconds", type=float, default=3.0, help="how long to measure")
    unpack = verbs.add_parser("unpack", help="decode a package that was unarchived, or a delta")
    unpack.add_argument("package", type=Path, help="its folder")
    unpack.add_argument("--base", type=Path, help="of a delta: the folder of the package before")
    unpack.set_defaults(run=_unpack)
    facts = verbs.add_parser("facts", help="what this machine is")
    facts.set_defaults(run=_facts)
    verbs.add_parser("serve", help="JSON lines, for the host side")
    return parser


def _model_verb(verbs: Any, name: str, text: str, run: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=text)
    parser.set_defaults(run=run)
    parser.add_argument("artifact", type=Path, help="the artifact's folder")
    parser.add_argument("--runtime", help="one of " + ", ".join(runtime_names()))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="CPU")
    return parser


if __name__ == "__main__":
    sys.exit(main())
