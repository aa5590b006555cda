"""What a product that adds its bias by itself saves: whole models of the zoo, fused and not.

    python -m examples.zoo bert gpt vit gcn --out out/zoo
    python benchmarks/quantization_fusion/run.py --zoo out/zoo [--models bert,gpt,vit,gcn]

Each model is quantized as the rung `int8-w4` does, with and without its last step, `fuse_products`,
and the two are timed in one run at batch 1 on one thread, alternating. Writes results.json: the
products fused, the largest difference of the answers, bytes, and time with over time without.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import compressor  # noqa: E402
from benchmarks.modules import graph_recipe_of  # noqa: E402
from benchmarks.stamp import stamp  # noqa: E402
from compressor.bench import BenchPlan, Variant, bench  # noqa: E402
from compressor.quantization.fusion import products  # noqa: E402
from exporters._onnx_graph import load_model  # noqa: E402
from exporters.to_onnxruntime import TARGET  # noqa: E402
from runtimes.base import load_runtime  # noqa: E402
from runtimes.types import Artifact  # noqa: E402

RUNG = next(rung for rung in TARGET.ladder if rung.name == "int8-w4")
STEPS = [step for step in RUNG.steps if step.name != "quantize_dynamic"]  # takes what static left
GATES = ["relative_drop<=100%", "speedup>=0.01", "size_reduction>=0%"]


def built(name: str, zoo: Path, fused: bool, store: Path, out: Path) -> Artifact:
    """The zoo's `name` in INT8 with 4-bit weights."""
    steps = STEPS if fused else STEPS[:-1]
    recipe = graph_recipe_of(name, zoo, ("calibration", "selection", "evaluation")) | {
        "targets": {"onnxruntime": {"steps": [{s.name: dict(s.options)} for s in steps]}},
        "gates": GATES, "measure": {"effort": "quick"},
    }  # fmt: skip
    compressor.compress(None, recipe, out=out, store=store)
    return Artifact.load(out / "onnxruntime")


def row(name: str, zoo: Path, effort: str) -> dict[str, Any]:
    """Both, side by side."""
    with tempfile.TemporaryDirectory() as work:
        place = Path(work)
        apart, whole = (built(name, zoo, f, place / "store", place / str(f)) for f in (False, True))
        feeds = {n: a[:1] for n, a in np.load(zoo / name / "calibration.npz").items()}
        feeds = {spec.name: feeds[spec.name] for spec in whole.inputs}
        answers = []
        for artifact in (apart, whole):
            with load_runtime("onnxruntime").open_session(artifact, threads=1) as session:
                answers.append(session.run(feeds))
        variants = [
            Variant(n, a, "onnxruntime", "CPU") for n, a in (("apart", apart), ("fused", whole))
        ]
        plan = BenchPlan(effort=effort, batches=(1,), seed=0)
        timing = bench(variants, {1: [feeds]}, plan).timing("fused", 1, "apart")
        first, second = answers
        return {
            "products": len(products(load_model(apart.path))),
            "difference": max(float(np.abs(first[n] - second[n]).max()) for n in first),
            "bytes": {"apart": apart.size_bytes, "fused": whole.size_bytes},
            "speedup": timing.speedup, "interval": timing.speedup_interval,
            "p50_ms": timing.p50_ms,
        }  # fmt: skip


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--zoo", type=Path, default=ROOT / "out" / "zoo")
    parser.add_argument("--models", default="bert,gpt,vit,gcn")
    parser.add_argument("--effort", choices=("quick", "default", "certify"), default="default")
    args = parser.parse_args()
    rows = {name: row(name, args.zoo, args.effort) for name in args.models.split(",")}
    text = json.dumps({"rows": rows, **stamp()}, indent=1) + "\n"
    (HERE / "results.json").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
