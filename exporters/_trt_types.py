"""What the number types in a model ask of a GPU and of TensorRT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from exporters._onnx_graph import graphs
from runtimes.errors import Refusal

# GPUs that TensorRT 10.3 to 11 build for; Orin is 87, Thor 110.
SMS = (75, 80, 86, 87, 89, 90, 100, 110, 120)
# ONNX type → its name, and the first compute capability with it. TensorRT-RTX 1.7.1 refuses INT4
# and BF16 for 75 and FP8 below 89 ("the model contains HW-specific datatypes").
_FIRST = {
    "FLOAT8E4M3FN": ("FP8", 89),
    "INT4": ("INT4", 80),
    "BFLOAT16": ("BF16", 80),
}
_BOARDS = {75: "Turing", 86: "Ampere", 87: "Orin"}


@dataclass(frozen=True)
class Needs:
    """The type that asks most of a GPU, and the first compute capability that has it."""

    what: str = ""
    sm: int | None = None

    def lack(self, sms: Sequence[int]) -> list[int]:
        """Those of `sms` without it."""
        return [sm for sm in sms if sm < (self.sm or 0)]

    def refusals(self, sms: Sequence[int], option: str) -> list[Refusal]:
        """A reason for each GPU that somebody asked for by `option` and that has no such type."""
        rest = [sm for sm in sms if sm not in self.lack(sms)] or [self.sm or 0]
        fix = f"{option}: {rest}, or another precision (INT8 runs on all)"
        return [
            Refusal(_gpu(sm), f"it has no {self.what}, which begins with {self.sm}", fix)
            for sm in self.lack(sms)
        ]


def _gpu(sm: int) -> str:
    return f"compute capability {sm}" + (f" ({_BOARDS[sm]})" if sm in _BOARDS else "")


def needs(model: Any) -> Needs:
    """What the types of `model`'s constants ask for: weights of all layers are among them."""
    import onnx

    names = onnx.TensorProto.DataType
    kinds = {names.Name(t.data_type) for g in graphs(model.graph) for t in g.initializer}
    found = [_FIRST[kind] for kind in _FIRST if kind in kinds]
    return Needs(*max(found, key=lambda one: one[1])) if found else Needs()


def in_bfloat16(model: Any) -> bool:
    """Does it hold constants in BF16, which ONNX Runtime's CPU has no products of?"""
    import onnx

    kind = onnx.TensorProto.BFLOAT16
    return any(tensor.data_type == kind for tensor in model.graph.initializer)
