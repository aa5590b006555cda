"""Which form of a recurrent layer is smallest and fastest on each engine: what plans rest on.

    python benchmarks/quantization_recurrent/run.py

One layer of each kind, 50 steps and one step, batch 1. For each form that the steps write: bytes
and time of one inference on one thread relative to the float model (both alternate in one run),
and the signal-to-noise ratio of the outputs. Beside them ONNX Runtime's own quantize_dynamic.
Weights are random: bytes and times mean something here, the noise only among the forms. Writes
results.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from compressor.sources import SourceSpec, open_source  # noqa: E402
from compressor.steps import load_step, load_target, parse_options  # noqa: E402
from exporters.base import Context, StepSpec  # noqa: E402
from runtimes.base import load_runtime  # noqa: E402
from runtimes.types import Artifact  # noqa: E402
from tests.net import Net  # noqa: E402
from tests.step_env import make_env  # noqa: E402

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
CASES = [  # kind, units, both directions, steps (None: any number)
    ("LSTM", 64, False, None), ("LSTM", 256, False, None), ("LSTM", 128, True, None),
    ("LSTM", 512, False, None), ("GRU", 128, False, None), ("GRU", 256, False, None),
    ("GRU", 400, False, None), ("GRU", 400, True, None), ("GRU", 128, False, 1),
    ("GRU", 192, False, 1), ("GRU", 256, False, 1), ("GRU", 400, False, 1),
    ("RNN", 128, False, None), ("RNN", 256, False, None), ("RNN", 512, False, None),
    ("RNN", 256, False, 1), ("RNN", 512, False, 1),
]  # fmt: skip
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "dynamic INT8": ("quantize_dynamic", {"least": 1}),
    "dynamic INT8, 4 bits stored": ("quantize_dynamic", {"least": 1, "store": 4, "share": 1.0}),
    "float, 8 bits stored": ("quantize_weights", {"bits": 8}),
    "float, 4 bits stored": ("quantize_weights", {"bits": 4, "share": 1.0}),
}


def model(kind: str, hidden: int, *, both: bool, steps: int | None) -> onnx.ModelProto:
    """One layer with as many inputs as units."""
    net, gates, d, k = Net(0), GATES[kind], 2 if both else 1, hidden**-0.5
    weights = [
        net.constant(name, net.rng.uniform(-k, k, shape))
        for name, shape in (
            ("W", (d, gates * hidden, hidden)),
            ("R", (d, gates * hidden, hidden)),
            ("B", (d, 2 * gates * hidden)),
        )
    ]
    more: dict[str, Any] = {"direction": "bidirectional"} if both else {}
    if kind == "GRU":
        more["linear_before_reset"] = 1
    net.op(kind, "x", *weights, name="rnn", hidden_size=hidden, **more)
    length: Any = steps or "steps"
    shapes = {"x": [length, "batch", hidden]}
    return net.model(shapes, {"y": ("rnn.out", [length, d, "batch", hidden])})


def step(folder: Path, name: str, given: Artifact, target: str, **options: Any) -> Artifact:
    """`given` after one step."""
    context = Context(target=target, scheme=load_target(target).scheme)
    env = make_env(folder, reference=given, data={}, context=context, name=f"{name}-{len(options)}")
    return load_step(name).run(given, parse_options(StepSpec(name, options), name), env)


def own_quantizer(given: Artifact, folder: Path) -> Artifact:
    """ONNX Runtime's quantize_dynamic with its defaults, per channel."""
    from onnxruntime.quantization import quantize_dynamic

    folder.mkdir()
    quantize_dynamic(given.path, folder / given.entry, per_channel=True)
    return Artifact.write(folder, given.format, given.entry, given.inputs, given.outputs, {})


def forms(given: Artifact, target: str, folder: Path) -> Iterator[tuple[str, Artifact]]:
    """Every form of the float model `given` there is for `target`."""
    if target == "onnxruntime":
        yield "onnxruntime's quantize_dynamic", own_quantizer(given, folder / "peer")
    for number, (form, (name, options)) in enumerate(FORMS.items()):
        if target == "onnxruntime" or name == "quantize_weights":
            yield form, step(folder / str(number), name, given, target, **options)


def compare(first: Artifact, second: Artifact, target: str, steps: int, rounds: int) -> list[float]:
    """[ms of the first, time of the second over the first's, SQNR in dB], alternating."""
    width = int(first.inputs[0].shape[2])
    x = np.random.default_rng(1).standard_normal((steps, 1, width)).astype(np.float32)
    engine = load_runtime(target)
    with engine.open_session(first) as a, engine.open_session(second) as b:
        want, got = a.run({"x": x})["y"], b.run({"x": x})["y"]
        calls = [session.bind({"x": x}) for session in (a, b)]
        taken: list[list[float]] = [[], []]
        for _ in range(rounds):
            for call, times in zip(calls, taken, strict=True):
                call()
                begin = time.perf_counter()
                for _ in range(5):
                    call()
                times.append((time.perf_counter() - begin) / 5 * 1e3)
        noise = float(((want - got) ** 2).sum())
    sqnr = 10 * np.log10(float((want**2).sum()) / max(noise, 1e-30))
    ratio = statistics.median(y / x for x, y in zip(*taken, strict=True))
    return [round(statistics.median(taken[0]), 4), round(ratio, 3), round(float(sqnr), 1)]


def measure(
    kind: str, hidden: int, *, both: bool, fixed: int | None, target: str, rounds: int
) -> dict[str, Any]:
    """One layer in all forms on one engine."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        onnx.save(model(kind, hidden, both=both, steps=fixed), folder / "net.onnx")
        source = open_source(SourceSpec(model=folder / "net.onnx"), folder / "source")
        given = step(folder / "twin", f"to_{target}", source, target)
        rows = {}
        for form, made in forms(given, target, folder):
            timed = {
                n: compare(given, made, target, n, rounds) for n in ((fixed,) if fixed else (50, 1))
            }
            rows[form] = {
                "bytes": made.size_bytes,
                "reduction": round(1 - made.size_bytes / given.size_bytes, 4),
                "time_over_float": {str(n): row[1] for n, row in timed.items()},
                "sqnr_db": next(iter(timed.values()))[2],
            }
            float_ms = {str(n): row[0] for n, row in timed.items()}
        return {"float_bytes": given.size_bytes, "float_ms": float_ms, "forms": rows}


def main() -> None:
    """Measure everything and write results.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    arguments = parser.parse_args()
    results: dict[str, Any] = {"command": "python benchmarks/quantization_recurrent/run.py"}
    results["versions"] = {
        **load_runtime("onnxruntime").versions(),
        **load_runtime("openvino").versions(),
    }
    for target in ("onnxruntime", "openvino"):
        for kind, hidden, both, steps in CASES:
            title = f"{kind} {hidden}{' both ways' if both else ''}{', one step' if steps else ''}"
            rounds = arguments.rounds
            found = measure(kind, hidden, both=both, fixed=steps, target=target, rounds=rounds)
            results.setdefault(target, {})[title] = found
            for form, row in found["forms"].items():
                print(target, title, form, row, flush=True)
    arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
