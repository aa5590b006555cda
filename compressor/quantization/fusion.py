"""An 8-bit product and the bias added to it, as one node of ONNX Runtime's.

From Q/DQ around a MatMul ONNX Runtime makes MatMulIntegerToFloat while it loads, which could add a
bias, but leaves the Add behind the MatMul a node of its own (version 1.31). Written as that node
from the start, answers are bit for bit the same, and a layer is one pass over its outputs shorter:
small transformers are 1.06 to 1.10 times as fast (benchmarks/quantization_fusion).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from compressor.quantization.onnx_index import Index, index
from exporters._onnx_graph import MICROSOFT, attribute, import_microsoft, needed, replace

OP = "MatMulIntegerToFloat"


@dataclass(frozen=True)
class Product:
    """A MatMul of two dequantized tensors, and the Add of its bias."""

    node: Any
    left: Any
    right: Any
    add: Any
    bias: str


def products(model: Any) -> list[Product]:
    """Those of the main graph, in order."""
    graph = index(model)
    found = (_product(graph, node) for node in model.graph.node if node.op_type == "MatMul")
    return [product for product in found if product is not None]


def _product(graph: Index, node: Any) -> Product | None:
    left, right = (graph.producers.get(name) for name in node.input)
    add = graph.only_consumer(node.output[0])
    if add is None or add.op_type != "Add" or not (_whole(graph, left) and right is not None):
        return None
    columns = _columns(graph, right)
    bias = next(name for name in add.input if name != node.output[0])
    tensor = graph.weights.get(bias)
    if tensor is None or bias not in graph.floats or list(tensor.dims) != [columns]:
        return None
    return Product(node, left, right, add, bias)


def _whole(graph: Index, node: Any | None) -> bool:
    """Whether `node` dequantizes a computed tensor by one scale."""
    if node is None or node.op_type != "DequantizeLinear" or node.input[1] not in graph.weights:
        return False
    return not graph.weights[node.input[1]].dims and node.input[0] not in graph.weights


def _columns(graph: Index, node: Any) -> int | None:
    """Columns of the 8-bit matrix that `node` dequantizes by a scale a column, else None."""
    scale = graph.weights.get(node.input[1]) if node.op_type == "DequantizeLinear" else None
    if scale is None or len(scale.dims) != 1 or attribute(node, "block_size", 0):
        return None
    rank = graph.ranks.get(node.output[0])
    return int(scale.dims[0]) if rank == 2 and attribute(node, "axis", 1) in (1, -1) else None


def fuse(model: Any, found: list[Product]) -> None:
    """Write `found`, which `products` gave for `model`, as one node each, in place."""
    import onnx

    made, gone = {}, set()
    for one in found:
        integers = [one.left.input[0], one.right.input[0], one.left.input[1], one.right.input[1]]
        zeros = [node.input[2] if len(node.input) > 2 else "" for node in (one.left, one.right)]
        made[one.add.name] = onnx.helper.make_node(
            OP, [*integers, *zeros, one.bias], list(one.add.output),
            name=one.node.name, domain=MICROSOFT,
        )  # fmt: skip
        gone.add(one.node.name)
    nodes = [made.get(node.name, node) for node in model.graph.node if node.name not in gone]
    outputs = [value.name for value in model.graph.output]
    replace(model.graph.node, needed(nodes, outputs))
    import_microsoft(model)
