"""Writing a small ONNX graph down, op by op; `tests/models.py` is written with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper


class Net:
    """A graph being written down: `weight` and `op` return the name to feed to the next op."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []

    def constant(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def weight(self, name: str, *shape: int) -> str:
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else shape[0]
        return self.constant(name, self.rng.normal(0, np.sqrt(2 / fan_in), shape))

    def op(self, kind: str, *inputs: str, name: str, outputs: int = 1, **attributes: Any) -> str:
        made = [f"{name}.out{i or ''}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, made, name=name, **attributes))
        return made[0]

    def conv(self, x: str, name: str, shape: Sequence[int], **attributes: Any) -> str:
        """Convolution of weight `shape` (padded to keep the size) and its batch-norm."""
        out, side = shape[0], shape[-1]
        weight = self.weight(f"{name}.weight", *shape)
        x = self.op("Conv", x, weight, name=name, pads=[side // 2] * 4, **attributes)
        scale = self.constant(f"{name}.bn.weight", self.rng.uniform(0.5, 1.5, out))
        bias = self.constant(f"{name}.bn.bias", self.rng.normal(0, 0.1, out))
        mean = self.constant(f"{name}.bn.mean", self.rng.normal(0, 0.1, out))
        variance = self.constant(f"{name}.bn.var", self.rng.uniform(0.5, 1.5, out))
        return self.op("BatchNormalization", x, scale, bias, mean, variance, name=f"{name}.bn")

    def gemm(self, x: str, name: str, before: int, after: int) -> str:
        weight = self.weight(f"{name}.weight", after, before)
        bias = self.constant(f"{name}.bias", self.rng.normal(0, 0.1, after))
        return self.op("Gemm", x, weight, bias, name=name, transB=1)

    def pool_head(self, x: str, width: int) -> str:
        x = self.op("GlobalAveragePool", x, name="pool")
        return self.gemm(self.op("Flatten", x, name="flatten"), "head", width, 10)

    def linear(self, x: str, name: str, before: int, after: int) -> str:
        """What a transformer's projection exports to: MatMul with [before, after], then Add."""
        weight = self.constant(f"{name}.weight", self.weight_values(before, after))
        bias = self.constant(f"{name}.bias", self.rng.normal(0, 0.02, after))
        product = self.op("MatMul", x, weight, name=name)
        return self.op("Add", product, bias, name=f"{name}.add")

    def weight_values(self, *shape: int) -> np.ndarray:
        return self.rng.normal(0, 1 / np.sqrt(shape[0]), shape)

    def model(
        self,
        inputs: Mapping[str, Sequence[int | str]],
        outputs: Mapping[str, tuple[str, Sequence[int | str]]],
        integers: Sequence[str] = (),
        metadata: Mapping[str, str] | None = None,
        opset: int = 21,
    ) -> ModelProto:
        """`outputs`: public name → (name inside, shape); `integers`: inputs that are int64."""
        renamed = {inside: name for name, (inside, _) in outputs.items()}
        for node in self.nodes:
            for field in (node.input, node.output):
                field[:] = [renamed.get(name, name) for name in field]
        dtypes = dict.fromkeys(integers, TensorProto.INT64)
        shapes = {**inputs, **{name: shape for name, (_, shape) in outputs.items()}}
        specs = {
            name: helper.make_tensor_value_info(name, dtypes.get(name, TensorProto.FLOAT), shape)
            for name, shape in shapes.items()
        }
        graph = helper.make_graph(
            self.nodes,
            "tests",
            [specs[i] for i in inputs],
            [specs[o] for o in outputs],
            self.weights,
        )
        made = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10
        )
        helper.set_model_props(made, dict(metadata or {}))
        return made

    def classifier(self, x: str, **inputs: Sequence[int | str]) -> ModelProto:
        return self.model(inputs, {"logits": (x, ["batch", 10])})
