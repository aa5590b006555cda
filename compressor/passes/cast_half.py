"""Weights stored as float16, computed with as before: half the bytes at no cost in speed on CPUs.

CPU engines compute these layers in float32 (or in what the device does by default), so the values
are cast back, and both engines fold that cast while they load. Values beyond float16's range keep
their tensor in float32, and the notes say so. Inputs and outputs do not change.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata

from exporters.base import Context, Env
from runtimes.errors import Refusal, Unsupported
from runtimes.types import Artifact

REV = 1
ACCEPTS = frozenset({"onnx", "onnxruntime", "openvino"})
PRODUCES = "same"
NEEDS: frozenset[str] = frozenset()
USES: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Options:
    """What is cast.

    Attributes:
        least: smaller tensors (in values) are left in float32: their cast would cost more bytes.
    """

    least: int = 64


def tools() -> dict[str, str]:
    """Versions of what reads and writes the models."""
    found = {"onnx": metadata.version("onnx")}
    try:
        found["openvino"] = metadata.version("openvino")
    except metadata.PackageNotFoundError:
        return found
    return found


def refusals(source: Artifact, options: Options, context: Context) -> list[Refusal]:
    """A model without a float32 weight that could be cast."""
    from compressor.quantization import half

    if half.castable(source, options.least, context.keep):
        return []
    why = f"no float32 weight of {options.least} values or more outside what `keep` names"
    return [Refusal("model", why, "ship it as it is")]


def run(source: Artifact, options: Options, env: Env) -> Artifact:
    """Cast the weights and write the model; raises `Unsupported` where there are none."""
    from compressor.quantization import half

    found = refusals(source, options, env.context)
    if found:
        raise Unsupported("nothing to store as float16", found, where="cast_half")
    return half.run(source, options.least, env)
