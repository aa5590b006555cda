"""The workbench of an artifact: ONNX (and ONNX Runtime) or OpenVINO, behind one function."""

from __future__ import annotations

from compressor.quantization.sensitivity import Workbench
from exporters.base import Env
from runtimes.types import Artifact


def open_workbench(
    source: Artifact, env: Env, samples: int = 64, method: str = "minmax"
) -> Workbench:
    """A workbench on `source` (float, as the target's twin is), with `env`'s calibration data.

    Args:
        source: artifact of format `onnx`, `onnxruntime` or `openvino`.
        env: data, context and a scratch folder.
        samples: how many calibration samples the damage is measured on.
        method: of calibration, for the ranges of activations.
    """
    bench: Workbench
    if source.format == "openvino":
        from compressor.quantization.workbench_openvino import OpenVinoBench

        bench = OpenVinoBench(source, env, samples, method)
        return bench
    from compressor.quantization.workbench_onnx import OnnxBench

    bench = OnnxBench(source, env, samples, method)
    return bench
