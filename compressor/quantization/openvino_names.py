"""What a user who knows the ONNX graph calls the layers of an OpenVINO model."""

from __future__ import annotations

from typing import Any

from compressor.quantization.keep import Named
from compressor.quantization.openvino_branches import nested_ops

_ONNX_OPS = {
    "Convolution": ("Conv",),
    "GroupConvolution": ("Conv",),
    "ConvolutionBackpropData": ("ConvTranspose",),
    "MatMul": ("MatMul", "Gemm"),
    "Multiply": ("Mul",),
    "Subtract": ("Sub",),
    "Divide": ("Div",),
    "MVN": ("LayerNormalization", "InstanceNormalization"),
    "ReduceMean": ("ReduceMean", "GlobalAveragePool"),
    "AvgPool": ("AveragePool",),
    "HSwish": ("HardSwish",),
    "ReLU": ("Relu",),
    "GRUSequence": ("GRU",),
    "LSTMSequence": ("LSTM",),
    "RNNSequence": ("RNN",),
}


def named(model: Any) -> list[Named]:
    """The layers of `model` and its bodies with every name and ONNX op type a pattern may use."""
    found = []
    for op in nested_ops(model):
        kind = op.get_type_name()
        if kind in {"Constant", "Convert", "Parameter", "Result"}:
            continue
        name = op.get_friendly_name()
        aliases = {name.removesuffix("/WithoutBiases")}
        aliases |= {n for output in op.outputs() for n in output.get_names()}
        aliases |= {
            value.get_node().get_friendly_name()
            for value in op.input_values()
            if value.get_node().get_type_name() == "Constant"
        }
        found.append(Named(name, (kind, *_ONNX_OPS.get(kind, ())), tuple(sorted(aliases - {name}))))
    return found
