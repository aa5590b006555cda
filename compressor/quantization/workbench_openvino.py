"""Precisions tried on an OpenVINO model: a variant is a clone of the INT8 one with layers undone.

NNCF quantizes the whole model once. In a clone, a layer that is to stay float reads its float
weight again and its input past the FakeQuantize; the engine's own transformations then run as in
the artifact that ships.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from compressor.quantization.calibration import at_most, batches, count
from compressor.quantization.keep import kept
from compressor.quantization.onnx_storage_write import dequantized
from compressor.quantization.openvino_biases import (
    add_to_outputs,
    correctable,
    lost_mean,
    mean_inputs,
)
from compressor.quantization.openvino_ir import compiled_f32, read_ir
from compressor.quantization.openvino_names import named
from compressor.quantization.openvino_storage import round_weight
from compressor.quantization.openvino_weights import (
    WEIGHTED_TYPES,
    Weight,
    blockable,
    find_weights,
    readers_of,
)
from compressor.quantization.sensitivity import (
    BATCH,
    BLOCK,
    BLOCKS,
    FLOAT,
    INTEGER,
    Group,
    Outputs,
)
from compressor.quantization.substeps import run_steps
from compressor.quantization.workbench_onnx import members, options_of, stored_bytes
from exporters.base import Env
from runtimes.types import Artifact


class OpenVinoBench:
    """The workbench of an `openvino` artifact (an IR in float32)."""

    def __init__(self, source: Artifact, env: Env, samples: int, method: str = "minmax") -> None:
        self._source, self._env, self._method = source, env, method
        self.model = read_ir(source.path)
        stay = {n.removesuffix("/WithoutBiases") for n in kept(named(self.model), env.context.keep)}
        main = {op.get_friendly_name() for op in self.model.get_ordered_ops()}
        found = {w.top.get_friendly_name(): w for w in find_weights(self.model, 1)}
        # A clone's loop bodies are not its own nodes: weights in them stay as they are.
        self.weights = {k: w for k, w in found.items() if w.name not in stay and k in main}
        self._readers = {key: _named_readers(w) for key, w in self.weights.items()}
        self._members = members({key: w.name for key, w in self.weights.items()}, self.weights)
        groups = [self._group(name, found) for name, found in self._members.items()]
        self.groups = tuple(g for g in groups if len(g.options) > 1)
        data = env.data.get("selection", env.data["calibration"])
        self._feeds = list(batches(data, source.inputs, samples, source.facts.get("bounds"), BATCH))
        self._int8: Any = None
        self._means: dict[str, Any] | None = None

    def _group(self, name: str, weights: list[Weight]) -> Group:
        readers = [r for w in weights for r in self._readers[w.top.get_friendly_name()]]
        layers = tuple(dict.fromkeys(r.removesuffix("/WithoutBiases") for r, _, _ in readers))
        kinds = {kind for _, kind, _ in readers}
        elements = sum(int(w.values.size) for w in weights)
        blocks = any(blockable(w, BLOCK) for w in weights)
        options = options_of(elements, integer=kinds <= WEIGHTED_TYPES, blocks=blocks)
        return Group(name, readers[0][1], layers, elements, options)

    @property
    def samples(self) -> int:
        """How many the outputs are of."""
        return count(self._feeds)

    def fewer(self, samples: int) -> int:
        """Search on about so many samples from here on; how many batches that leaves."""
        self._feeds = at_most(self._feeds, samples)
        return len(self._feeds)

    def size_bytes(self, group: Group, option: str) -> int:
        """Stored bytes of the group's weights in that option, scales included."""
        total = 0
        for weight in self._members[group.name]:
            shape = weight.values.shape
            channels = shape[0] * shape[1] if weight.grouped else shape[weight.axis]
            scales = 4 * int(channels)
            if option == BLOCKS and blockable(weight, BLOCK):
                scales = 2 * int(weight.values.size) // BLOCK  # in half precision
            total += stored_bytes(int(weight.values.size), scales, option)
        return total

    def outputs(self, assign: Mapping[str, str]) -> Outputs:
        """Outputs on the search samples with groups (by name) in these options, the rest float."""
        integer = {g for g, option in assign.items() if option in INTEGER}
        model = (self._quantized() if integer else self.model).clone()
        ops = {op.get_friendly_name(): op for op in model.get_ordered_ops()}
        lost: dict[Any, Any] = {}
        for weight in self.weights.values():
            option = assign.get(weight.name, FLOAT)
            if option == FLOAT and not integer:
                continue
            self._set(ops, weight, option, lost)
        if integer:
            self._bypass(model, integer)
        if lost:
            add_to_outputs(lost)
        return self._run(model)

    def _quantized(self) -> Any:
        if self._int8 is None:
            spec = ("quantize_static", {"method": self._method})
            made = run_steps(self._source, [spec], self._env, "workbench")
            self._int8 = read_ir(made.path)
        return self._int8

    def _set(
        self, ops: Mapping[str, Any], weight: Weight, option: str, lost: dict[Any, Any]
    ) -> None:
        """Let the weight's layers read what it becomes in `option`."""
        from openvino import opset13

        if option == "int8":
            return  # as NNCF left it
        values = _rounded(weight, option)
        constant = opset13.constant(np.ascontiguousarray(values, np.float32))
        for name, _, port in self._readers[weight.top.get_friendly_name()]:
            layer = ops[name]
            layer.input(port).replace_source_output(constant.output(0))
            mean = self._mean(name) if option not in {FLOAT, "half"} else None
            if mean is not None:
                lost[layer] = lost_mean(layer, weight.values - values, mean)

    def _mean(self, layer: str) -> Any:
        """Mean of the layer's input channels, where its bias can take a correction."""
        if self._means is None:
            names = [
                op.get_friendly_name() for w in self.weights.values() for op in correctable(w.top)
            ]
            bounds = self._source.facts.get("bounds")
            data = self._env.data["calibration"]
            feeds = batches(data, self._source.inputs, 300, bounds, 1)
            self._means = mean_inputs(self.model, names, feeds) if names else {}
        return self._means.get(layer)

    def _bypass(self, model: Any, integer: set[str]) -> None:
        """Take out the FakeQuantize in front of what stays float."""
        group_of = {
            r: self.weights[key].name
            for key, readers in self._readers.items()
            for r, _, _ in readers
        }
        above: dict[str, frozenset[str]] = {}
        for op in model.get_ordered_ops():
            name = op.get_friendly_name()
            group = group_of.get(name)
            reads = (
                above.get(v.get_node().get_friendly_name(), frozenset()) for v in op.input_values()
            )
            needs = frozenset({group}) if group else frozenset().union(*reads)
            above[name] = needs
            if op.get_type_name() == "FakeQuantize" or (needs and needs <= integer):
                continue
            for port in op.inputs():
                made = port.get_source_output().get_node()
                if made.get_type_name() == "FakeQuantize" and not _of_weight(made):
                    port.replace_source_output(made.input_value(0))

    def _run(self, model: Any) -> Outputs:
        compiled = compiled_f32(model, self._env.context.threads)
        names = [spec.name for spec in self._source.outputs]
        found = []
        for feeds in self._feeds:
            results = compiled(dict(feeds)).to_tuple()
            found.append(dict(zip(names, (np.array(r) for r in results), strict=False)))
        return found


def _named_readers(weight: Weight) -> list[tuple[str, str, int]]:
    """Name, type and port of every layer that computes with a weight."""
    return [
        (op.get_friendly_name(), op.get_type_name(), port) for op, port in readers_of(weight.top)
    ]


def _of_weight(fake: Any) -> bool:
    return bool(fake.input_value(0).get_node().get_type_name() == "Constant")


def _rounded(weight: Weight, option: str) -> Any:
    if option == FLOAT:
        return weight.values
    if option == "half":
        return weight.values.astype(np.float16).astype(np.float32)
    if option == BLOCKS and blockable(weight, BLOCK):
        return dequantized(round_weight(weight, 4, BLOCK), weight.axis)
    made = round_weight(weight, 8 if option == "w8" else 4)
    return made.integers * made.scale
