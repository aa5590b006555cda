"""How the weights of dynamic INT8 layers are rounded, and what that takes from their outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from compressor.quantization.calibration import calibrate
from compressor.quantization.onnx_dynamic_loop import GATES
from compressor.quantization.onnx_index import Names, index
from compressor.quantization.onnx_weights import dequantize, quantize_int8
from compressor.quantization.reconstruction import damage, reconstruct
from compressor.quantization.reconstruction_onnx import Reader, collect_grams_onnx
from compressor.quantization.storage import Tensor, keep_in_8_bits
from exporters._onnx_graph import attribute, graphs
from runtimes.base import Feeds

if TYPE_CHECKING:
    from compressor.quantization.onnx_dynamic import Layer

RECURRENT = {"LSTM", *GATES}
Key = tuple[str, int]  # node and input port
Data = Callable[[], Iterator[Feeds]]


class Rounded:
    """A weight as rows of one output each ([outputs, inputs]), rounded to 8 or 4 bits.

    Attributes:
        rows: the float weight; directions of a recurrent layer lie one below the other.
        parts: how many directions these are.
        limit: largest magnitude of an 8-bit weight.
        gram: Gram matrix of the inputs (of all directions on its diagonal), or None.
        integers, scale: what is stored, a scale for each row.
        even: the 8-bit integers and the scale of each direction that the kernel computes with
            instead, or None.
    """

    def __init__(self, rows: Any, parts: int, limit: int) -> None:
        self.rows, self.parts, self.limit = rows, parts, limit
        self.gram: Any = None
        self.bits = 0
        self.integers: Any = None
        self.scale: Any = None
        self.even: tuple[Any, Any] | None = None

    def round(self, bits: int) -> None:
        """Choose integers and scales: to nearest in 8 bits, in 4 by what the inputs are like."""
        self.bits = bits
        if bits == 8:
            self.integers, self.scale = quantize_int8(self.rows, 0, self.limit)
            return
        made = [reconstruct(rows, 0, gram, bits) for rows, gram in self._by_direction()]
        self.integers = np.concatenate([integers for integers, _ in made])
        self.scale = np.concatenate([scale for _, scale in made])

    def _by_direction(self) -> list[tuple[Any, Any]]:
        columns, pieces = self.rows.shape[1], np.split(self.rows, self.parts)
        at = [slice(i * columns, (i + 1) * columns) for i in range(self.parts)]
        return [
            (rows, None if self.gram is None else self.gram[cut, cut])
            for rows, cut in zip(pieces, at, strict=True)
        ]

    def level(self) -> None:
        """Compute with one scale a direction if its 8-bit step is at most half of any row's own.

        ONNX Runtime's LSTM is a tenth faster so (benchmarks/quantization, `lstm`).
        """
        if self.bits != 4:
            return
        values = dequantize(self.integers, self.scale, 0)
        peaks = [float(np.abs(part).max()) or 1.0 for part in np.split(values, self.parts)]
        whole = np.array([peak / self.limit for peak in peaks], np.float32)
        scale = np.repeat(whole, len(values) // self.parts)
        some = self.integers.any(axis=1)
        if (2 * scale <= self.scale)[some].all():
            self.even = np.rint(values / scale[:, None]).astype(np.int8), whole

    @property
    def error(self) -> Any:
        """The weight minus what it is in the kernel."""
        if self.even is not None:
            integers, scale = self.even
            return self.rows - dequantize(
                integers, np.repeat(scale, len(integers) // len(scale)), 0
            )
        return self.rows - dequantize(self.integers, self.scale, 0)

    @property
    def noise(self) -> float:
        """Power of the output error over that of the output, the mean of the directions."""
        pieces = zip(
            self._by_direction(),
            np.split(self.integers, self.parts),
            np.split(self.scale, self.parts),
            strict=True,
        )
        found = [damage(rows, 0, whole, scale, gram) for (rows, gram), whole, scale in pieces]
        return float(np.mean(found))


def round_weights(
    model: Any, layers: Sequence[Layer], options: Any, limit: int, data: Data | None, threads: int
) -> dict[Key, Rounded]:
    """The rounding of every weight of `layers`, by node and port.

    Args:
        model: the `onnx.ModelProto` the layers belong to, still in float.
        layers: what is to change.
        options: `store` and `share` of `quantize_dynamic.Options`.
        limit: largest magnitude of an 8-bit weight.
        data: feeds, to round by what the layers' inputs are like; None: to nearest.
        threads: of the engine.
    """
    once: dict[tuple[str, Any], Rounded] = {}  # unrolled loops share one weight many times
    found: dict[Key, Rounded] = {}
    for layer in layers:
        for port, tensor in layer.weights.items():
            same = tensor.name, attribute(layer.node, "transB", 0)
            if same not in once:
                once[same] = Rounded(_rows(layer, tensor), _parts(layer), limit)
            found[layer.node.name, port] = once[same]
    if data is not None and options.store == 4:
        for key, gram in _grams(model, layers, data, threads):
            found[key].gram = gram
    for weight in once.values():
        weight.round(options.store)
    if options.store == 4:
        _keep_some_in_8_bits(layers, found, options.share)
    for layer in layers:
        if layer.node.op_type == "LSTM":
            for port in layer.weights:
                found[layer.node.name, port].level()
    return found


def _parts(layer: Layer) -> int:
    return int(layer.weights[1].dims[0]) if layer.node.op_type in RECURRENT else 1


def _grams(
    model: Any, layers: Sequence[Layer], data: Data, threads: int
) -> Iterator[tuple[Key, Any]]:
    """Gram matrices of the layers of the main graph."""
    uses: dict[str, list[Key]] = {}
    readers = []
    for layer in layers:
        if layer.graph is not model.graph:
            continue
        for port, tensor in layer.weights.items():
            uses.setdefault(tensor.name, []).append((layer.node.name, port))
            readers.append(Reader(tensor.name, layer.node, port, tuple(tensor.dims)))
    for found in collect_grams_onnx(model, readers, data, threads=threads):
        for name, gram in found.items():
            yield from ((key, gram) for key in uses[name])


def _keep_some_in_8_bits(
    layers: Sequence[Layer], found: Mapping[Key, Rounded], share: float
) -> None:
    tensors = {
        tensor.name: found[layer.node.name, port]
        for layer in layers
        for port, tensor in layer.weights.items()
    }
    stay = keep_in_8_bits([Tensor(n, w.rows.size, w.noise) for n, w in tensors.items()], share)
    for layer in layers:
        for port, tensor in layer.weights.items():
            weight = found[layer.node.name, port]
            if tensor.name in stay and weight.bits != 8:
                weight.round(8)


def _rows(layer: Layer, tensor: Any) -> Any:
    """A weight with one row an output: directions of an LSTM one below the other."""
    import onnx

    values = onnx.numpy_helper.to_array(tensor)
    if layer.node.op_type in RECURRENT:
        return values.reshape(-1, values.shape[-1])
    transposed = layer.node.op_type == "Gemm" and attribute(layer.node, "transB", 0)
    return np.ascontiguousarray(values if transposed else values.T)


def input_means(
    model: Any, layers: Sequence[Layer], feeds: Data, threads: int
) -> dict[str, tuple[Any, Any]]:
    """Node → mean of each of its inputs, and for an LSTM of each state of each direction."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    taken, ranks = {layer.node.name for layer in layers}, index(model).ranks
    names = Names(*graphs(copy.graph))
    axes: dict[str, tuple[int, ...]] = {}
    read: dict[str, tuple[str, str]] = {}
    for node in copy.graph.node:
        if node.name not in taken:
            continue
        if node.op_type in RECURRENT:
            if not node.output[0]:
                node.output[0] = names.new("y")
            axes[node.input[0]], axes[node.output[0]] = (0, 1), (0, 2)
            read[node.name] = node.input[0], node.output[0]
        elif ranks.get(node.input[0], 0) > 1:
            axes[node.input[0]] = tuple(range(ranks[node.input[0]] - 1))
            read[node.name] = node.input[0], ""
    found = calibrate(copy, [], axes, feeds, threads=threads).means
    return {name: (found.get(x), found.get(h)) for name, (x, h) in read.items()}
