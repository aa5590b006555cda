"""ConvTranspose as Conv and DepthToSpace: the same sums, for engines with an integer Conv only.

Each of the s·s phases of the output (s = stride) is a convolution of the input with every s-th tap
of the kernel; DepthToSpace interleaves the phases (Shi et al., "Is the deconvolution layer the same
as a convolutional layer?", 2016).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from compressor.quantization.onnx_index import Index, Names
from exporters._onnx_graph import attribute


def transposed(node: Any, graph: Index, names: Names, onto: Any) -> list[Any] | None:
    """The nodes in place of a ConvTranspose; None where they would hold more weights than it.

    That is so where the stride does not divide the kernel: the phases are filled up with zeros.
    """
    import onnx

    shape = _geometry(node, graph)
    if shape is None:
        return None
    kernel, stride, pads, extra = shape
    taps = kernel // stride
    after = [pad - more for pad, more in zip(pads[2:], extra, strict=True)]
    if min(after) < 0:
        return None
    weight = onnx.numpy_helper.to_array(graph.weights[node.input[1]])
    inputs = [node.input[0], _store(onto, names, node.input[1], phases(weight, stride))]
    if len(node.input) > 2 and node.input[2]:
        bias = onnx.numpy_helper.to_array(graph.weights[node.input[2]])
        inputs.append(_store(onto, names, node.input[2], np.repeat(bias, stride * stride)))
    summed = names.new("t")
    conv = onnx.helper.make_node(
        "Conv", inputs, [summed], node.name, kernel_shape=[taps, taps], pads=[taps - 1] * 4
    )
    made = [conv]
    if stride > 1:
        made.append(
            onnx.helper.make_node(
                "DepthToSpace",
                [summed],
                [names.new("t")],
                names.new(node.name + "/interleave"),
                blocksize=stride,
                mode="CRD",
            )
        )
    if any(pads[:2]) or any(after):
        made.append(_crop(made[-1].output[0], pads[:2], after, node, names, onto))
    made[-1].output[0] = node.output[0]
    return made


def _geometry(node: Any, graph: Index) -> tuple[int, int, list[int], list[int]] | None:
    """(kernel, stride, pads, output padding) of a plain square 2-D layer, else None."""
    tensor = graph.weights.get(node.input[1])
    if tensor is None or len(tensor.dims) != 4 or tensor.name not in graph.floats:
        return None
    bias = node.input[2] if len(node.input) > 2 else ""
    kernel = list(tensor.dims[2:])
    strides = list(attribute(node, "strides", [1, 1]))
    plain = (
        len({*kernel}) == 1
        and len({*strides}) == 1
        and kernel[0] % strides[0] == 0
        and attribute(node, "group", 1) == 1
        and list(attribute(node, "dilations", [1, 1])) == [1, 1]
        and attribute(node, "auto_pad", b"NOTSET") in {b"NOTSET", b"VALID"}
        and attribute(node, "output_shape", None) is None
        and (not bias or bias in graph.weights)
        and len(graph.consumers[tensor.name]) == 1
    )
    if not plain:
        return None
    pads = list(attribute(node, "pads", [0, 0, 0, 0]))
    extra = list(attribute(node, "output_padding", [0, 0]))
    return kernel[0], strides[0], pads, extra


def phases(weight: Any, stride: int) -> Any:
    """[in, out, k, k] of a ConvTranspose as [out·s·s, in, k/s, k/s] of a Conv."""
    before, out, kernel, _ = weight.shape
    taps = kernel // stride
    parts = weight.reshape(before, out, taps, stride, taps, stride)[:, :, ::-1, :, ::-1, :]
    moved = parts.transpose(1, 3, 5, 0, 2, 4)
    return np.ascontiguousarray(moved.reshape(out * stride * stride, before, taps, taps))


def _store(onto: Any, names: Names, old: str, values: Any) -> str:
    import onnx

    name = names.new(old + "/phases")
    onto.initializer.append(onnx.numpy_helper.from_array(values, name))
    return name


def _crop(
    source: str, before: list[int], after: list[int], node: Any, names: Names, onto: Any
) -> Any:
    import onnx

    end = [-pad if pad else 2**31 - 1 for pad in after]
    inputs = [source]
    for what, values in (("from", before), ("to", end), ("axes", [2, 3])):
        name = names.new(f"{node.name}/{what}")
        array = np.array(values, np.int64)
        onto.initializer.append(onnx.numpy_helper.from_array(array, name))
        inputs.append(name)
    return onnx.helper.make_node("Slice", inputs, [names.new("t")], names.new(node.name + "/crop"))
