"""Low ranks where a layer's lost energy is weighed by what the outputs lose, and where it is not.

    python -m examples.zoo gpt bert vit --out out/zoo
    python benchmarks/pruning/weighed.py --zoo out/zoo [--models gpt,bert,vit] [--keep 0.58]

Each model is factorized to `--keep` of its parameters, not trained, and scored on its evaluation
data on ONNX Runtime; once as `factorize_layers` does it and once with all layers' shares of energy
worth the same. Writes weighed.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import compressor  # noqa: E402
from benchmarks.modules import recipe_of  # noqa: E402
from benchmarks.stamp import stamp  # noqa: E402
from compressor.passes import factorize_layers  # noqa: E402

WEIGHED = factorize_layers.stakes


def alike(_: Any, found: Any, *__: Any) -> dict[str, float]:
    """A share of energy is worth the same in every layer."""
    return {one.name: 1.0 for one in found}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--zoo", type=Path, default=ROOT / "out" / "zoo")
    parser.add_argument("--models", default="gpt,bert,vit")
    parser.add_argument("--keep", type=float, default=0.58, help="of the parameters")
    parser.add_argument("--json", type=Path, default=HERE / "weighed.json")
    args = parser.parse_args()
    rows = {}
    for name in args.models.split(","):
        found = {way: score(name, args, way) for way in ("weighed", "alike")}
        rows[name] = found
        print(name, json.dumps(found), flush=True)
    args.json.write_text(json.dumps({"keep": args.keep, "rows": rows, **stamp()}, indent=1) + "\n")


def score(name: str, args: argparse.Namespace, way: str) -> dict[str, Any]:
    """Metric of the original and of the factorized model."""
    factorize_layers.stakes = WEIGHED if way == "weighed" else alike
    recipe = recipe_of(name, args.zoo, ("calibration", "selection", "evaluation")) | {
        "steps": [{"factorize_layers": {"keep": {"params": args.keep}}}],
        "targets": {"onnxruntime": {"steps": ["to_onnxruntime"]}},
        "gates": ["relative_drop<=100%", "speedup>=0.01", "size_reduction>=0%"],
        "measure": {"effort": "quick"},
    }
    with tempfile.TemporaryDirectory() as store, tempfile.TemporaryDirectory() as out:
        record = compressor.compress(None, recipe, out=out, store=Path(store)).record
    built = next(c for c in record.targets[0].candidates if c.role == "candidate")
    assert built.score is not None
    return {
        "metric": built.score.metric, "original": record.reference.score.value,
        "score": built.score.value, "parameters": built.parameters,
        "parameters_before": record.reference.parameters,
    }  # fmt: skip


if __name__ == "__main__":
    main()
