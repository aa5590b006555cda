"""Small real ONNX models and data for everyone's tests: seeded, no torch, each in about ten lines.

`ALL` maps a name to its builder. Classifiers end in a Gemm called `head` that gives `logits`
[batch, 10]; `trained(model, data)` fits that head, so that accuracy on the data means something.
`feeds(model, batch, seed)` makes inputs for any of them. Integer inputs take values in 0-9.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from tests.data_sets import Arrays
from tests.data_sets import digits as digits
from tests.data_sets import fashion_like as fashion_like
from tests.net import Net

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
CLASSES = tuple(f"class {i}" for i in range(10))
METADATA = {"names": json.dumps(dict(enumerate(CLASSES))), "stride": "4", "author": "tests"}


def mlp(seed: int = 0, size: int = 28) -> ModelProto:
    net = Net(seed)
    x = net.op("Flatten", "image", name="flatten")
    x = net.op("Relu", net.gemm(x, "fc1", size * size, 64), name="relu1")
    x = net.op("Relu", net.gemm(x, "fc2", 64, 64), name="relu2")
    return net.classifier(net.gemm(x, "head", 64, 10), image=["batch", 1, size, size])


def convnet(seed: int = 0, size: int = 28, width: int = 16, opset: int = 21) -> ModelProto:
    """Conv-BN-ReLU, a residual block, max pool, global average pool, Gemm; has metadata."""
    net = Net(seed)
    x = net.op("Relu", net.conv("image", "stem", (width, 1, 3, 3)), name="stem.relu")
    y = net.op("Relu", net.conv(x, "block.conv1", (width, width, 3, 3)), name="block.relu1")
    y = net.op("Add", net.conv(y, "block.conv2", (width, width, 3, 3)), x, name="block.add")
    x = net.op("Relu", y, name="block.relu2")
    x = net.op("MaxPool", x, name="maxpool", kernel_shape=[2, 2], strides=[2, 2])
    x = net.conv(x, "conv3", (2 * width, width, 3, 3), strides=[2, 2])
    x = net.pool_head(net.op("Relu", x, name="relu3"), 2 * width)
    shapes = {"image": ["batch", 1, size, size]}
    return net.model(shapes, {"logits": (x, ["batch", 10])}, metadata=METADATA, opset=opset)


def depthwise(seed: int = 0) -> ModelProto:
    """An inverted residual as in MobileNetV2: 1x1, depthwise 3x3, 1x1, with ReLU6 as Clip."""
    net = Net(seed)
    low, high = net.constant("zero", 0), net.constant("six", 6)
    x = net.op(
        "Clip", net.conv("image", "stem", (8, 1, 3, 3), strides=[2, 2]), low, high, name="stem.clip"
    )
    y = net.op("Clip", net.conv(x, "expand", (32, 8, 1, 1)), low, high, name="expand.clip")
    y = net.conv(y, "depthwise", (32, 1, 3, 3), group=32)
    y = net.conv(net.op("Clip", y, low, high, name="depthwise.clip"), "project", (8, 32, 1, 1))
    x = net.conv(net.op("Add", x, y, name="add"), "last", (32, 8, 1, 1))
    x = net.pool_head(net.op("Relu", x, name="last.relu"), 32)
    return net.classifier(x, image=["batch", 1, 28, 28])


def hardswish_net(seed: int = 0) -> ModelProto:
    """Convolutions with HardSwish and a squeeze-and-excitation gate, as in MobileNetV3."""
    net = Net(seed)
    x = net.op("HardSwish", net.conv("image", "stem", (16, 1, 3, 3), strides=[2, 2]), name="act1")
    s = net.op("GlobalAveragePool", x, name="squeeze")
    s = net.op("Relu", net.conv(s, "reduce", (8, 16, 1, 1)), name="reduce.relu")
    s = net.op(
        "HardSigmoid", net.conv(s, "excite", (16, 8, 1, 1)), name="gate", alpha=1 / 6, beta=0.5
    )
    x = net.conv(net.op("Mul", x, s, name="scale"), "conv2", (32, 16, 3, 3))
    x = net.pool_head(net.op("HardSwish", x, name="act2"), 32)
    return net.classifier(x, image=["batch", 1, 28, 28])


def unet(seed: int = 0) -> ModelProto:
    """One level down and up: ConvTranspose, Concat with the skip, Resize; a mask comes out."""
    net = Net(seed)
    skip = net.op("Relu", net.conv("image", "down", (8, 1, 3, 3)), name="down.relu")
    x = net.op("MaxPool", skip, name="maxpool", kernel_shape=[2, 2], strides=[2, 2])
    x = net.op("Relu", net.conv(x, "bottom", (16, 8, 3, 3)), name="bottom.relu")
    up = net.op("ConvTranspose", x, net.weight("up.weight", 16, 8, 2, 2), name="up", strides=[2, 2])
    near = net.op(
        "Resize", x, "", net.constant("scales", [1, 1, 2, 2]), name="resize", mode="nearest"
    )
    x = net.op("Concat", up, near, skip, name="concat", axis=1)
    x = net.op("Sigmoid", net.conv(x, "mask", (1, 32, 1, 1)), name="sigmoid")
    shape = ["batch", 1, 28, 28]
    return net.model({"image": shape}, {"mask": (x, shape)})


def recurrent(kind: str, seed: int, hidden: int = 32, features: int = 28) -> ModelProto:
    """The rows of an image as a sequence of free length; the last hidden state is classified."""
    net, gates = Net(seed), {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    x = net.op("Transpose", "sequence", name="time_first", perm=[1, 0, 2])
    w = net.constant("rnn.W", net.rng.uniform(-0.2, 0.2, (1, gates * hidden, features)))
    r = net.constant("rnn.R", net.rng.uniform(-0.2, 0.2, (1, gates * hidden, hidden)))
    b = net.constant("rnn.B", net.rng.uniform(-0.1, 0.1, (1, 2 * gates * hidden)))
    more = {"linear_before_reset": 1} if kind == "GRU" else {}
    net.op(kind, x, w, r, b, name="rnn", outputs=2, hidden_size=hidden, **more)
    last = net.op("Squeeze", "rnn.out1", net.constant("axis", [0], np.int64), name="last")
    return net.classifier(net.gemm(last, "head", hidden, 10), sequence=["batch", "time", features])


def lstm(seed: int = 0) -> ModelProto:
    return recurrent("LSTM", seed)


def gru(seed: int = 0) -> ModelProto:
    return recurrent("GRU", seed)


def streaming_gru(seed: int = 0, hidden: int = 16) -> ModelProto:
    """One step of a GRU whose state is an input and an output: `h_in` → `h_out`."""
    net = Net(seed)
    axis = net.constant("axis", [0], np.int64)
    x = net.op("Unsqueeze", "frame", axis, name="frame_as_sequence")
    h = net.op("Unsqueeze", "h_in", axis, name="state_as_layer")
    w = net.constant("gru.W", net.rng.uniform(-0.2, 0.2, (1, 3 * hidden, 8)))
    r = net.constant("gru.R", net.rng.uniform(-0.2, 0.2, (1, 3 * hidden, hidden)))
    b = net.constant("gru.B", net.rng.uniform(-0.1, 0.1, (1, 6 * hidden)))
    net.op(
        "GRU", x, w, r, b, "", h, name="gru", outputs=2, hidden_size=hidden, linear_before_reset=1
    )
    state = net.op("Squeeze", "gru.out1", axis, name="state")
    mask = net.op("Sigmoid", net.gemm(state, "head", hidden, 8), name="mask")
    return net.model(
        {"frame": ["batch", 8], "h_in": ["batch", hidden]},
        {"mask": (mask, ["batch", 8]), "h_out": (state, ["batch", hidden])},
    )


def transformer_block(seed: int = 0, width: int = 32, heads: int = 2) -> ModelProto:
    """Pre-norm attention and MLP over tokens of free length, mean over time, head."""
    net = Net(seed)
    split = net.constant("split", [0, 0, heads, width // heads], np.int64)
    join = net.constant("join", [0, 0, width], np.int64)

    def norm(x: str, name: str) -> str:
        scale = net.constant(f"{name}.weight", net.rng.uniform(0.5, 1.5, width))
        bias = net.constant(f"{name}.bias", net.rng.normal(0, 0.1, width))
        return net.op("LayerNormalization", x, scale, bias, name=name, axis=-1, epsilon=1e-5)

    def part(x: str, name: str, perm: list[int]) -> str:
        x = net.op("Reshape", net.linear(x, name, width, width), split, name=f"{name}.split")
        return net.op("Transpose", x, name=f"{name}.heads", perm=perm)

    x = norm("tokens", "norm1")
    q, v = part(x, "q", [0, 2, 1, 3]), part(x, "v", [0, 2, 1, 3])
    scores = net.op("MatMul", q, part(x, "k", [0, 2, 3, 1]), name="scores")
    scale = net.constant("scale", (width // heads) ** -0.5)
    scores = net.op("Mul", scores, scale, name="scaled")
    y = net.op("MatMul", net.op("Softmax", scores, name="softmax", axis=-1), v, name="attend")
    y = net.op("Transpose", y, name="unheads", perm=[0, 2, 1, 3])
    y = net.linear(net.op("Reshape", y, join, name="joined"), "project", width, width)
    x = net.op("Add", "tokens", y, name="residual1")
    y = net.op("Gelu", net.linear(norm(x, "norm2"), "mlp1", width, 4 * width), name="gelu")
    x = net.op("Add", x, net.linear(y, "mlp2", 4 * width, width), name="residual2")
    x = net.op("ReduceMean", x, net.constant("time", [1], np.int64), name="mean", keepdims=0)
    return net.classifier(net.gemm(x, "head", width, 10), tokens=["batch", "time", width])


def constant_weights(seed: int = 0) -> ModelProto:
    """`mlp` with its weights in Constant nodes."""
    model = mlp(seed)
    tensors = list(model.graph.initializer)
    del model.graph.initializer[:]
    for tensor in reversed(tensors):
        node = helper.make_node(
            "Constant", [], [tensor.name], name=f"{tensor.name}.value", value=tensor
        )
        model.graph.node.insert(0, node)
    return model


def if_subgraph(seed: int = 0) -> ModelProto:
    """Two nets inside an If: bright images take one, dark ones the other (both one batch)."""
    net = Net(seed)
    branches = []
    for name in ("bright", "dark"):
        inner = Net(seed + len(branches) + 1)
        x = inner.op("Flatten", "image", name=f"{name}.flatten")
        x = inner.op("Relu", inner.gemm(x, f"{name}.fc", 784, 32), name=f"{name}.relu")
        x = inner.gemm(x, f"{name}.head", 32, 10)
        out = helper.make_tensor_value_info(x, FLOAT, ["batch", 10])
        branches.append(helper.make_graph(inner.nodes, name, [], [out], inner.weights))
    brightest = net.op("ReduceMax", "image", name="brightest", keepdims=0)
    bright = net.op("Greater", brightest, net.constant("half", 0.5), name="is_bright")
    x = net.op("If", bright, name="choice", then_branch=branches[0], else_branch=branches[1])
    return net.classifier(x, image=["batch", 1, 28, 28])


def two_inputs(seed: int = 0) -> ModelProto:
    """A float input `features` [batch, 12] and an int64 input `category` [batch]."""
    net = Net(seed)
    e = net.op("Gather", net.weight("embedding.weight", 10, 8), "category", name="embedding")
    x = net.op("Concat", "features", e, name="concat", axis=1)
    x = net.op("Relu", net.gemm(x, "fc1", 20, 64), name="relu1")
    x = net.gemm(x, "head", 64, 10)
    shapes = {"features": ["batch", 12], "category": ["batch"]}
    return net.model(shapes, {"logits": (x, ["batch", 10])}, integers=["category"])


def int_embedding(seed: int = 0) -> ModelProto:
    """Token ids in, their mean embedding classified: most bytes are the embedding's."""
    net = Net(seed)
    x = net.op("Gather", net.weight("embedding.weight", 500, 32), "ids", name="embedding")
    x = net.op("ReduceMean", x, net.constant("time", [1], np.int64), name="mean", keepdims=0)
    x = net.gemm(x, "head", 32, 10)
    outputs = {"logits": (x, ["batch", 10])}
    return net.model({"ids": ["batch", "time"]}, outputs, integers=["ids"], metadata=METADATA)


def shared_weight(seed: int = 0) -> ModelProto:
    """One weight used by two MatMuls (a change for one is a change for both)."""
    net = Net(seed)
    weight = net.constant("shared.weight", net.weight_values(32, 32))
    x = net.op("Relu", net.op("MatMul", "features", weight, name="first"), name="relu")
    x = net.op("Relu", net.op("MatMul", x, weight, name="second"), name="relu2")
    return net.classifier(net.gemm(x, "head", 32, 10), features=["batch", 32])


def already_quantized(seed: int = 0) -> ModelProto:
    """A convolution and a Gemm between QuantizeLinear and DequantizeLinear, INT8 weights."""
    net = Net(seed)

    def activation(x: str, name: str, scale: float) -> str:
        s, z = net.constant(f"{name}.scale", scale), net.constant(f"{name}.zero", 0, np.uint8)
        x = net.op("QuantizeLinear", x, s, z, name=f"{name}.q")
        return net.op("DequantizeLinear", x, s, z, name=f"{name}.dq")

    def weight(name: str, *shape: int) -> str:
        w = net.rng.integers(-127, 128, shape)
        s = net.constant(f"{name}.scale", net.rng.uniform(0.001, 0.003, shape[0]))
        z = net.constant(f"{name}.zero", np.zeros(shape[0]), np.int8)
        return net.op(
            "DequantizeLinear", net.constant(name, w, np.int8), s, z, name=f"{name}.dq", axis=0
        )

    x = net.op(
        "Conv", activation("image", "in", 1 / 255), weight("conv.w", 16, 1, 3, 3), name="conv"
    )
    x = activation(net.op("Relu", x, name="relu"), "mid", 0.01)
    x = net.op("Flatten", net.op("GlobalAveragePool", x, name="pool"), name="flatten")
    x = net.op(
        "Gemm", activation(x, "pooled", 0.005), weight("head.w", 10, 16), name="head", transB=1
    )
    return net.classifier(x, image=["batch", 1, 28, 28])


def external_data(path: Path, seed: int = 0) -> ModelProto:
    """Write `mlp` to `path` with its weights in `<name>.data` beside it; the file's own proto."""
    location = path.name + ".data"
    onnx.save(mlp(seed), path, save_as_external_data=True, location=location, size_threshold=256)
    return onnx.load(path, load_external_data=False)


ALL: dict[str, Callable[[], ModelProto]] = {
    build.__name__: build
    for build in (
        mlp, convnet, depthwise, hardswish_net, unet, lstm, gru, streaming_gru, transformer_block,
        constant_weights, if_subgraph, two_inputs, int_embedding, shared_weight, already_quantized,
    )
}  # fmt: skip


def save(model: ModelProto, path: Path) -> Path:
    """Check `model`, write it to `path`, return `path`."""
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def feeds(model: ModelProto, batch: int = 4, seed: int = 0, free: int = 6) -> Arrays:
    """Inputs for `model`: floats in 0-1, integers in 0-9; other free dimensions become `free`."""
    rng = np.random.default_rng(seed)
    made = {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        sizes = {"batch": batch}
        shape = [d.dim_value or sizes.get(d.dim_param, free) for d in kind.shape.dim]
        if kind.elem_type == INT64:
            made[value.name] = rng.integers(0, 10, shape)
        else:
            made[value.name] = rng.random(shape, dtype=np.float32)
    return made


def run(model: ModelProto, inputs: Mapping[str, np.ndarray]) -> Arrays:
    """Outputs by name from ONNX Runtime, unoptimised, one thread: the reference in tests."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    content = model.SerializeToString()
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def trained(model: ModelProto, data: Mapping[str, np.ndarray], ridge: float = 1e-4) -> ModelProto:
    """A copy of `model` whose Gemm `head` is the ridge regression of `data["labels"]`.

    Random features and a fitted head make a real classifier in well under a second.
    """
    fitted = ModelProto.FromString(model.SerializeToString())
    (head,) = [node for node in fitted.graph.node if node.name == "head"]
    probe = ModelProto.FromString(model.SerializeToString())
    probe.graph.output.append(helper.make_tensor_value_info(head.input[0], FLOAT, None))
    x = run(probe, {k: v for k, v in data.items() if k != "labels"})[head.input[0]].astype(float)
    mean = x.mean(0)
    targets = np.eye(10)[data["labels"]] - 0.1
    gram = (x - mean).T @ (x - mean)
    gram += ridge * np.trace(gram) / len(gram) * np.eye(len(gram))
    weight = np.linalg.solve(gram, (x - mean).T @ targets).T * 10
    values = {head.input[1]: weight, head.input[2]: -weight @ mean}
    for tensor in fitted.graph.initializer:
        if tensor.name in values:
            made = numpy_helper.from_array(values[tensor.name].astype(np.float32), tensor.name)
            tensor.CopyFrom(made)
    return fitted
