"""Static quantization as a step, against calling the library beneath it on the same data.

    python benchmarks/quantization_overhead/run.py

ONNX Runtime's quantizer is called as its documentation shows, with our settings (UINT8 activations,
INT8 weights per channel, min-max); NNCF on the OpenVINO model with its defaults. The model is a
residual CNN of 0.7 M parameters with random weights: only time counts. Medians of alternating
repetitions; includes reading and writing the files. Writes results.json beside this file.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from compressor.sources import SourceSpec, open_source  # noqa: E402
from compressor.steps import load_step, load_target  # noqa: E402
from exporters.base import Context  # noqa: E402
from runtimes.types import Artifact  # noqa: E402
from tests import models  # noqa: E402
from tests.step_env import ArraySamples, make_env  # noqa: E402

LIMIT = 1.3


def run_step(name: str, given: Artifact, images: np.ndarray, target: str) -> Artifact:
    step = load_step(name)
    context = Context(target=target, scheme=load_target(target).scheme, dims={"batch": 2})
    env = make_env(
        Path(tempfile.mkdtemp()),
        reference=given,
        data={"calibration": ArraySamples({"image": images})},
        context=context,
    )
    return step.run(given, step.Options(), env)


def with_onnxruntime(given: Artifact, images: np.ndarray) -> None:
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter(images)

        def get_next(self):
            image = next(self.rest, None)
            return None if image is None else {"image": image[None]}

    quantization.quantize_static(
        str(given.path),
        tempfile.mkdtemp() + "/model.onnx",
        Reader(),
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )


def with_nncf(given: Artifact, images: np.ndarray) -> None:
    import openvino

    from compressor.quantization.openvino_static import quiet_nncf

    nncf = quiet_nncf()
    model = openvino.Core().read_model(str(given.path))
    dataset = nncf.Dataset([{"image": image[None]} for image in images])
    with contextlib.redirect_stdout(io.StringIO()):
        made = nncf.quantize(model, dataset, subset_size=len(images))
    openvino.save_model(made, tempfile.mkdtemp() + "/model.xml", compress_to_fp16=False)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(given: Artifact, images: np.ndarray, target: str, repeat: int) -> dict:
    library = {"onnxruntime": with_onnxruntime, "openvino": with_nncf}[target]
    run_step("quantize_static", given, images[:16], target)  # imports and first-use costs
    library(given, images[:16])
    ours, theirs = [], []
    for _ in range(repeat):
        ours.append(seconds(lambda: run_step("quantize_static", given, images, target)))
        theirs.append(seconds(lambda: library(given, images)))
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {
        "ours_s": round(statistics.median(ours), 3),
        "library_s": round(statistics.median(theirs), 3),
        "ratio": round(statistics.median(ratios), 3),
        "limit": LIMIT,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path, default=HERE / "results.json")
    args = parser.parse_args()
    root = Path(tempfile.mkdtemp())
    path = models.save(models.convnet(width=96), root / "given.onnx")
    (root / "source").mkdir()
    spec = SourceSpec(model=path, weights=None, inputs={}, outputs=None, base_dir=root, shapes={})
    source = open_source(spec, root / "source")
    images = models.fashion_like(args.samples, seed=0)["image"]
    results = {}
    for target in ("onnxruntime", "openvino"):
        given = run_step(f"to_{target}", source, images, target)
        results[target] = compare(given, images, target, args.repeat)
        print(target, json.dumps(results[target]), flush=True)
    record = {"samples": args.samples, "repeat": args.repeat, "results": results}
    args.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0 if all(row["ratio"] <= LIMIT for row in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
