"""Weights as integers: scales per channel, 4-bit packing, and ONNX tensors holding them.

Scales are those of symmetric quantization, w ≈ q·scale, one per channel along one axis.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.base import QuantScheme

Floats = NDArray[np.float32]
Ints = NDArray[np.int8]
FLOAT8_LARGEST = 448.0  # of E4M3, which has no infinity

# The last candidate clips nothing; below 0.4 of the largest weight no layer ever gained.
_CLIPS = np.linspace(0.4, 1.0, 49)


def quantize_int8(
    weight: Floats, axis: int | None, limit: int = 127, least: float = 0.0
) -> tuple[Ints, Floats]:
    """Round to nearest on a scale of the largest magnitude; `axis` None: one scale for all.

    No scale is below `least`.

    Returns the integers in [-limit, limit] and the scales (rank 1, or rank 0 for one).
    """
    scale = _of_peaks(weight, axis, limit, least)
    integers = np.clip(np.rint(weight / scale), -limit, limit).astype(np.int8)
    return integers, scale.reshape(()) if axis is None else scale.reshape(-1)


def float8() -> Any:
    """The numpy type of E4M3 without infinities."""
    import ml_dtypes

    return np.dtype(ml_dtypes.float8_e4m3fn)


def quantize_weight(weight: Floats, axis: int | None, scheme: QuantScheme) -> tuple[Any, Floats]:
    """The 8-bit numbers that `scheme` multiplies in, and their scales, as `quantize_int8`."""
    if scheme.number == "int8":
        return quantize_int8(weight, axis, scheme.weight_limit, scheme.least_scale)
    scale = _of_peaks(weight, axis, FLOAT8_LARGEST, scheme.least_scale)
    values = np.clip(weight / scale, -FLOAT8_LARGEST, FLOAT8_LARGEST).astype(float8())
    return values, scale.reshape(()) if axis is None else scale.reshape(-1)


def _of_peaks(weight: Floats, axis: int | None, limit: float, least: float) -> Floats:
    """Scales with which the largest magnitudes become `limit`."""
    peak = np.abs(weight).max(axis=_others(weight.ndim, axis), keepdims=True)
    scale = (peak / limit).astype(np.float32)
    scale = np.where(scale >= np.finfo(np.float32).tiny, scale, np.float32(1.0))
    return np.maximum(scale, np.float32(least))


def quantize_int4(weight: Floats, axis: int) -> tuple[Ints, Floats]:
    """Round to nearest in [-8, 7] with, per channel, the scale of least squared error.

    The scale is searched over clipping thresholds and then refitted to its integers by least
    squares; both halve the error that the largest magnitude alone would leave at 4 bits.
    """
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).astype(np.float64)
    peak = np.abs(rows).max(axis=1)
    best = np.full(len(rows), np.inf)
    scales = np.ones(len(rows))
    for clip in _CLIPS:
        scale = _fit(rows, np.where(peak > 0, clip * peak / 7, 1.0))
        error = ((rows - scale[:, None] * _round4(rows, scale)) ** 2).sum(axis=1)
        better = error < best
        best, scales = np.where(better, error, best), np.where(better, scale, scales)
    final = scales.astype(np.float32)
    integers = _round4(rows, final.astype(np.float64)).astype(np.int8)
    moved = np.moveaxis(weight, axis, 0).shape
    return np.ascontiguousarray(np.moveaxis(integers.reshape(moved), 0, axis)), final


def _round4(rows: Any, scale: Any) -> Any:
    return np.clip(np.rint(rows / scale[:, None]), -8, 7)


def _fit(rows: Any, scale: Any) -> Any:
    integers = _round4(rows, scale)
    power = (integers**2).sum(axis=1)
    fitted = (rows * integers).sum(axis=1) / np.where(power > 0, power, 1)
    return np.where(fitted > 0, fitted, scale)


def dequantize(integers: Ints, scale: Floats, axis: int | None) -> Floats:
    """The weights these integers stand for."""
    return integers.astype(np.float32) * broadcast(scale, axis, integers.ndim)


def broadcast(scale: Floats, axis: int | None, rank: int) -> Floats:
    """`scale` with the shape that multiplies a tensor of `rank` along `axis`."""
    if axis is None or scale.ndim == 0:
        return scale
    shape = [1] * rank
    shape[axis] = -1
    return scale.reshape(shape)


def _others(rank: int, axis: int | None) -> tuple[int, ...]:
    return tuple(i for i in range(rank) if i != axis)


def pack_int4(integers: Ints) -> bytes:
    """Two values a byte, the first in the low half: ONNX's INT4 raw data and OpenVINO's i4."""
    flat = integers.reshape(-1).astype(np.uint8) & 15
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    return bytes((flat[0::2] | (flat[1::2] << 4)).tobytes())


def int4_tensor(integers: Ints, name: str) -> Any:
    """An ONNX INT4 tensor (operator set 21) with packed raw data."""
    import onnx

    return onnx.TensorProto(
        name=name,
        data_type=onnx.TensorProto.INT4,
        dims=integers.shape,
        raw_data=pack_int4(integers),
    )


def noise_share(weight: Floats, integers: Ints, scale: Floats, axis: int | None) -> float:
    """Power of the rounding error over the power of the weights (1/SQNR)."""
    error = weight - dequantize(integers, scale, axis)
    power = float((weight.astype(np.float64) ** 2).sum())
    return float((error.astype(np.float64) ** 2).sum()) / power if power else 0.0
