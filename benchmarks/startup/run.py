"""How long `compress --help`, `plan` and an up-to-date `run` take, as whole processes.

    python benchmarks/startup/run.py

Medians over 15 runs each go to `results.json` beside this file, next to a bare `python -c pass`.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from tests import models  # noqa: E402

RUNS = 15


def seconds(command: list[str], folder: Path) -> list[float]:
    env = os.environ | {"COMPRESS_HOME": str(folder / "store"), "PYTHONPATH": str(ROOT)}
    taken = []
    for _ in range(RUNS + 1):
        began = time.perf_counter()
        subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True)
        taken.append(time.perf_counter() - began)
    return taken[1:]


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        fitted = models.trained(models.convnet(), models.fashion_like(2000, seed=0))
        models.save(fitted, folder / "net.onnx")
        np.savez(folder / "calib.npz", image=models.fashion_like(200, seed=1)["image"])
        np.savez(folder / "eval.npz", **models.fashion_like(1000, seed=2))
        python, compress = [sys.executable], [sys.executable, "-m", "compressor"]
        flags = ["net.onnx", "--target", "onnxruntime", "--target", "openvino",
                 "--calibration", "calib.npz", "--evaluation", "eval.npz", "--metric", "top1",
                 "--gate", "speedup>=0.01", "--max-drop", "0.9"]  # fmt: skip
        commands = {
            "python -c pass": [*python, "-c", "pass"],
            "compress --help": [*compress, "--help"],
            "compress plan": [*compress, "plan", *flags],
            "compress run, up to date": [
                *compress, "run", *flags, "--effort", "quick", "--if-changed", "-o", "out",
            ],
        }  # fmt: skip
        measured = {name: seconds(command, folder) for name, command in commands.items()}
    result = {
        name: {"median_s": round(statistics.median(v), 3), "max_s": round(max(v), 3), "runs": RUNS}
        for name, v in measured.items()
    }
    (HERE / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
