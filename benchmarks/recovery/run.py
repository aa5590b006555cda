"""What ways of recovery bring at equal minutes: features beside outputs, precision, rounds.

    python -m examples.zoo resnet vit --out out/zoo
    python benchmarks/recovery/run.py once --zoo out/zoo [--cases resnet:0.27 vit:0.6]
    python benchmarks/recovery/run.py rounds --zoo out/zoo [--cases resnet:0.5 resnet:0.2]
    python benchmarks/recovery/run.py aim --zoo out/zoo [--cases resnet:0.27 gpt:0.7]

A case is a model of the zoo and the fraction of its MACs that stays. `once` prunes once and
recovers by outputs alone, with three features, and in float32 (else the step's own choice of
precision); `rounds` prunes and recovers once, twice, three times; `aim` recovers towards the
outputs, and towards the probabilities of their classes as well.
Each row has `--minutes` of recovery in all on one thread, of processor time, so that whatever else
runs on the machine takes no steps from a row. It is scored with the zoo's metric on the evaluation
data in ONNX Runtime; `distance` is from the original on the same data, in units of its variance.
Writes results.json, one entry an experiment and case.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.modules import recipe_of  # noqa: E402
from benchmarks.stamp import stamp  # noqa: E402
from compressor import engine, session  # noqa: E402
from compressor.recipe import parse_recipe  # noqa: E402
from compressor.recovery import schedule  # noqa: E402
from compressor.recovery.losses import distance  # noqa: E402
from compressor.session import Request, Session  # noqa: E402
from compressor.sources.torch_io import batches, call  # noqa: E402
from compressor.store import Store  # noqa: E402

Row = dict[str, Any]
WAYS: dict[str, dict[str, Row]] = {
    "once": {
        "outputs": {"features": "none"},
        "three features": {"features": 3},
        "float32": {"features": "none", "precision": "float32"},
    },
    "rounds": {str(n): {"features": "none", "rounds": n} for n in (1, 2, 3)},
    "aim": {aim: {"features": "none", "aim": aim} for aim in ("outputs", "scores")},
}
CASES = {
    "once": ["resnet:0.27", "vit:0.6"],
    "rounds": ["resnet:0.5", "resnet:0.2"],
    "aim": ["resnet:0.27", "vit:0.6", "gpt:0.7", "unet:0.5"],
}


def main() -> None:
    """Measure, merge, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", choices=list(WAYS))
    parser.add_argument("--zoo", type=Path, default=ROOT / "out" / "zoo")
    parser.add_argument("--cases", nargs="+")
    parser.add_argument("--minutes", type=float, default=1.0, help="of recovery, a row")
    parser.add_argument("--json", type=Path, default=HERE / "results.json")
    args = parser.parse_args()
    session.STEP_THREADS = 1
    clock: Any = SimpleNamespace(monotonic=time.process_time)
    schedule.time = engine.time = clock
    results: Row = json.loads(args.json.read_text()) if args.json.is_file() else {}
    for case in args.cases or CASES[args.experiment]:
        name, share = case.split(":")
        rows = {}
        with tempfile.TemporaryDirectory() as store:
            for way, options in WAYS[args.experiment].items():
                rows[way] = measured(name, float(share), options, args, Path(store))
                print(f"{args.experiment} {case} {way}: {json.dumps(rows[way])}", flush=True)
        title = f"{args.experiment}: {name} at {float(share):g} of its MACs"
        results[title] = {"rows": rows, "minutes": args.minutes, **stamp()}
        args.json.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


def measured(name: str, share: float, options: Row, args: argparse.Namespace, store: Path) -> Row:
    """One row: pruned and recovered, scored, and held against the original."""
    recipe = recipe_of(name, args.zoo, ("training", "calibration", "evaluation")) | {
        "steps": [
            {"prune_channels": {"keep": {"macs": share}}},
            {"recover": {"minutes": args.minutes, "rounds": 1, **options}},
        ],
        "targets": {"onnxruntime": {"steps": ["to_onnxruntime"]}},
    }
    request = Request(parse_recipe(recipe, name), ROOT, store / "out", Store(store / "store"))
    opened = Session(request)
    made = opened.engine.advance(opened.engine.source, opened.plan.shared)
    steps = [r for r in opened.engine.records if r.step == "recover"]
    told = made.facts["recover"]
    onnx = opened.engine.advance(made, opened.plan.targets[0].rungs[0].steps)
    reference = opened.reference()
    score = opened.judge.score(onnx, "onnxruntime", "CPU", name)
    assert score is not None
    return {
        "score": score.value,
        "score_before": reference.score.value,
        "macs": made.facts["macs"],
        "parameters": made.facts["parameters"],
        "distance": _distance(opened, made),
        "steps_of_last": told["steps_done"],
        "seconds": [s.seconds for s in steps],
        "features": told["features"],
        "precision": told["precision"],
    }


def _distance(opened: Session, made: Any) -> float:
    import torch

    from compressor.modules import load_module

    factory, data = opened.engine.factory, opened.opened.evaluation
    assert data is not None
    original, student = (load_module(a, factory) for a in (opened.engine.source, made))
    total = 0.0
    with torch.no_grad():
        for batch in batches(made.inputs, data, len(data), 250):
            total += float(distance(call(student, batch), call(original, batch))) * len(batch[0])
    return total / len(data)


if __name__ == "__main__":
    began = time.monotonic()
    main()
    print(f"{time.monotonic() - began:.0f} s")
