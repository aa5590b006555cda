"""Our INT8 and 4-bit steps beside the defaults of ONNX Runtime's quantizer and of NNCF.

    python benchmarks/quantization_engines/run.py [--models cnn,mlp] [--more x.onnx:x.npz]

Each variant is scored on held-out images and timed on one thread, in blocks that alternate with the
float twin of the same engine; `speedup` is the median ratio. Ratios within one run are comparable,
absolute times are not kept. Writes results.json beside this file.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

from compressor.sources import SourceSpec, open_source  # noqa: E402
from compressor.steps import load_step, load_target, parse_options  # noqa: E402
from exporters.base import Context, StepSpec  # noqa: E402
from runtimes.base import load_runtime  # noqa: E402
from runtimes.errors import BadArtifact  # noqa: E402
from runtimes.types import Artifact  # noqa: E402
from tests.step_env import ArraySamples, make_env  # noqa: E402

VARIANTS = {
    "int8": ("quantize_static",),
    "int8-w4": ("quantize_static", "quantize_weights"),
    "w8": (StepSpec("quantize_weights", {"bits": 8}),),
    "w4": ("quantize_weights",),
    "half": ("cast_half",),
}


class Case:
    """One model with its calibration and evaluation images."""

    def __init__(self, path: Path, calibration: np.ndarray, images: np.ndarray, labels: np.ndarray):
        self.name, self.path, self.work = path.stem, path, Path(tempfile.mkdtemp())
        self.calibration, self.images, self.labels = calibration, images, labels
        root = self.work / "source"
        root.mkdir()
        spec = SourceSpec(
            model=path, weights=None, inputs={}, outputs=None, base_dir=path.parent, shapes={}
        )
        self.source = open_source(spec, root)
        self.input = self.source.inputs[0].name

    def step(self, given: Artifact, spec: StepSpec | str, target: str) -> Artifact:
        spec = StepSpec(spec) if isinstance(spec, str) else spec
        data = {"calibration": ArraySamples({self.input: self.calibration})}
        context = Context(target=target, scheme=load_target(target).scheme, dims={"batch": 2})
        env = make_env(
            Path(tempfile.mkdtemp(dir=self.work)), reference=self.source, data=data, context=context
        )
        return load_step(spec.name).run(given, parse_options(spec, spec.name), env)

    def outputs(self, session) -> np.ndarray:
        found = [
            next(iter(session.run({self.input: self.images[i : i + 50]}).values()))
            for i in range(0, len(self.images), 50)
        ]
        return np.concatenate(found)


def ratio(twin, other, feeds, blocks: int) -> float:
    """Median time of `twin` over that of `other`, in alternating blocks."""
    calls, ratios = [twin.bind(feeds), other.bind(feeds)], []
    for _ in range(blocks):
        times = []
        for call in calls:
            call()
            samples = []
            for _ in range(15):
                start = time.perf_counter_ns()
                call()
                samples.append(time.perf_counter_ns() - start)
            times.append(statistics.median(samples))
        ratios.append(times[0] / times[1])
    return round(statistics.median(ratios), 2)


def measure(case: Case, twin: Artifact, made: Artifact, engine: str, blocks: int) -> dict:
    runtime = load_runtime(engine)
    with runtime.open_session(twin) as base, runtime.open_session(made) as session:
        want, got = case.outputs(base), case.outputs(session)
        noise = float(((got - want) ** 2).sum())
        row = {
            "bytes": made.size_bytes,
            "reduction": round(1 - made.size_bytes / case.path.stat().st_size, 4),
            "top1": round(float((got.argmax(1) == case.labels).mean()), 4),
            "agreement": round(float((got.argmax(1) == want.argmax(1)).mean()), 4),
            "sqnr_db": round(10 * np.log10(float((want**2).sum()) / noise), 1) if noise else None,
        }
        for batch in (1, 16):
            feeds = {case.input: case.images[:batch]}
            row[f"speedup_{batch}"] = ratio(base, session, feeds, blocks)
    layers = runtime.layer_precisions(made, feeds={case.input: case.images[:1]})
    row["layers"] = dict(Counter(layer.precision for layer in layers).most_common())
    return row


def foreign(case: Case, twin: Artifact, name: str, write: Callable[[Path, Path], None]) -> Artifact:
    """An artifact around what another tool writes from the twin's file."""
    root = Path(tempfile.mkdtemp(dir=case.work))
    with contextlib.redirect_stdout(io.StringIO()):
        write(twin.path, root / twin.entry)
    return Artifact.write(root, twin.format, twin.entry, twin.inputs, twin.outputs, {"tool": name})


def ort_default(case: Case) -> Callable[[Path, Path], None]:
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter(case.calibration)

        def get_next(self):
            image = next(self.rest, None)
            return None if image is None else {case.input: image[None]}

    def write(given: Path, made: Path) -> None:
        quantization.quantize_static(str(given), str(made), Reader(), per_channel=True)

    return write


def nncf_default(case: Case, engine: str) -> Callable[[Path, Path], None]:
    from compressor.quantization.openvino_static import quiet_nncf

    nncf = quiet_nncf()
    logging.getLogger("nncf").setLevel(logging.ERROR)
    dataset = nncf.Dataset([{case.input: image[None]} for image in case.calibration])

    def write(given: Path, made: Path) -> None:
        if engine == "onnxruntime":
            import onnx

            onnx.save(nncf.quantize(onnx.load(str(given)), dataset), str(made))
        else:
            import openvino

            model = nncf.quantize(openvino.Core().read_model(str(given)), dataset)
            openvino.save_model(model, str(made), compress_to_fp16=False)

    return write


def rows(case: Case, engine: str, blocks: int) -> dict[str, dict]:
    twin = case.step(case.source, f"to_{engine}", engine)
    found = {"float": measure(case, twin, twin, engine, blocks)}
    for name, steps in VARIANTS.items():
        made = twin
        for step in steps:
            made = case.step(made, step, engine)
        found[name] = measure(case, twin, made, engine, blocks)
    peers = {"nncf": nncf_default(case, engine)}
    if engine == "onnxruntime":
        peers["onnxruntime.quantization"] = ort_default(case)
    for name, write in peers.items():
        try:
            found[name] = measure(case, twin, foreign(case, twin, name, write), engine, blocks)
        except BadArtifact as error:
            found[name] = {"does_not_load": str(error).splitlines()[0].split(": ", 1)[-1]}
    return found


def cases(args: argparse.Namespace) -> list[Case]:
    import models

    args.folder.mkdir(parents=True, exist_ok=True)
    images, labels = models.data()
    held = images[models.TRAINED :], labels[models.TRAINED :]
    wanted = args.models.split(",") if args.models else list(models.EPOCHS)
    made = [
        Case(path, images[:300], *held) for path in models.make(args.folder) if path.stem in wanted
    ]
    for entry in args.more:
        path, arrays = entry.split(":")
        loaded = np.load(arrays)
        made.append(Case(Path(path), loaded["C"][:300], loaded["X"], loaded["y"]))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="")
    parser.add_argument(
        "--more", action="append", default=[], help="model.onnx:arrays.npz (X, y, C)"
    )
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "edge-compressor-nets"
    )
    parser.add_argument("--blocks", type=int, default=11)
    parser.add_argument("--json", type=Path, default=HERE / "results.json")
    args = parser.parse_args()
    results: dict = {}
    for case in cases(args):
        for engine in ("onnxruntime", "openvino"):
            found = rows(case, engine, args.blocks)
            results.setdefault(case.name, {})[engine] = found
            for name, row in found.items():
                print(case.name, engine, name, json.dumps(row), flush=True)
    import nncf
    import onnxruntime
    import openvino

    versions = {
        "nncf": nncf.__version__,
        "onnxruntime": onnxruntime.__version__,
        "openvino": openvino.__version__,
    }
    record = {"versions": versions, "threads": 1, "calibration": 300, "results": results}
    args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
