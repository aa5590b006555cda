"""Patterns of zeros in an ONNX file: score and bytes, without training or labels.

    python -m examples.zoo resnet --out out/zoo
    python benchmarks/pruning/patterns.py --zoo out/zoo [--models resnet]

Each file goes through `compress` for ONNX Runtime: as it is, with zeros chosen and the rest
re-solved on calibration data, and with zeros by size alone (magnitude pruning, the control); each
as it is stored in float32 and in 4 bits. Scores are those of the evaluation data; bytes those of
the model file and of the model as it travels in the package. Nothing is timed: these engines
multiply with zeros. Writes patterns.json and patterns.md.
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
from benchmarks.modules import graph_recipe_of  # noqa: E402
from benchmarks.stamp import stamp  # noqa: E402

Row = dict[str, Any]
PATTERNS: dict[str, Row] = {
    "2:4": {"pattern": "2:4"},
    "50 %": {"sparsity": "50%"},
    "70 %": {"sparsity": "70%"},
}
SALIENCIES = {"re-solved": "reconstruction", "by size": "magnitude"}
STORED = {
    "float32": ["to_onnxruntime"],
    "4 bits": ["to_onnxruntime", "quantize_static", "reconstruct_weights"],
}
GATES = ["relative_drop<=100%", "size<=1B"]  # what fails on size is not timed


def main() -> None:
    """Measure, merge, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--zoo", type=Path, default=ROOT / "out" / "zoo")
    parser.add_argument("--models", default="resnet")
    parser.add_argument("--json", type=Path, default=HERE / "patterns.json")
    args = parser.parse_args()
    results: Row = json.loads(args.json.read_text()) if args.json.is_file() else {}
    for name in args.models.split(","):
        results[name] = one_model(name, args.zoo)
        args.json.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        args.json.with_suffix(".md").write_text(table(results))


def one_model(name: str, zoo: Path) -> Row:
    """Every row of one model, with when and where it was made."""
    steps: dict[str, list[Row]] = {"none": []}
    for pattern, options in PATTERNS.items():
        for way, saliency in SALIENCIES.items():
            steps[f"{pattern}, {way}"] = [{"prune_pattern": {**options, "saliency": saliency}}]
    rows = {}
    with tempfile.TemporaryDirectory() as store:
        for title, shared in steps.items():
            rows[title] = {
                how: measured(name, zoo, shared, own, Path(store)) for how, own in STORED.items()
            }
            print(f"{name} {title}: {json.dumps(rows[title])}", flush=True)
    return {"rows": rows, **stamp()}


def measured(name: str, zoo: Path, shared: list[Row], own: list[str], store: Path) -> Row:
    """Score and bytes of one candidate."""
    recipe = graph_recipe_of(name, zoo, ("calibration", "evaluation")) | {
        "steps": shared,
        "targets": {"onnxruntime": {"steps": own}},
        "gates": GATES,
        "measure": {"batch": [1], "threads": 1, "effort": "quick"},
    }
    with tempfile.TemporaryDirectory() as out:
        record = compressor.compress(None, recipe, out=out, store=store).record
    made = next(c for c in record.targets[0].candidates if c.role == "candidate")
    pruning = [s for s in record.steps if s.step == "prune_pattern"]
    return {
        "score": made.score.value if made.score else None,
        "drop": made.comparison.drop if made.comparison else None,
        "n": made.score.n if made.score else 0,
        "bytes": made.size_bytes,
        "package_bytes": made.package_bytes,
        "bytes_before": record.reference.size_bytes,
        "seconds": round(pruning[0].seconds, 1) if pruning else 0.0,
        "notes": pruning[0].notes if pruning else [],
    }


def table(results: Row) -> str:
    """`patterns.md`."""
    lines = [
        "# Patterns of zeros", "",
        "Written by `python benchmarks/pruning/patterns.py`, from patterns.json. `re-solved` is",
        "what `prune_pattern` does by default; `by size` sets the smallest weights to zero and",
        "leaves the others as they were. No training, no labels. Packages are how much smaller",
        "the model is as it travels, coded, than its FP32 ONNX file.", "",
    ]  # fmt: skip
    for name, entry in results.items():
        where = f"{entry['date']}, commit {entry['commit']}, {entry['host']['cpu']}"
        count = entry["rows"]["none"]["float32"]["n"]
        lines += [
            f"## {name}", "", f"{count:,} evaluation samples; {where}.", "",
            "| zeros | score | drop | package | score, 4 bits | drop | package | seconds |",
            "|---|--:|--:|--:|--:|--:|--:|--:|",
        ]  # fmt: skip
        for title, row in entry["rows"].items():
            cells = [title, *(cell for how in STORED for cell in _cells(row[how]))]
            lines.append("| " + " | ".join([*cells, f"{row['float32']['seconds']:g}"]) + " |")
        lines.append("")
    return "\n".join(lines)


def _cells(row: Row) -> list[str]:
    shrunk = 1 - row["package_bytes"] / row["bytes_before"]
    return [f"{row['score']:.4f}", f"{row['drop']:.4f}", f"−{shrunk:.1%}"]


if __name__ == "__main__":
    main()
