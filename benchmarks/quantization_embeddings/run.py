"""Which form of a stored embedding is looked up fast, and what it holds in memory.

    python benchmarks/quantization_embeddings/run.py

Tables of `SIZES` (tokens, width), looked up by 32 ids in ONNX Runtime on one thread. For each form:
the file's bytes, the session's resident bytes over an empty process's and the seconds to open it
(each in a process of its own), and the time of a call over the float table's (both alternate in one
run). Writes results.json beside this file.
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
import onnx
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.stamp import stamp  # noqa: E402
from compressor.quantization.onnx_weights import int4_tensor  # noqa: E402

SIZES = ((2000, 64), (8000, 128), (30522, 768), (50257, 768))
IDS, BLOCKS, CALLS = 32, 15, 200
FORMS = (
    "float: Gather",
    "INT8 → Cast → Mul → Gather",
    "INT8 → DequantizeLinear → Gather",
    "INT8 → Gather → Cast → Mul(Gather(scale))",
    "INT4 → Cast → Mul → Gather",
    "INT4 → Cast(INT8) → Gather → Cast → Mul(Gather(scale))",
)
_OPEN = """
import sys, time, resource
import onnxruntime as ort
import numpy as np
def resident():
    return int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize()
options = ort.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 3
before, began = resident(), time.perf_counter()
session = ort.InferenceSession(sys.argv[1], options, providers=['CPUExecutionProvider'])
seconds = time.perf_counter() - began
session.run(None, {'ids': np.zeros((1, 32), np.int64)})
print(resident() - before, seconds)
"""


def model(form: str, tokens: int, width: int) -> onnx.ModelProto:
    """A table in `form`, looked up by `ids`."""
    rng = np.random.default_rng(0)
    bits = 4 if form.startswith("INT4") else 8
    top = 7 if bits == 4 else 127
    whole = rng.integers(-top, top + 1, (tokens, width)).astype(np.int8)
    scale = rng.uniform(0.001, 0.002, (tokens, 1)).astype(np.float32)
    node, floats = helper.make_node, TensorProto.FLOAT
    stored = int4_tensor(whole, "w") if bits == 4 else numpy_helper.from_array(whole, "w")
    weights = [stored, numpy_helper.from_array(scale, "s")]
    if form.startswith("float"):
        weights = [numpy_helper.from_array(whole * scale, "w")]
        nodes = [node("Gather", ["w", "ids"], ["y"])]
    elif "Gather(scale)" in form:
        nodes = [node("Cast", ["w"], ["w8"], to=TensorProto.INT8)] if bits == 4 else []
        nodes += [
            node("Gather", ["w8" if bits == 4 else "w", "ids"], ["q"]),
            node("Gather", ["s", "ids"], ["gs"]),
            node("Cast", ["q"], ["f"], to=floats),
            node("Mul", ["f", "gs"], ["y"]),
        ]
    elif "DequantizeLinear" in form:
        weights[1] = numpy_helper.from_array(scale[:, 0], "s")
        nodes = [
            node("DequantizeLinear", ["w", "s"], ["f"], axis=0),
            node("Gather", ["f", "ids"], ["y"]),
        ]
    else:
        nodes = [
            node("Cast", ["w"], ["c"], to=floats),
            node("Mul", ["c", "s"], ["f"]),
            node("Gather", ["f", "ids"], ["y"]),
        ]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, [1, IDS])
    out = helper.make_tensor_value_info("y", floats, [1, IDS, width])
    graph = helper.make_graph(nodes, "g", [ids], [out], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def opened(path: Path, tokens: int):
    """A call of the session on random ids."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    ids = np.random.default_rng(1).integers(0, tokens, (1, IDS))
    return lambda: session.run(None, {"ids": ids})


def alternate(call, base) -> tuple[float, float]:
    """Median of a call's time over the base's, and the base's in microseconds."""
    ratios, bases = [], []
    for _ in range(BLOCKS):
        pair = []
        for one in (call, base):
            for _ in range(20):
                one()
            began = time.perf_counter()
            for _ in range(CALLS):
                one()
            pair.append((time.perf_counter() - began) / CALLS)
        ratios.append(pair[0] / pair[1])
        bases.append(pair[1] * 1e6)
    return round(statistics.median(ratios), 3), round(statistics.median(bases), 2)


def rows(tokens: int, width: int, folder: Path) -> list[dict]:
    """Every form of one table."""
    found, base = [], None
    place = folder / str(tokens)
    place.mkdir()
    for number, form in enumerate(FORMS):
        path = place / f"{number}.onnx"
        path.write_bytes(model(form, tokens, width).SerializeToString())
        told = subprocess.run(
            [sys.executable, "-c", _OPEN, path], capture_output=True, text=True, check=True
        ).stdout.split()
        call = opened(path, tokens)
        base = base or call
        ratio, base_us = alternate(call, base)
        row = {
            "form": form, "tokens": tokens, "width": width, "bytes": path.stat().st_size,
            "resident_bytes": int(told[0]), "open_seconds": round(float(told[1]), 4),
            "time_over_float": ratio, "float_us": base_us,
        }  # fmt: skip
        print(json.dumps(row, ensure_ascii=False), flush=True)
        found.append(row)
    return found


def main() -> None:
    """Measure and write."""
    with tempfile.TemporaryDirectory() as folder:
        tables = [row for size in SIZES for row in rows(*size, Path(folder))]
    results = {"tables": tables, **stamp()}
    (HERE / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
