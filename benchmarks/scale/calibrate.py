"""Calibration of one model on many samples, ours or ONNX Runtime's entropy calibrator.

    python calibrate.py ours|minmax|entropy MODEL.onnx CALIBRATION.npz SAMPLES OUT

`ours` is the step `quantize_static` for ONNX Runtime with its least-squares method, which keeps a
histogram a tensor as the entropy calibrator does; `minmax` is the same without. The parent watches
the memory.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import runtimes  # noqa: E402, F401 - keeps telemetry out


def ours(model: Path, data: Path, count: int, out: Path, method: str) -> None:
    """Our step, on the cleaned model."""
    from compressor.data import open_data
    from compressor.sources import SourceSpec, open_source
    from compressor.steps import load_step, load_target, parse_options
    from exporters.base import Context, StepSpec
    from tests.step_env import make_env

    (out / "source").mkdir(parents=True)
    made = open_source(SourceSpec(model, base_dir=ROOT), out / "source")
    samples = open_data(str(data), "calibration", made.inputs, ROOT)
    sizes = zip(made.inputs[0].shape, samples.feeds([0])[made.inputs[0].name].shape, strict=True)
    dims = {name: size for name, size in sizes if isinstance(name, str)}
    context = Context(target="onnxruntime", scheme=load_target("onnxruntime").scheme, dims=dims)
    steps = (
        StepSpec("to_onnxruntime"),
        StepSpec("quantize_static", {"samples": count, "method": method}),
    )
    for spec in steps:
        env = make_env(
            out / spec.name, reference=made, data={"calibration": samples}, context=context
        )
        made = load_step(spec.name).run(made, parse_options(spec, spec.name), env)
    print(made.size_bytes)


def entropy(model: Path, data: Path, count: int, out: Path) -> None:
    """`quantize_static` with `CalibrationMethod.Entropy`, one sample at a time."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, quantize_static

    arrays = dict(np.load(data, mmap_mode="r"))

    class Reader(CalibrationDataReader):
        at = 0

        def get_next(self) -> dict[str, np.ndarray] | None:
            i, self.at = self.at, self.at + 1
            return {k: v[i : i + 1] for k, v in arrays.items()} if i < count else None

    out.mkdir(parents=True, exist_ok=True)
    made = out / "model.onnx"
    quantize_static(str(model), str(made), Reader(), calibrate_method=CalibrationMethod.Entropy)
    print(made.stat().st_size)


def main() -> None:
    """One calibration; the size of what it wrote on stdout."""
    who, model, data, count, out = sys.argv[1:]
    logging.disable(logging.WARNING)
    if who == "entropy":
        entropy(Path(model), Path(data), int(count), Path(out))
    else:
        ours(Path(model), Path(data), int(count), Path(out), "mse" if who == "ours" else who)


if __name__ == "__main__":
    main()
