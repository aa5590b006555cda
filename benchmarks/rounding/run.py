"""Four bits: nearest rounding against reconstruction, on the zoo's models and both engines.

    python -m benchmarks.rounding.run [NAME…] --zoo out/zoo

Each model, stored in 4 bits under float kernels (every weight) and, where layers take INT8, under
INT8 kernels (every weight, and the default 97 % of the values). Score on evaluation data by the
model's own metric,
SQNR of the outputs to the original's on 200 of its samples, seconds of the step, bytes. Writes
results.json beside this file; models there that are not asked for stay.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.quantization.cases import Case, zoo  # noqa: E402
from compressor.env import StepEnv  # noqa: E402
from compressor.stateful import RecurrentState, over_sequences  # noqa: E402
from compressor.steps import load_step, load_target, parse_options  # noqa: E402
from exporters.base import Context, Samples, StepSpec, Trial  # noqa: E402
from runtimes.base import load_runtime  # noqa: E402
from runtimes.errors import CompressError  # noqa: E402
from runtimes.types import Artifact  # noqa: E402

HERE = Path(__file__).parent
COMPARED = 200
# Steps before the rounding, and its options.
FORMS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "float kernels": ([], {"share": 1.0}),
    "int8 kernels": (["quantize_static"], {"share": 1.0}),
    "int8 kernels, 97 %": (["quantize_static"], {}),
}
ROUNDINGS = {"nearest": "quantize_weights", "reconstructed": "reconstruct_weights"}


def no_trial(artifact: Artifact) -> Trial:
    """None of these steps searches."""
    raise RuntimeError(f"no trials here: {artifact.root}")


def step(case: Case, target: str, given: Artifact, name: str, options: Any, root: Path) -> Artifact:
    """`given` after one step, as in a run for `target`."""
    found = load_target(target)
    folders = [Path(tempfile.mkdtemp(dir=root)) for _ in range(3)]
    context = Context(target=target, scheme=found.scheme, dims=case.judge.dims)
    data: dict[str, Samples] = {"calibration": case.opened.opened.data["calibration"]}
    env = StepEnv(
        *folders,
        context=context,
        data=data,
        reference=case.source,
        factory=None,
        log=logging.getLogger("benchmark"),
        on_progress=lambda *_: None,
        on_trial=no_trial,
    )
    parsed = parse_options(StepSpec(name, options), name)
    return load_step(name).run(given, parsed, env)


def outputs(case: Case, artifact: Artifact, engine: str) -> list[Any]:
    """Outputs on the first samples of the evaluation data, batch after batch."""
    samples = case.judge.samples
    state = RecurrentState.of(artifact)
    found = []
    with load_runtime(engine).open_session(artifact) as session:
        once = session.run if state is None else over_sequences(session.run, state)
        for _, feeds in samples.batches(10, range(min(COMPARED, len(samples)))):
            found.append(once(feeds))
    return found


def sqnr_db(want: list[Any], got: list[Any]) -> float:
    """10·log10(signal / noise) over all float outputs."""
    signal = noise = 0.0
    for first, second in zip(want, got, strict=True):
        for name, value in first.items():
            if value.dtype.kind == "f":
                signal += float((value.astype(np.float64) ** 2).sum())
                noise += float(((second[name] - value.astype(np.float64)) ** 2).sum())
    return round(float(10 * np.log10(signal / max(noise, 1e-30))), 2)


def measured(case: Case, target: str, root: Path) -> dict[str, Any]:
    """Every form and rounding on one engine."""
    prepared = step(case, target, case.source, f"to_{target}", {}, root)
    want = outputs(case, prepared, target)
    rows: dict[str, Any] = {}
    for form, (before, options) in FORMS.items():
        for name, rounding in ROUNDINGS.items():
            try:
                given = prepared
                for earlier in before:
                    given = step(case, target, given, earlier, {}, root)
                began = time.perf_counter()
                made = step(case, target, given, rounding, options, root)
                seconds = time.perf_counter() - began
                found = case.judge.score(made, target, "CPU", "score")
            except CompressError as error:
                rows[f"{form}, {name}"] = {"failed": error.text().splitlines()[0]}
                continue
            rows[f"{form}, {name}"] = {
                "score": None if found is None or found.value is None else round(found.value, 4),
                "sqnr_db": sqnr_db(want, outputs(case, made, target)),
                "reduction": round(1 - made.size_bytes / case.size_bytes, 4),
                "seconds": round(seconds, 1),
            }
            print(f"  {target:12s} {form:18s} {name:13s}", rows[f"{form}, {name}"], flush=True)
    return rows


def main() -> None:
    """Measure the named models, or all that are there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--zoo", type=Path, default=ROOT / "out" / "zoo")
    parser.add_argument("--engine", action="append", choices=["onnxruntime", "openvino"])
    parser.add_argument("--cache", type=Path, default=ROOT / "out" / "rounding")
    args = parser.parse_args()
    path = HERE / "results.json"
    kept = json.loads(path.read_text()) if path.is_file() else {"models": {}}
    kept["versions"] = {n: metadata.version(n) for n in ("numpy", "onnxruntime", "openvino")}
    kept["machine"] = platform.processor() or platform.machine()
    for case in zoo(args.zoo, args.names, args.cache, "quick"):
        original = case.base
        score = None if original.value is None else round(original.value, 4)
        print(case.name, case.card["metric"], score, flush=True)
        found = kept["models"].setdefault(case.name, {})
        found |= {"metric": case.card["metric"], "original": score}
        for engine in args.engine or ["onnxruntime", "openvino"]:
            with tempfile.TemporaryDirectory() as root:
                found[engine] = measured(case, engine, Path(root))
        path.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
