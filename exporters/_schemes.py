"""The integers each CPU engine wants: one declaration per target, used by the quantization passes."""

from __future__ import annotations

from exporters.base import QuantScheme

_MOVING = frozenset(
    {"MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "Split",
     "Identity", "DepthToSpace"}
)  # fmt: skip

# Integer kernels that ONNX Runtime 1.31's CPU provider makes of Q/DQ pairs and that pay off there;
# found in its optimized graphs (benchmarks/quantization_engines).
ONNXRUNTIME = QuantScheme(
    ops=frozenset(
        {"Conv", "Gemm", "MatMul", "Add", "Mul", "AveragePool", "GlobalAveragePool", "Sigmoid",
         "HardSigmoid", "LeakyRelu", "Concat"}
    ),
    passthrough=_MOVING,
    never={
        "ConvTranspose": "ONNX Runtime has no integer ConvTranspose on CPUs",
        "Softmax": "8-bit attention weights cost accuracy and save nothing",
        "LayerNormalization": "normalization stays float on purpose",
        "GRU": "ONNX Runtime has no integer GRU; quantize_weights stores its weights in integers",
        "LSTM": "a static integer LSTM is not run; quantize_weights stores its weights in integers",
        "RNN": "ONNX Runtime has no integer RNN; quantize_weights stores its weights in integers",
    },
)  # fmt: skip

OPENVINO = QuantScheme(
    ops=frozenset(
        {"Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul", "AveragePool", "Concat"}
    ),
    passthrough=_MOVING | {"Resize", "Pad"},
    never={
        "Softmax": "normalization stays float on purpose",
        "LayerNormalization": "normalization stays float on purpose",
        "GRU": "OpenVINO's integer GRU is not used; quantize_weights stores its weights in integers",
        "LSTM": "OpenVINO's integer LSTM is not used; quantize_weights stores its weights in integers",
        "RNN": "OpenVINO has no integer RNN; quantize_weights stores its weights in integers",
    },
)
