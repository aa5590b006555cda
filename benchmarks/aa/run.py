"""A/A: an artifact timed against itself, again and again. How often does "no difference" come out?

    python benchmarks/aa/run.py --effort default --runs 20

A perfect 95 % method contains the true ratio, 1, in 19 of 20 runs on average, and in at least 17 of
20 with a probability of 98 %. The model is a small convolutional net that the script makes itself;
`--artifact DIR` takes another. The result goes to aa.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from compressor.bench import BenchPlan, Variant, bench
from runtimes import host
from runtimes.types import Artifact, TensorSpec


def main() -> None:
    args = parser().parse_args()
    start = time.time()
    with tempfile.TemporaryDirectory() as folder:
        artifact = Artifact.load(args.artifact) if args.artifact else make_model(Path(folder) / "m")
        prepared = feeds(artifact, args.batch)
        runs = [one_run(artifact, prepared, seed, args) for seed in range(args.runs)]
    contain = sum(run["contains_1"] for run in runs)
    record = {
        "what": "an artifact timed against itself; does the interval of the ratio contain 1?",
        "effort": args.effort,
        "batch": args.batch,
        "threads": args.threads,
        "runtime": args.runtime,
        "runs": len(runs),
        "contain_1": contain,
        "widest_half_width": max(run["high"] / run["ratio"] - 1 for run in runs),
        "seconds": round(time.time() - start, 1),
        "host": host.facts(runs[0].pop("versions")),
        "results": runs,
    }
    args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"{contain} of {len(runs)} intervals contain 1; written to {args.out}")


def one_run(artifact: Artifact, prepared: list, seed: int, args: argparse.Namespace) -> dict:
    variants = [Variant(name, artifact, args.runtime) for name in ("one", "other")]
    plan = BenchPlan(
        args.effort, batches=(args.batch,), threads=args.threads, seed=seed, self_test=False
    )
    result = bench(variants, {args.batch: prepared}, plan)
    timing = result.timing("other", args.batch, "one")
    low, high = timing.speedup_interval
    print(
        f"run {seed + 1}: {timing.speedup:.4f} [{low:.4f}, {high:.4f}] {'; '.join(timing.doubts)}"
    )
    return {
        "seed": seed,
        "ratio": timing.speedup,
        "low": low,
        "high": high,
        "level": result.level,
        "contains_1": bool(low <= 1.0 <= high),
        "p50_ms": timing.p50_ms,
        "rounds": timing.rounds,
        "doubts": timing.doubts,
        "load_average": host.facts()["load_average"],
        **({"versions": result.versions("one")} if seed == 0 else {}),
    }


def feeds(artifact: Artifact, batch: int, count: int = 8) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [
        {
            spec.name: rng.standard_normal(
                [batch if isinstance(d, str) else d for d in spec.shape]
            ).astype(spec.dtype)
            for spec in artifact.inputs
        }
        for _ in range(count)
    ]


def make_model(root: Path, width: int = 32, layers: int = 4) -> Artifact:
    """Convolutions with ReLU on 28 x 28 images, a global average, ten outputs; seeded."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng, nodes, tensors, last, channels = np.random.default_rng(0), [], [], "image", 1
    for i in range(layers):
        weight = rng.standard_normal((width, channels, 3, 3)) / np.sqrt(9 * channels)
        tensors.append(numpy_helper.from_array(weight.astype(np.float32), f"w{i}"))
        nodes.append(helper.make_node("Conv", [last, f"w{i}"], [f"c{i}"], f"conv{i}", pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"], f"relu{i}"))
        last, channels = f"r{i}", width
    head = (rng.standard_normal((width, 10)) / np.sqrt(width)).astype(np.float32)
    tensors.append(numpy_helper.from_array(head, "head.weight"))
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["pooled"], "pool"))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"))
    nodes.append(helper.make_node("MatMul", ["flat", "head.weight"], ["logits"], "head"))
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 28, 28])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])
    graph = helper.make_graph(nodes, "aa", [image], [logits], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    root.mkdir(parents=True)
    onnx.save(model, root / "model.onnx")
    specs = (
        [TensorSpec("image", "float32", ("batch", 1, 28, 28))],
        [TensorSpec("logits", "float32", ("batch", 10))],
    )
    return Artifact.write(root, "onnxruntime", "model.onnx", *specs)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    made.add_argument("--runs", type=int, default=20)
    made.add_argument("--effort", default="default", choices=("quick", "default", "certify"))
    made.add_argument("--batch", type=int, default=1)
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--runtime", default="onnxruntime")
    made.add_argument(
        "--artifact", type=Path, help="an artifact's folder instead of the made model"
    )
    made.add_argument("--out", type=Path, default=Path(__file__).with_name("aa.json"))
    return made


if __name__ == "__main__":
    main()
