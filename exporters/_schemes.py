"""The integers each engine wants: one declaration per target, for the quantization passes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from exporters.base import QuantScheme

_MOVING = frozenset(
    {"MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather",
     "Split", "Identity", "DepthToSpace"}
)  # fmt: skip

_STORE = "quantize_weights stores its weights in integers"

# Integer kernels that ONNX Runtime 1.31's CPU provider makes of Q/DQ pairs and that pay off there;
# found in its optimized graphs (benchmarks/quantization_engines). u8 activations x s8 weights: what
# VNNI multiplies, and on x86 the only activations that ONNX Runtime fuses throughout.
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
    fused=frozenset(
        {"Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul", "AveragePool",
         "GlobalAveragePool", "Sigmoid", "LeakyRelu", "Concat", "Softmax"}
    ),
)  # fmt: skip

# Without VNNI, x86 adds pairs of u8 x s8 products in 16 bits, which saturate: weights of 7 bits do
# not (ONNX Runtime's documentation, "When to use per-channel and reduce-range").
ONNXRUNTIME_X86 = replace(ONNXRUNTIME, reduce_range=True)

# 64-bit ARM multiplies s8 x s8; of u8 activations its kernels flip the sign first (onnxruntime pull
# request 9902). Weights must be symmetric for the fast convolutions (9655), activations need not:
# with a free zero point Relu is still absorbed, and models are as exact as with u8 (symmetric ones
# lost up to 6 dB and kept convolutions with a Relu in float, measured on the test models).
ONNXRUNTIME_ARM = replace(ONNXRUNTIME, activation_signed=True)

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

# The same sums in 16 bits (OpenVINO's documentation, "Saturation (overflow) issue workaround").
OPENVINO_X86 = replace(OPENVINO, reduce_range=True)

# Pairs as TensorRT's documentation on explicit quantization places them ("Q/DQ layer-placement
# recommendations"): in front of what multiplies weights, on the skip branch of a residual Add, and
# one scale for all that a Concat joins. Everything else is TensorRT's own business.
TENSORRT = QuantScheme(
    activation_signed=True,
    activation_symmetric=True,
    explicit=True,
    numbers=frozenset({"int8", "float8"}),
    ops=frozenset({"Conv", "Gemm", "MatMul", "Add", "Concat"}),
    passthrough=_MOVING | {"Resize"},
    never={
        "ConvTranspose": "TensorRT-RTX runs an integer ConvTranspose in float, and this one makes "
        "no Conv",
        "Softmax": "normalization stays float on purpose",
        "LayerNormalization": "normalization stays float on purpose",
        "InstanceNormalization": "normalization stays float on purpose",
        "GroupNormalization": "normalization stays float on purpose",
        "GRU": "TensorRT has no integer GRU",
        "LSTM": "TensorRT has no integer LSTM",
        "RNN": "TensorRT has no integer RNN",
    },
)


def saturates(flags: Collection[str]) -> bool:
    """Does a CPU with these flags (as in /proc/cpuinfo) add u8 x s8 products in 16 bits?

    x86 without VNNI does.
    """
    have = set(flags)
    vnni = {"avx512_vnni", "avx_vnni", "avx10_1"} & have
    return not vnni and bool({"sse2", "sse4_1", "avx", "avx2", "lm"} & have)
