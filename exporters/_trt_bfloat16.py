"""A model in BF16 as ONNX Runtime's CPU can run it: in float32, rounded after every operator.

That CPU has casts of BF16 and no products. Types say that each operator's result is rounded to
BF16, so rounding there says the same; a GPU adds up in float32 as well. An engine that fuses
operators rounds less often.
"""

from __future__ import annotations

from typing import Any

from exporters._onnx_graph import replace
from exporters._onnx_macs import inferred
from exporters._trt_edit import Editor


def in_float32(model: Any) -> Any:
    """A copy of `model` that computes in float32 what BF16 computes; constants stay stored in it.

    Args:
        model: its main graph holds BF16 tensors; inputs and outputs are of other types.
    """
    import onnx

    half, single = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
    values = inferred(model, {}).graph.value_info
    halves = {v.name for v in values if v.type.tensor_type.elem_type == half}
    copy = type(model)()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    edit, nodes = Editor(copy), list[Any]()

    def cast(source: str, result: str, to: int) -> Any:
        return onnx.helper.make_node("Cast", [source], [result], edit.name(result), to=to)

    for tensor in copy.graph.initializer:
        if tensor.data_type == half:
            name, tensor.name = tensor.name, edit.name(tensor.name)
            nodes.append(cast(tensor.name, name, single))
    for node in copy.graph.node:
        if node.op_type == "Cast" and node.output[0] in halves:
            del node.attribute[:]
            node.attribute.append(onnx.helper.make_attribute("to", single))
        nodes.append(node)
        for i, name in enumerate(node.output):
            if name in halves:
                wide, rounded = edit.name(name), edit.name(name)
                node.output[i] = wide
                nodes += [cast(wide, rounded, half), cast(rounded, name, single)]
    replace(copy.graph.node, nodes)
    return copy
