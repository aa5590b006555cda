"""Gram matrices of layer inputs, streamed out of ONNX Runtime in bounded memory.

The tensors that layers read become outputs of a copy of the model; of each batch a few hundred
sampled rows are kept just long enough to add their products. Layers are taken in several passes
over the data, so that matrices and tapped tensors together stay below `limit_bytes` (one layer
that is larger alone gets a pass of its own).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from compressor.quantization.onnx_weights import attribute
from compressor.quantization.reconstruction_rows import (
    Gram,
    batched_rows,
    conv_rows,
    flat_rows,
    state_rows,
    transposed_conv_rows,
    window,
)
from exporters._check import onnx_session
from runtimes.base import Feeds

LIMIT_BYTES = 512 << 20
# A wider layer's matrix (8·columns² bytes) and factor would not pay for themselves.
MOST_COLUMNS = 8192
_ROWS = 4096
Data = Callable[[], Iterator[Feeds]]


@dataclass(frozen=True)
class Reader:
    """One use of a weight.

    Attributes:
        weight: the key its matrix is collected under.
        node: that computes with it.
        port: the input of `node` that is the weight.
        shape: of the weight as `node` reads it.
    """

    weight: str
    node: Any
    port: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Tap:
    """What to read of a model for one use, and how rows come of it."""

    reader: Reader
    tensors: tuple[str, ...]
    rows: Callable[[list[Any], int, Any], list[Any]]
    columns: int
    blocks: int = 1
    grouped: bool = False

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for uses that multiply with the same rows (query, key and value, say)."""
        node = self.reader.node
        how: tuple[Any, ...] = (node.op_type, self.reader.port, self.columns, self.blocks)
        if node.op_type in {"Conv", "ConvTranspose", "Einsum", "Gemm"}:
            how += tuple(sorted(a.SerializeToString() for a in node.attribute))
            how += self.reader.shape[2:] if "Conv" in node.op_type else ()
        return (self.tensors, how)

    @property
    def size_bytes(self) -> int:
        return 8 * self.blocks * self.columns**2


def collect_grams_onnx(
    model: Any,
    readers: Sequence[Reader],
    data: Data,
    *,
    rows: int = _ROWS,
    limit_bytes: int = LIMIT_BYTES,
    threads: int = 1,
    seed: int = 0,
    told: Callable[[float], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Gram matrices by weight, pass after pass, in the order of `readers`.

    Weights whose inputs cannot be told (embeddings, unusual forms) or that have more than
    `MOST_COLUMNS` columns do not occur. The sum over all uses is taken of a shared weight.

    Args:
        model: `onnx.ModelProto`, left as it is.
        readers: uses of weights.
        data: gives a fresh iterator of feeds at each call; one pass is one call, and one more
            batch tells the sizes.
        rows: of input to sample for each use, over all data (twice the columns if that is more).
        limit_bytes: of matrices and tapped tensors at a time.
        threads: of the engine.
        seed: of the sampling.
        told: is called with the share done.
    """
    taps = [tap for tap in map(_tap, readers) if tap is not None and tap.columns <= MOST_COLUMNS]
    if not taps:
        return
    batches, sizes = _sizes(model, taps, data, threads)
    groups = list(_passes(taps, sizes, limit_bytes))
    for number, group in enumerate(groups):
        yield _collect(model, group, data, rows, batches, threads, seed)
        if told is not None:
            told((number + 1) / len(groups))


def _sizes(
    model: Any, taps: Sequence[_Tap], data: Data, threads: int
) -> tuple[int, dict[str, int]]:
    """Number of batches, and the bytes of each tapped tensor in the largest of the first three."""
    import onnx

    copy = _with_outputs(model, taps)
    tapped = sorted({name for tap in taps for name in tap.tensors})
    del copy.graph.output[:]
    for name in tapped:
        copy.graph.node.append(onnx.helper.make_node("Shape", [name], [f"{name}//shape"]))
        made = onnx.helper.make_tensor_value_info(f"{name}//shape", onnx.TensorProto.INT64, None)
        copy.graph.output.append(made)
    session = onnx_session(copy.SerializeToString(), threads)
    names = [output.name for output in session.get_outputs()]
    sizes = dict.fromkeys(tapped, 0)
    count = 0
    for feeds in data():
        count += 1
        if count > 3:
            continue
        for name, shape in zip(tapped, session.run(names, dict(feeds)), strict=True):
            sizes[name] = max(sizes[name], 4 * int(np.prod(shape)))
    return count, sizes


def _passes(taps: Sequence[_Tap], sizes: dict[str, int], limit: int) -> Iterator[list[_Tap]]:
    """Runs of taps that stay below `limit` bytes; all uses of one weight in one run."""
    by_weight: dict[str, list[_Tap]] = {}
    for tap in taps:
        by_weight.setdefault(tap.reader.weight, []).append(tap)
    now: list[_Tap] = []
    for uses in by_weight.values():
        if now and _cost([*now, *uses], sizes) > limit:
            yield now
            now = []
        now = [*now, *uses]
    yield now


def _cost(taps: Sequence[_Tap], sizes: dict[str, int]) -> int:
    matrices = {tap.key: tap.size_bytes for tap in taps}
    tensors = {name for tap in taps for name in tap.tensors}
    return sum(matrices.values()) + sum(sizes[name] for name in tensors)


def _collect(
    model: Any, taps: Sequence[_Tap], data: Data, rows: int, batches: int, threads: int, seed: int
) -> dict[str, Any]:
    session = onnx_session(_with_outputs(model, taps).SerializeToString(), threads)
    wanted = sorted({name for tap in taps for name in tap.tensors})
    grams = {tap.key: Gram(tap.grouped) for tap in taps}
    first = {tap.key: tap for tap in reversed(taps)}
    for number, feeds in enumerate(data()):
        values = dict(zip(wanted, session.run(wanted, dict(feeds)), strict=True))
        for place, (key, gram) in enumerate(grams.items()):
            tap = first[key]
            share = -(-max(rows, 2 * tap.columns) // max(1, batches))
            rng = np.random.default_rng([seed, number, place])
            gram.add(tap.rows([values[name] for name in tap.tensors], share, rng))
    made: dict[str, Any] = {}
    for tap in taps:
        matrix = grams[tap.key].matrix()
        if matrix is not None:
            before = made.get(tap.reader.weight)
            made[tap.reader.weight] = matrix if before is None else before + matrix
    return made


def _with_outputs(model: Any, taps: Sequence[_Tap]) -> Any:
    """A copy of `model` whose outputs include every tapped tensor."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    named = {tap.reader.node.name: tap for tap in taps if tap.reader.node.op_type in _STATES}
    for node in copy.graph.node:
        if node.name in named and not node.output[0]:
            node.output[0] = _states_of(node)
    outputs = {value.name for value in copy.graph.output}
    inputs = {value.name: value for value in copy.graph.input}
    for name in sorted({name for tap in taps for name in tap.tensors} - outputs):
        made = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        copy.graph.output.append(inputs.get(name, made))
    return copy


_STATES = frozenset({"GRU", "LSTM", "RNN"})


def _states_of(node: Any) -> str:
    return node.output[0] if node.output and node.output[0] else f"{node.name}//states"


def _tap(reader: Reader) -> _Tap | None:
    """How to get at the rows of one use; None where that is not known."""
    kind = reader.node.op_type
    if kind in {"Conv", "ConvTranspose"} and reader.port == 1:
        return _conv_tap(reader)
    if kind in _STATES:
        return _input_tap(reader) if reader.port == 1 else _state_tap(reader)
    if kind == "MatMul":
        return _matmul_tap(reader)
    if kind == "Gemm" and reader.port == 1:
        turned = bool(attribute(reader.node, "transA", 0))
        columns = reader.shape[1 if attribute(reader.node, "transB", 0) else 0]
        return _Tap(reader, (reader.node.input[0],), partial(_plain, turned), columns)
    return None


def _plain(turned: bool, values: list[Any], limit: int, rng: Any) -> list[Any]:
    (array,) = values
    return flat_rows(array.swapaxes(-1, -2) if turned else array, limit, rng)


def _matmul_tap(reader: Reader) -> _Tap | None:
    node, shape, left = reader.node, reader.shape, reader.port == 0
    other = (node.input[1 if left else 0],)
    columns = shape[-1] if left else shape[-2]
    stack = shape[:-2]
    if int(np.prod(stack)) == 1:
        return _Tap(reader, other, partial(_plain, left), columns)
    if left:
        return None

    def rows(values: list[Any], limit: int, rng: Any) -> list[Any]:
        (array,) = values
        if array.ndim < len(shape) or array.shape[-len(shape) : -2] != stack:
            return []
        return batched_rows(array, stack, limit, rng)

    return _Tap(reader, other, rows, columns, int(np.prod(stack)))


def _conv_tap(reader: Reader) -> _Tap | None:
    node, shape = reader.node, reader.shape
    auto = attribute(node, "auto_pad", b"NOTSET")
    auto = (auto.decode() if isinstance(auto, bytes) else auto).lower().removeprefix("same_")
    same = auto if auto in {"upper", "lower"} else ""
    turned = node.op_type == "ConvTranspose"
    if turned and same:
        return None
    groups = int(attribute(node, "group", 1))
    pads = None if auto == "valid" else attribute(node, "pads", None)

    def rows(values: list[Any], limit: int, rng: Any) -> list[Any]:
        (array,) = values
        geometry = window(
            shape[2:],
            array.shape[2:],
            attribute(node, "strides", None),
            attribute(node, "dilations", None),
            pads,
            groups,
            same,
        )
        return (transposed_conv_rows if turned else conv_rows)(array, geometry, limit, rng)

    channels = shape[0] // groups if turned else shape[1]
    columns = channels * int(np.prod(shape[2:]))
    return _Tap(reader, (node.input[0],), rows, columns, groups, groups > 1 and not turned)


def _directions(node: Any) -> list[bool]:
    """By direction, whether it runs backwards."""
    named = attribute(node, "direction", b"forward")
    named = named.decode() if isinstance(named, bytes) else named
    return {"forward": [False], "reverse": [True]}.get(named, [False, True])


def _input_tap(reader: Reader) -> _Tap:
    count = len(_directions(reader.node))

    def rows(values: list[Any], limit: int, rng: Any) -> list[Any]:
        return flat_rows(values[0], limit, rng) * count

    return _Tap(reader, (reader.node.input[0],), rows, reader.shape[2], count)


def _state_tap(reader: Reader) -> _Tap:
    node = reader.node
    directions = _directions(node)
    first = node.input[5] if len(node.input) > 5 else ""

    def rows(values: list[Any], limit: int, rng: Any) -> list[Any]:
        start = values[1] if first else None
        return state_rows(values[0], start, directions, limit, rng)

    tensors = (_states_of(node), *([first] if first else []))
    return _Tap(reader, tensors, rows, reader.shape[2], len(directions))
