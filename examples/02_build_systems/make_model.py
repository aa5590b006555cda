"""Write model.onnx, calib.npz and eval.npz: a small classifier for the build systems to compress.

    python make_model.py FOLDER

A convolutional net with random features and a head fitted by ridge regression on Fashion-MNIST
(the data of example 01): a real classifier, trained in seconds, without torch.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "01_image_classifier"))
import fashion_data

WIDTHS = (1, 32, 64, 64)
FEATURES = WIDTHS[-1] * 4 * 4
EVALUATED = 2_000


def build(weight: np.ndarray, bias: np.ndarray) -> onnx.ModelProto:
    """Three 3x3 convolutions with ReLU, average pooling to 4x4, a linear head."""
    rng = np.random.default_rng(0)
    tensors = {"head.weight": weight, "head.bias": bias}
    nodes, x = [], "image"
    for i, (fan_in, width) in enumerate(pairwise(WIDTHS)):
        name, stride = f"conv{i}", [1, 1] if i == 0 else [2, 2]
        tensors[f"{name}.weight"] = rng.normal(0, (2 / fan_in / 9) ** 0.5, (width, fan_in, 3, 3))
        inputs = [x, f"{name}.weight"]
        nodes.append(
            helper.make_node("Conv", inputs, [name], name, strides=stride, pads=[1, 1, 1, 1])
        )
        nodes.append(helper.make_node("Relu", [name], [x := f"{name}.relu"], f"{name}.relu"))
    pads = {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 0, 1, 1]}
    nodes += [
        helper.make_node("AveragePool", [x], ["pooled"], "pool", **pads),
        helper.make_node("Flatten", ["pooled"], ["features"], "flatten"),
        helper.make_node(
            "Gemm", ["features", "head.weight", "head.bias"], ["logits"], "head", transB=1
        ),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 28, 28])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])
    stored = [numpy_helper.from_array(v.astype(np.float32), n) for n, v in tensors.items()]
    graph = helper.make_graph(nodes, "classifier", [image], [logits], stored)
    opset = [helper.make_opsetid("", 21)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10)


def fit(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias of the head: ridge regression on the features of `images`."""
    probe = build(np.zeros((10, FEATURES)), np.zeros(10))
    probe.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", FEATURES])
    )
    session = ort.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    parts = [
        session.run(None, {"image": images[i : i + 500]})[0] for i in range(0, len(images), 500)
    ]
    x = np.concatenate(parts).astype(np.float64)
    mean = x.mean(0)
    gram = (x - mean).T @ (x - mean)
    gram += 1e-3 * np.trace(gram) / len(gram) * np.eye(len(gram))
    weight = np.linalg.solve(gram, (x - mean).T @ np.eye(10)[labels]).T * 10
    return weight, -weight @ mean


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    train, test = fashion_data.selection(), fashion_data.evaluation()
    more = fashion_data.calibration()
    images = np.concatenate([train["image"], more["image"]])
    weight, bias = fit(images, np.concatenate([train["labels"], more["labels"]]))
    onnx.save(build(weight, bias), folder / "model.onnx")
    np.savez(folder / "calib.npz", image=more["image"][:300])
    np.savez(folder / "eval.npz", **{name: array[:EVALUATED] for name, array in test.items()})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
