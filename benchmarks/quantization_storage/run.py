"""Which forms of stored weights keep an engine's kernels: why quantize_weights writes what it does.

    python benchmarks/quantization_storage/run.py

Six convolutions of 128 channels (28 x 28). For each form: bytes, time of one inference on one
thread relative to the float model (both alternate in one run), and what the engine executed.
OpenVINO runs in float32 where it may choose. Writes results.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from compressor.quantization.onnx_weights import int4_tensor, pack_int4  # noqa: E402

CHANNELS, LAYERS, SIDE = 128, 6, 28
RNG = np.random.default_rng(0)
WEIGHTS = [RNG.integers(-7, 8, (CHANNELS, CHANNELS, 3, 3)).astype(np.int8) for _ in range(LAYERS)]
SCALES = [RNG.uniform(0.002, 0.004, CHANNELS).astype(np.float32) for _ in range(LAYERS)]

# Form → the nodes after the stored weight (storage type, then casts, then DQ or Mul), and whether
# activations are quantized.
ONNX_FORMS = {
    "float": ("float", (), False),
    "Q/DQ, INT8": ("int8", ("DQ",), True),
    "Q/DQ, INT4 → Cast(INT8) → DQ": ("int4", ("INT8", "DQ"), True),
    "Q/DQ, INT4 → DQ": ("int4", ("DQ",), True),
    "float, INT8 → DQ": ("int8", ("DQ",), False),
    "float, INT8 → Cast(FLOAT) → Mul": ("int8", ("FLOAT", "Mul"), False),
    "float, INT4 → Cast(FLOAT) → Mul": ("int4", ("FLOAT", "Mul"), False),
}
IR_FORMS = {
    "float": ("float", (), False),
    "FQ, i8 → f32 → Mul": ("int8", ("f32",), True),
    "FQ, i4 → f32 → Mul": ("int4", ("f32",), True),
    "FQ, i4 → i8 → f32 → Mul": ("int4", ("i8", "f32"), True),
    "float, i8 → f32 → Mul": ("int8", ("f32",), False),
    "float, i8 → i32 → f32 → Mul": ("int8", ("i32", "f32"), False),
    "float, i4 → i32 → f32 → Mul": ("int4", ("i32", "f32"), False),
}


def onnx_model(form: str) -> onnx.ModelProto:
    storage, chain, quantized = ONNX_FORMS[form]
    nodes, weights, x = [], [], "x"

    def add(array, name):
        weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    for i in range(LAYERS):
        if quantized:
            grid = [
                add(np.float32(0.03 if i else 0.04), f"s{i}"),
                add(np.uint8(0 if i else 128), f"z{i}"),
            ]
            nodes.append(helper.make_node("QuantizeLinear", [x, *grid], [f"q{i}"]))
            nodes.append(helper.make_node("DequantizeLinear", [f"q{i}", *grid], [f"d{i}"]))
            x = f"d{i}"
        if storage == "float":
            w = add(WEIGHTS[i] * SCALES[i].reshape(-1, 1, 1, 1), f"w{i}")
        elif storage == "int8":
            w = add(WEIGHTS[i], f"w{i}")
        else:
            weights.append(int4_tensor(WEIGHTS[i], f"w{i}"))
            w = f"w{i}"
        for number, link in enumerate(chain):
            out = f"w{i}_{number}"
            if link == "DQ":
                scale = add(SCALES[i], f"ws{i}")
                nodes.append(helper.make_node("DequantizeLinear", [w, scale], [out], axis=0))
            elif link == "Mul":
                scale = add(SCALES[i].reshape(-1, 1, 1, 1), f"ws{i}")
                nodes.append(helper.make_node("Mul", [w, scale], [out]))
            else:
                nodes.append(helper.make_node("Cast", [w], [out], to=getattr(TensorProto, link)))
            w = out
        bias = add(np.full(CHANNELS, 0.01, np.float32), f"b{i}")
        nodes.append(
            helper.make_node("Conv", [x, w, bias], [f"c{i}"], name=f"conv{i}", pads=[1] * 4)
        )
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"], name=f"relu{i}"))
        x = f"r{i}"
    if quantized:
        grid = [add(np.float32(0.03), "s"), add(np.uint8(0), "z")]
        nodes.append(helper.make_node("QuantizeLinear", [x, *grid], ["q"]))
        nodes.append(helper.make_node("DequantizeLinear", ["q", *grid], ["y"]))
    else:
        nodes.append(helper.make_node("Identity", [x], ["y"]))
    shape = [1, CHANNELS, SIDE, SIDE]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in "xy"]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def ir_model(form: str):
    import openvino as ov
    from openvino import opset13 as ops

    storage, chain, quantized = IR_FORMS[form]
    x = made = ops.parameter([1, CHANNELS, SIDE, SIDE], np.float32, name="x")
    for i in range(LAYERS):
        if quantized:
            low, high = (np.float32(v) for v in ((0, 7.65) if i else (-5.12, 5.08)))
            made = ops.fake_quantize(made, low, high, low, high, 256)
        scale = SCALES[i].reshape(-1, 1, 1, 1)
        if storage == "float":
            w = ops.constant(WEIGHTS[i] * scale)
        else:
            if storage == "int8":
                w = ops.constant(WEIGHTS[i])
            else:
                tensor = ov.Tensor(ov.Type.i4, ov.Shape(list(WEIGHTS[i].shape)))
                packed = np.frombuffer(pack_int4(WEIGHTS[i]), np.uint8)
                tensor.data.reshape(-1)[:] = packed.view(tensor.data.dtype)
                w = ov.op.Constant(tensor)
            for kind in chain:
                w = ops.convert(w, kind)
            w = ops.multiply(w, ops.constant(scale))
        made = ops.convolution(made, w, [1, 1], [1, 1], [1, 1], [1, 1])
        made = ops.relu(ops.add(made, ops.constant(np.full((1, CHANNELS, 1, 1), 0.01, np.float32))))
    return ov.Model([ops.result(made, name="y")], [x], "m")


def alternate(call, base, blocks: int) -> tuple[float, float]:
    """Median of call's time over base's, and base's time in ms."""
    ratios, bases = [], []
    for _ in range(blocks):
        pair = []
        for one in (call, base):
            one()
            times = []
            for _ in range(5):
                start = time.perf_counter_ns()
                one()
                times.append(time.perf_counter_ns() - start)
            pair.append(statistics.median(times))
        ratios.append(pair[0] / pair[1])
        bases.append(pair[1] / 1e6)
    return round(statistics.median(ratios), 3), round(statistics.median(bases), 2)


def on_onnxruntime(path: Path, feeds):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.optimized_model_filepath = str(path.with_suffix(".seen"))
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    ran = Counter(node.op_type for node in onnx.load(str(path.with_suffix(".seen"))).graph.node)
    return lambda: session.run(None, feeds), dict(ran)


def on_openvino(path: Path, feeds):
    import openvino as ov

    config = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": "1", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = ov.Core().compile_model(str(path), "CPU", config)
    request = compiled.create_infer_request()
    request.set_input_tensor(ov.Tensor(feeds["x"]))
    infos = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    ran = Counter(
        f"{info['layerType'].value} {info['runtimePrecision'].value}"
        for info in infos
        if info["layerType"].value not in {"Input", "Output", "Const"}
    )
    return lambda: request.infer(share_outputs=True), dict(ran)


def rows(forms, write, engine, folder: Path, feeds, blocks: int) -> list[dict]:
    found, base = [], None
    for number, form in enumerate(forms):
        place = folder / str(number)  # of its own: engines map the files they have open
        place.mkdir()
        size = write(form, place)
        call, ran = engine(next(place.glob("*.onnx"), None) or next(place.glob("*.xml")), feeds)
        base = base or (call, size)
        ratio, base_ms = alternate(call, base[0], blocks)
        row = {"form": form, "bytes": size, "reduction": round(1 - size / base[1], 4),
               "time_over_float": ratio, "float_ms": base_ms, "ran": ran}  # fmt: skip
        print(json.dumps(row, ensure_ascii=False), flush=True)
        found.append(row)
    return found


def write_onnx(form: str, folder: Path) -> int:
    path = folder / "model.onnx"
    path.write_bytes(onnx_model(form).SerializeToString())
    return path.stat().st_size


def write_ir(form: str, folder: Path) -> int:
    import openvino as ov

    ov.save_model(ir_model(form), str(folder / "model.xml"), compress_to_fp16=False)
    return sum((folder / f"model.{end}").stat().st_size for end in ("xml", "bin"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=15)
    parser.add_argument("--json", type=Path, default=HERE / "results.json")
    args = parser.parse_args()
    feeds = {"x": RNG.normal(size=(1, CHANNELS, SIDE, SIDE)).astype(np.float32)}
    plans = {
        "onnxruntime, ONNX": (ONNX_FORMS, write_onnx, on_onnxruntime),
        "openvino, ONNX": (ONNX_FORMS, write_onnx, on_openvino),
        "openvino, IR": (IR_FORMS, write_ir, on_openvino),
    }
    results = {}
    for name, (forms, write, engine) in plans.items():
        print(name)
        with tempfile.TemporaryDirectory() as folder:
            results[name] = rows(forms, write, engine, Path(folder), feeds, args.blocks)
    args.json.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
