"""Where an artifact's bytes are, by class of tensor; the rows sum exactly to its files."""

from __future__ import annotations

import json
import struct
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from compressor.result import LedgerRow
from runtimes.fixed.spec import WEIGHTS
from runtimes.types import Artifact

_SMALL = 2  # rank below which a constant is a bias or a scale, not a weight
_SCALE_READERS = {
    "QuantizeLinear": (1,), "DequantizeLinear": (1,), "DynamicQuantizeLSTM": (8, 10),
    "DynamicQuantizeMatMul": (2,), "MatMulIntegerToFloat": (2, 3),
}  # fmt: skip
_ZERO_READERS = {
    "QuantizeLinear": (2,), "DequantizeLinear": (2,), "DynamicQuantizeLSTM": (9, 11),
    "DynamicQuantizeMatMul": (3,), "MatMulIntegerToFloat": (4, 5), "MatMulInteger": (2, 3),
}  # fmt: skip
_BIAS_READERS = {
    "DynamicQuantizeLSTM": (3, 7), "DynamicQuantizeMatMul": (4,), "MatMulIntegerToFloat": (6,),
    "Conv": (2,), "ConvTranspose": (2,), "Gemm": (2,), "GRU": (3,), "LSTM": (3,), "RNN": (3,),
    "LayerNormalization": (2,), "BatchNormalization": (2,),
}  # fmt: skip
_PRECISIONS = {
    "float32": "float", "float64": "float", "float16": "half", "bfloat16": "half", "int8": "int8",
    "uint8": "int8", "int4": "int4", "uint4": "int4",
    "f32": "float", "f64": "float", "f16": "half", "bf16": "half", "i8": "int8", "u8": "int8",
    "i4": "int4", "u4": "int4",
    "F32": "float", "F64": "float", "F16": "half", "BF16": "half", "I8": "int8", "U8": "int8",
}  # fmt: skip

Found = Iterator[tuple[str, str, int]]  # name, kind, bytes


def ledger(artifact: Artifact) -> list[LedgerRow]:
    """Bytes by kind, largest first: `weights int4|int8|half|float`, `scales`, `zero points`,
    `biases`, `constants` (shapes, indices), and `graph` for everything that is no tensor.
    """
    totals: dict[str, list[int]] = {}
    for _, kind, size in stored_tensors(artifact):
        row = totals.setdefault(kind, [0, 0])
        row[0], row[1] = row[0] + size, row[1] + 1
    rest = artifact.size_bytes - sum(size for size, _ in totals.values())
    rows = [LedgerRow(kind, size, count) for kind, (size, count) in totals.items() if size]
    return sorted([*rows, LedgerRow("graph", rest)], key=lambda row: (-row.size_bytes, row.kind))


def stored_tensors(artifact: Artifact) -> Found:
    """Every stored tensor once: its name (in an IR: its offset in the .bin), kind and bytes."""
    suffix = artifact.path.suffix
    if suffix == ".onnx":
        return _onnx(artifact.path)
    if suffix == ".xml":
        return _openvino(artifact.path)
    if artifact.format in ("fixed", "fpga"):
        return _fixed(artifact)
    return _safetensors(artifact)


def _onnx(path: Path) -> Found:
    import onnx

    from exporters._onnx_graph import graphs, tensors

    model = onnx.load(str(path), load_external_data=False)
    roles = {name: role for graph in graphs(model.graph) for name, role in _roles(graph).items()}
    for tensor in tensors(model):
        yield tensor.name, _kind_onnx(tensor, roles), _size_onnx(tensor)


def _roles(graph: Any) -> dict[str, str]:
    """Initializer → what it is to the node that reads it, seen through casts and dequantization."""
    passing = {"Cast", "DequantizeLinear"}
    makers = {n.output[0]: n for n in graph.node if n.op_type in passing}
    roles: dict[str, str] = {}
    for node in graph.node:
        for i, name in enumerate(node.input):
            role = _role(node.op_type, i)
            if role:
                roles.setdefault(_stored(name, makers), role)
        if node.op_type == "Mul" and node.input[0] in makers:
            roles.setdefault(_stored(node.input[1], makers), "scales")  # of a stored weight
    return roles


def _stored(name: str, makers: dict[str, Any]) -> str:
    """The tensor that `name` was made of by casts and dequantization."""
    while name in makers:
        name = makers[name].input[0]
    return name


def _role(op: str, port: int) -> str:
    if port in _SCALE_READERS.get(op, ()):
        return "scales"
    if port in _ZERO_READERS.get(op, ()):
        return "zero points"
    return "biases" if port in _BIAS_READERS.get(op, ()) else ""


def _kind_onnx(tensor: Any, roles: dict[str, str]) -> str:
    import onnx

    if tensor.name in roles:
        return roles[tensor.name]
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).name
    except KeyError:
        dtype = ""
    return _kind(dtype, len(tensor.dims))


def _kind(dtype: str, rank: int) -> str:
    precision = _PRECISIONS.get(dtype)
    if precision is None:
        return "constants"
    if rank < _SMALL:
        return "biases" if precision in {"float", "half"} and rank else "constants"
    return "weights " + precision


def _size_onnx(tensor: Any) -> int:
    """Bytes of a tensor's values as they lie in the files."""
    import onnx

    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        fields = {entry.key: entry.value for entry in tensor.external_data}
        return int(fields.get("length", 0))
    if tensor.raw_data:
        return len(tensor.raw_data)
    bare = onnx.TensorProto()
    bare.CopyFrom(tensor)
    for field in (
        "int32_data",
        "int64_data",
        "float_data",
        "double_data",
        "uint64_data",
        "string_data",
    ):
        bare.ClearField(field)
    return int(tensor.ByteSize() - bare.ByteSize())


def _fixed(artifact: Artifact) -> Found:
    with np.load(artifact.root / WEIGHTS, allow_pickle=False) as file:
        for name in file.files:
            kind = "biases" if name.endswith(".bias") else f"weights {file[name].dtype.name}"
            yield name, kind, file[name].nbytes


def _openvino(path: Path) -> Found:
    """Constants of an IR, its loop and branch bodies' too; shared bytes are counted once."""
    root = ET.parse(path).getroot()  # noqa: S314 - an artifact of ours
    seen: set[str] = set()
    for net in (found for found in root.iter() if found.find("layers") is not None):
        yield from _openvino_net(net, seen)


def _openvino_net(net: ET.Element, seen: set[str]) -> Found:
    layers = {layer.get("id", ""): layer for layer in net.iterfind("layers/layer")}
    kinds = {number: layer.get("type", "") for number, layer in layers.items()}
    readers: dict[str, list[tuple[str, int]]] = {}
    for edge in net.iterfind("edges/edge"):
        reader, port = edge.get("to-layer", ""), int(edge.get("to-port", "0"))
        readers.setdefault(edge.get("from-layer", ""), []).append((reader, port))
    for number, layer in layers.items():
        data = layer.find("data")
        if layer.get("type") != "Const" or data is None:
            continue
        offset, size = data.get("offset", "0"), int(data.get("size", "0"))
        if offset not in seen:
            seen.add(offset)
            read = {kinds[reader] for reader, _ in readers.get(number, [])}
            scales = _scales_blocks(number, kinds, readers)
            yield offset, "scales" if scales else _kind_openvino(data, read), size


def _scales_blocks(
    number: str, kinds: dict[str, str], readers: dict[str, list[tuple[str, int]]]
) -> bool:
    """Does a constant multiply integers in blocks, which a Reshape then joins?"""
    after = readers.get(number, [])
    if len(after) == 1 and kinds[after[0][0]] == "Convert":
        after = readers.get(after[0][0], [])
    if [(kinds[reader], port) for reader, port in after] != [("Multiply", 1)]:
        return False
    return [kinds[reader] for reader, _ in readers.get(after[0][0], [])] == ["Reshape"]


def _kind_openvino(data: ET.Element, kinds: set[str]) -> str:
    shape = [int(x) for x in (data.get("shape") or "").replace(" ", "").split(",") if x]
    dtype = data.get("element_type", "")
    wide = [size for size in shape if size > 1]
    if _PRECISIONS.get(dtype) is None:
        return "constants"
    if kinds & {"FakeQuantize"}:
        return "scales"
    if len(wide) < _SMALL and _PRECISIONS[dtype] in {"float", "half"}:
        return "scales" if kinds == {"Multiply"} else "biases"
    return "weights " + _PRECISIONS[dtype]


def _safetensors(artifact: Artifact) -> Found:
    for name in artifact.files:
        if name.endswith(".safetensors"):
            with (artifact.root / name).open("rb") as stream:
                (length,) = struct.unpack("<Q", stream.read(8))
                header = json.loads(stream.read(length))
            for key, entry in header.items():
                if key != "__metadata__":
                    start, end = entry["data_offsets"]
                    yield key, _kind(entry["dtype"], len(entry["shape"])), end - start
