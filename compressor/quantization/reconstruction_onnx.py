"""Gram matrices of the layer inputs of an ONNX model, through ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from compressor.quantization.calibration import batches
from compressor.quantization.onnx_find import Weight
from compressor.quantization.onnx_index import Index
from compressor.quantization.reconstruction import round_with
from compressor.quantization.reconstruction_rows import (
    batched_rows,
    conv_rows,
    flat_rows,
    state_rows,
    transposed_conv_rows,
    window,
)
from compressor.quantization.reconstruction_taps import BATCH, LIMIT_BYTES, ROWS, Data, Tap, collect
from compressor.quantization.storage import Rounded
from exporters._onnx_graph import attribute
from exporters._onnx_session import tapped_session
from exporters.base import Env
from runtimes.base import Feeds
from runtimes.types import Artifact


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


def collect_grams_onnx(
    model: Any,
    readers: Sequence[Reader],
    data: Data,
    *,
    rows: int = ROWS,
    limit_bytes: int = LIMIT_BYTES,
    threads: int = 1,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Gram matrices by weight, pass after pass, in the order of `readers`.

    Weights whose inputs cannot be told (embeddings, unusual forms) do not occur.

    Args:
        model: `onnx.ModelProto`, left as it is.
        readers: uses of weights.
        data: gives a fresh iterator of feeds at each call; one pass is one call, and one more
            tells the sizes.
        rows: of input to sample for each use, over all data (twice the columns if that is more).
        limit_bytes: of matrices and tapped tensors at a time.
        threads: of the engine.
        seed: of the sampling.
    """
    taps = [tap for tap in map(tap_of, readers) if tap is not None]
    open_ = partial(open_taps, model, threads)
    return collect(taps, open_, data, rows=rows, limit_bytes=limit_bytes, seed=seed)


def open_taps(
    model: Any, threads: int, names: Sequence[str], shapes: bool
) -> Callable[[Feeds], Sequence[Any]]:
    """The model, its outputs replaced by the named tensors or their shapes, ready to run."""
    import onnx

    nodes = []
    for node in model.graph.node:
        if node.op_type in _STATES and not node.output[0] and _states_of(node) in names:
            nodes.append(type(node).FromString(node.SerializeToString()))
            nodes[-1].output[0] = _states_of(node)
    outputs = []
    for name in names:
        kind = onnx.TensorProto.INT64 if shapes else onnx.TensorProto.FLOAT
        shown = f"{name}//tap"
        nodes.append(onnx.helper.make_node("Shape" if shapes else "Identity", [name], [shown]))
        outputs.append(onnx.helper.make_tensor_value_info(shown, kind, None))
    session = tapped_session(model, nodes, outputs, threads)
    made = [output.name for output in session.get_outputs()]
    return lambda feeds: list(session.run(made, dict(feeds)))


_STATES = frozenset({"GRU", "LSTM", "RNN"})


def _states_of(node: Any) -> str:
    return node.output[0] if node.output and node.output[0] else f"{node.name}//states"


def tap_of(reader: Reader) -> Tap | None:
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
        return _made(reader, (reader.node.input[0],), partial(_plain, turned), columns)
    return None


def _made(
    reader: Reader,
    tensors: tuple[str, ...],
    rows: Callable[[list[Any], int, Any], list[Any]],
    columns: int,
    blocks: int = 1,
    grouped: bool = False,
) -> Tap:
    node = reader.node
    how: tuple[Any, ...] = (node.op_type, reader.port)
    if node.op_type in {"Conv", "ConvTranspose", "Gemm"}:
        how += tuple(sorted(a.SerializeToString() for a in node.attribute))
        how += reader.shape[2:]
    return Tap(reader.weight, tensors, rows, columns, blocks, grouped, how)


def _plain(turned: bool, values: list[Any], limit: int, rng: Any) -> list[Any]:
    (array,) = values
    return flat_rows(array.swapaxes(-1, -2) if turned else array, limit, rng)


def _matmul_tap(reader: Reader) -> Tap | None:
    node, shape, left = reader.node, reader.shape, reader.port == 0
    other = (node.input[1 if left else 0],)
    columns = shape[-1] if left else shape[-2]
    stack = shape[:-2]
    if int(np.prod(stack)) == 1:
        return _made(reader, other, partial(_plain, left), columns)
    if left:
        return None

    def rows(values: list[Any], limit: int, rng: Any) -> list[Any]:
        (array,) = values
        if array.ndim < len(shape) or array.shape[-len(shape) : -2] != stack:
            return []
        return batched_rows(array, stack, limit, rng)

    return _made(reader, other, rows, columns, int(np.prod(stack)))


def _conv_tap(reader: Reader) -> Tap | None:
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
    return _made(reader, (node.input[0],), rows, columns, groups, groups > 1 and not turned)


def _directions(node: Any) -> list[bool]:
    """By direction, whether it runs backwards."""
    named = attribute(node, "direction", b"forward")
    named = named.decode() if isinstance(named, bytes) else named
    return {"forward": [False], "reverse": [True]}.get(named, [False, True])


def _input_tap(reader: Reader) -> Tap:
    count = len(_directions(reader.node))

    def rows(values: list[Any], limit: int, rng: Any) -> list[Any]:
        return flat_rows(values[0], limit, rng) * count

    return _made(reader, (reader.node.input[0],), rows, reader.shape[2], count)


def _state_tap(reader: Reader) -> Tap:
    node = reader.node
    directions = _directions(node)
    first = node.input[5] if len(node.input) > 5 else ""

    def rows(values: list[Any], limit: int, rng: Any) -> list[Any]:
        start = values[1] if first else None
        return state_rows(values[0], start, directions, limit, rng)

    tensors = (_states_of(node), *([first] if first else []))
    return _made(reader, tensors, rows, reader.shape[2], len(directions))


def readers(graph: Index, weights: Sequence[Weight]) -> list[Reader]:
    """The uses of `weights` in the main graph whose inputs can be tapped."""
    main = {id(node) for node in graph.graph.node}
    found = []
    for weight in weights:
        for use in weight.uses:
            plain = use.shape == weight.values.shape or weight.values.ndim == 2
            if id(use.node) in main and plain:
                found.append(Reader(weight.tensor.name, use.node, use.port, use.shape))
    return found


def rounded(
    source: Artifact,
    options: Any,
    env: Env,
    model: Any,
    graph: Index,
    weights: Sequence[Weight],
    blocks: Mapping[str, int],
) -> dict[str, Rounded]:
    """Integers of 4 bits for `weights` of `model`, and the damage they do (for `onnx_storage`)."""
    by_name = {weight.tensor.name: weight for weight in weights}
    made: dict[str, Rounded] = {}
    data = lambda: batches(env.data["calibration"], source.inputs, options.samples, most=BATCH)  # noqa: E731
    passes = collect_grams_onnx(
        model,
        readers(graph, weights),
        data,
        rows=options.rows,
        threads=env.context.threads,
        seed=env.context.seed,
    )
    for grams in passes:
        for name in list(grams):
            weight, gram = by_name[name], grams.pop(name)
            made[name] = round_with(weight.values, weight.axis, gram, blocks.get(name, 0))
            del gram
            env.progress(len(made) / len(weights), f"rounded {name}")
    for name, weight in by_name.items():
        if name not in made:
            made[name] = round_with(weight.values, weight.axis, None, blocks.get(name, 0))
    return made
