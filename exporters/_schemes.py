"""The integers each CPU engine wants: one declaration per target, for the quantization passes."""

from __future__ import annotations

from exporters.base import QuantScheme

_MOVING = frozenset(
    {"MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather",
     "Split", "Identity", "DepthToSpace"}
)  # fmt: skip

_STORE = "quantize_weights stores its weights in integers"

# Integer kernels that ONNX Runtime 1.31's CPU provider makes of Q/DQ pairs and that pay off there;
# found in its optimized graphs (benchmarks/quantization_engines).
ONNXRUNTIME = QuantScheme(
    ops=frozenset(
        {"Conv", "Gemm", "MatMul", "Add", "Mul", "AveragePool", "GlobalAveragePool", "Sigmoid",
         "HardSigmoid", "LeakyRelu", "Concat"}
    ),
    passthrough=_MOVING | {"Resize"},
    never={
        "ConvTranspose": "ONNX Runtime has no integer ConvTranspose, and this one makes no Conv",
        "Softmax": "8-bit attention weights cost accuracy and save nothing",
        "LayerNormalization": "normalization stays float on purpose",
        "GRU": "ONNX Runtime has no integer GRU; " + _STORE,
        "LSTM": "a static integer LSTM is not run; " + _STORE,
        "RNN": "ONNX Runtime has no integer RNN; " + _STORE,
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
        "GRU": "OpenVINO's integer GRU is not used; " + _STORE,
        "LSTM": "OpenVINO's integer LSTM is not used; " + _STORE,
        "RNN": "OpenVINO has no integer RNN; " + _STORE,
    },
)
