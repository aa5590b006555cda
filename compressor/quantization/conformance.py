"""Whether a quantized model is what its scheme declares, from the file alone: no engine, no data.

Every rule is one that an engine would break without a word: it falls back to float, saturates, or
dequantizes weights at each call. `quantize_static` checks what it writes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compressor.quantization.guards import fused, merged
from compressor.quantization.onnx_index import Index, index
from compressor.quantization.onnx_weights import float8
from compressor.quantization.placement import WEIGHTED
from exporters._onnx_graph import attribute, load_model, opset_of, output_axis
from exporters._onnx_opset import PER_CHANNEL
from exporters.base import QuantScheme
from runtimes.errors import BuildFailed
from runtimes.types import Artifact

_SHOWN = 5


@dataclass(frozen=True)
class Violation:
    """One place that is not as the scheme says: a node (or tensor), the rule, and both values."""

    where: str
    rule: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.where}: {self.rule}: expected {self.expected}, found {self.found}"


def violations(artifact: Artifact, scheme: QuantScheme) -> list[Violation]:
    """Every place of an `onnx`, `onnxruntime` or `openvino` artifact that breaks `scheme`.

    Layers that `facts["requested"]` calls float may read and give whatever they like.
    """
    rows = artifact.facts.get("requested", [])
    floats = {row["layer"] for row in rows if row["requested"] == "float32"}
    if artifact.path.suffix == ".xml":
        from compressor.quantization.conformance_openvino import openvino_violations
        from compressor.quantization.openvino_ir import read_ir

        return openvino_violations(read_ir(artifact.path), scheme)
    return onnx_violations(load_model(artifact.path), scheme, floats)


def require_conforming(found: Sequence[Violation], where: str) -> None:
    """Raise `BuildFailed` where a step of ours wrote what its own scheme forbids."""
    if not found:
        return
    more = f"\n  … and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    shown = "\n  ".join(map(str, found[:_SHOWN]))
    raise BuildFailed(
        f"the quantized model breaks its scheme, which is a bug of ours\n  {shown}{more}",
        where=where,
        fix="keep the layers named float, and report it with the model",
    )


def onnx_violations(
    model: Any, scheme: QuantScheme, floats: Collection[str] = ()
) -> list[Violation]:
    """Every place of an ONNX model's main graph that breaks `scheme`.

    Args:
        model: the `onnx.ModelProto`, with Q/DQ pairs.
        scheme: what its integers must be.
        floats: nodes that were left in float on purpose.
    """
    checks = _Checks(index(model), opset_of(model), scheme, frozenset(floats))
    return [*checks.nodes(), *checks.kept_twice()]


class _Checks:
    """The rules, over one indexed graph."""

    def __init__(
        self, graph: Index, opset: int, scheme: QuantScheme, floats: frozenset[str]
    ) -> None:
        self.graph, self.opset, self.scheme, self.floats = graph, opset, scheme, floats
        self.kind = np.dtype(np.int8 if scheme.activation_signed else np.uint8)
        if scheme.number == "float8":
            self.kind = float8()
        self.integer = {
            node.name
            for node in graph.graph.node
            if node.op_type in WEIGHTED and self._from_integers(node.input[1], constant=True)
        }

    def nodes(self) -> Iterator[Violation]:
        for node in self.graph.graph.node:
            if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
                yield from self._scale(node)
            if node.op_type == "QuantizeLinear":
                yield from self._activation(node)
            elif node.op_type == "DequantizeLinear":
                yield from self._dequantized(node)
            elif node.name in self.floats or node.op_type in self.scheme.never:
                yield from self._float(node)
            elif node.op_type in WEIGHTED:
                yield from self._weighted(node)
            elif node.op_type in self.scheme.passthrough:
                yield from self._passthrough(node)
            elif self.scheme.fused and merged(self.graph, node, self._is_integer, self._is_paired):
                yield Violation(node.name, "merged with a Gemm", "a pair behind it", "float")

    def kept_twice(self) -> Iterator[Violation]:
        """Initializers that nobody reads: above all float weights beside their integers."""
        for tensor in self.graph.weights.values():
            if tensor.name not in self.graph.consumers and tensor.name not in self.graph.outputs:
                size = f"{int(np.prod(tensor.dims))} values that nothing reads"
                yield Violation(tensor.name, "dead initializer", "nothing kept twice", size)

    def _array(self, name: str) -> Any:
        """The values of an initializer, through a Cast from 4 bits; None for what is computed."""
        import onnx

        maker = self.graph.producers.get(name)
        if maker is not None and maker.op_type == "Cast":
            name = maker.input[0]
        tensor = self.graph.weights.get(name)
        return None if tensor is None else onnx.numpy_helper.to_array(tensor)

    def _zero(self, node: Any) -> Any:
        if len(node.input) > 2 and node.input[2]:
            return self._array(node.input[2])
        return np.zeros((), np.uint8)

    def _scale(self, node: Any) -> Iterator[Violation]:
        where, scale = node.output[0], self._array(node.input[1])
        if scale is None or scale.dtype != np.float32:
            yield Violation(where, "scale", "float32 constants", "another type or none")
            return
        good = np.isfinite(scale) & (scale >= np.finfo(np.float32).tiny)
        if not good.all():
            bad = float(scale[~good].reshape(-1)[0])
            yield Violation(where, "scale", "positive, finite, normal numbers", f"{bad:g}")
        if scale.ndim and self.opset < PER_CHANNEL:
            have = f"operator set {self.opset}"
            yield Violation(where, "scales per channel", f"operator set {PER_CHANNEL}", have)

    def _activation(self, node: Any) -> Iterator[Violation]:
        where, zero = node.input[0], self._zero(node)
        if zero is None or zero.ndim:
            yield Violation(where, "activation zero point", "one constant", "several or none")
            return
        if zero.dtype != self.kind:
            yield Violation(where, "activation type", self.kind.name, zero.dtype.name)
        middle = 0 if self.scheme.activation_signed else 128
        if self.scheme.activation_symmetric and int(zero) != middle:
            yield Violation(where, "activation zero point", str(middle), str(int(zero)))

    def _dequantized(self, node: Any) -> Iterator[Violation]:
        maker = self.graph.producers.get(node.input[0])
        if maker is not None and maker.op_type == "QuantizeLinear":
            yield from self._pair(maker, node)
            return
        integers = self._array(node.input[0])
        if integers is None or not integers.ndim:
            return  # computed by an integer operator, or the constant of a gate
        for reader in self.graph.consumers.get(node.output[0], []):
            port = list(reader.input).index(node.output[0])
            if integers.dtype == np.int32:
                yield from self._bias(node, reader)
            elif reader.op_type in WEIGHTED and port == 1:
                yield from self._weight(node, reader, integers)

    def _pair(self, quantize: Any, node: Any) -> Iterator[Violation]:
        """Both halves of a pair say the same, but for a gate's, which multiplies by alpha."""
        same = self._equal(quantize, node, 2) and (
            self._equal(quantize, node, 1) or self._is_gate(node)
        )
        if not same:
            what = "the scale and zero point of its QuantizeLinear"
            yield Violation(node.output[0], "pair", what, "others")

    def _equal(self, first: Any, second: Any, port: int) -> bool:
        if port == 2:
            a, b = self._zero(first), self._zero(second)
        else:
            a, b = self._array(first.input[port]), self._array(second.input[port])
        return a is not None and b is not None and a.dtype == b.dtype and np.array_equal(a, b)

    def _is_gate(self, node: Any) -> bool:
        """Does an Add with a dequantized constant read it?"""
        reader = self.graph.only_consumer(node.output[0])
        if reader is None or reader.op_type != "Add":
            return False
        makers = [self.graph.producers.get(name) for name in reader.input]
        return any(m is not None and m.input[0] in self.graph.weights for m in makers)

    def _bias(self, node: Any, reader: Any) -> Iterator[Violation]:
        """Integers of a bias count in products of the two scales."""
        source, weight = (self.graph.producers.get(name) for name in reader.input[:2])
        if source is None or weight is None or source.op_type != "DequantizeLinear":
            return
        scales = [self._array(maker.input[1]) for maker in (source, weight, node)]
        if any(scale is None for scale in scales):
            return
        wanted = scales[0] * scales[1]
        if scales[2].shape != wanted.shape or not np.allclose(scales[2], wanted, rtol=1e-5, atol=0):
            found = f"{float(np.max(scales[2])):g}"
            yield Violation(reader.name, "bias scale", f"{float(np.max(wanted)):g}", found)

    def _weight(self, node: Any, reader: Any, integers: Any) -> Iterator[Violation]:
        where, scheme = reader.name, self.scheme
        if scheme.number == "float8":
            if integers.dtype != self.kind:
                yield Violation(where, "weight type", self.kind.name, integers.dtype.name)
            yield from self._granularity(node, reader, integers.shape)
            return
        zero, values = self._zero(node), integers.astype(np.int32)
        signed = integers.dtype.name in {"int8", "int4"}
        if signed != scheme.weight_signed:
            wanted = "signed" if scheme.weight_signed else "unsigned"
            yield Violation(where, "weight type", wanted, integers.dtype.name)
        elif scheme.weight_symmetric and (zero is None or zero.any()):
            yield Violation(where, "weight zero point", "0", "others")
        peak = int(np.abs(values).max(initial=0))
        if signed and peak > scheme.weight_limit:
            yield Violation(where, "weight range", f"±{scheme.weight_limit}", str(peak))
        yield from self._granularity(node, reader, values.shape)

    def _granularity(self, node: Any, reader: Any, shape: Sequence[int]) -> Iterator[Violation]:
        scale = self._array(node.input[1])
        if scale is None or attribute(node, "block_size", 0):
            return
        if not self.scheme.weight_per_channel:
            if scale.ndim:
                found = f"{scale.size} of them"
                yield Violation(reader.name, "weight scale", "one for the tensor", found)
            return
        axis, have = output_axis(reader, len(shape)), attribute(node, "axis", 1) % len(shape)
        if scale.ndim and have != axis:
            yield Violation(reader.name, "weight axis", str(axis), str(have))
        if scale.shape != (shape[axis],):
            wanted = f"{shape[axis]}, one per channel"
            yield Violation(reader.name, "weight scales", wanted, str(scale.size))

    def _weighted(self, node: Any) -> Iterator[Violation]:
        """Integer weights need integer inputs: else they are dequantized at every call."""
        if node.name in self.integer and not self._from_integers(node.input[0], constant=False):
            yield Violation(node.name, "input", "8-bit, as its weight", "float")

    def _from_integers(self, name: str, *, constant: bool) -> bool:
        maker = self.graph.producers.get(name)
        if maker is None or maker.op_type != "DequantizeLinear":
            return False
        return (self._array(maker.input[0]) is not None) == constant

    def _float(self, node: Any) -> Iterator[Violation]:
        """What must stay float gets no integer weight, and no pairs that the engine fuses."""
        reason = self.scheme.never.get(node.op_type, "a float layer")
        if any(name and self._from_integers(name, constant=True) for name in node.input):
            yield Violation(node.name, "never in integers", reason, "a weight in 8 bits")
        comes = lambda name: self._from_integers(name, constant=False)  # noqa: E731
        if fused(self.graph, self.scheme, node, comes, self._is_paired):
            yield Violation(node.name, "never in integers", reason, "pairs around it")

    def _is_paired(self, name: str) -> bool:
        readers = self.graph.consumers.get(name, [])
        return any(reader.op_type == "QuantizeLinear" for reader in readers)

    def _is_integer(self, name: str) -> bool:
        return name in self.integer

    def _passthrough(self, node: Any) -> Iterator[Violation]:
        """What only moves values gives them on with the scale they came with."""
        source = self.graph.producers.get(node.input[0])
        if source is None or not self._from_integers(node.input[0], constant=False):
            return
        for name in node.output if node.op_type == "Split" else node.output[:1]:
            readers = self.graph.consumers.get(name, [])
            after = [reader for reader in readers if reader.op_type == "QuantizeLinear"]
            if not after or not all(
                self._equal(source, reader, 1) and self._equal(source, reader, 2)
                for reader in after
            ):
                found = "another" if after else "no pair behind it"
                yield Violation(node.name, "passed on", "the scale of its input", found)
