"""What the targets that ship a bundle declare alike."""

from __future__ import annotations

from exporters import _schemes
from exporters.base import Rung, StepSpec, Target

_CLEAN = StepSpec("to_onnxruntime")
_INT8 = StepSpec("quantize_static")
_MIXED = StepSpec("quantize_mixed")
_HALF = StepSpec("cast_half", {"compute": "half"})
# Roundings that half precision flips add up to more noise than half precision itself has.
_REST = StepSpec("cast_half", {"compute": "half", "least_db": 20.0}, optional=True)


def bundle_target(name: str, *steps: StepSpec) -> Target:
    """Its format has its name, and `steps` make an artifact of it from the typed ONNX model."""
    return Target(
        name=name,
        runtime="tensorrt",
        formats=frozenset({name}),
        twin=steps,
        half_twin=(_HALF, *steps),
        ladder=(
            Rung("int8", (_CLEAN, _INT8, _REST, *steps)),
            Rung("mixed", (_CLEAN, _MIXED, _REST, *steps)),
            Rung("half", (_CLEAN, _HALF, *steps)),
        ),
        scheme=_schemes.TENSORRT,
        device="GPU",
        emulator="onnxruntime",
        width_multiple=32,
    )
