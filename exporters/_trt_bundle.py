"""The folder that is carried to a board: model, description, reference answers, builder.

model.onnx        typed and with its Q/DQ pairs: all that the engine is built from
trt.json          shapes, precision of each layer, what it needs, how to build, what was checked
reference.npz     inputs, and what ONNX Runtime gives for them on model.onnx
build_engine.py   builds, checks and times the engine there, with trt/ beside it
README.md         what to type
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exporters._trt_board import copy_board_files
from exporters._trt_layers import Row, precision_of
from runtimes.arrays import write_arrays
from runtimes.types import sha256_of

SCHEMA = 1
EMULATED = "emulated.onnx"
MODEL, DESCRIPTION, REFERENCE = "model.onnx", "trt.json", "reference.npz"
# What engines lose against ONNX Runtime on the same file: TF32 has float16's digits, half sums in
# other orders, and a value near the middle between two integers goes to one or the other. BF16 has
# three digits less than half, of which an engine that fuses rounds fewer away.
LEAST_DB = {"fp32": 50.0, "fp16": 30.0, "bf16": 25.0, "int8": 20.0, "fp8": 20.0, "int4": 30.0}


_BF16 = f""" Its CPU has no
products in BF16: the reference and the scores are of `{EMULATED}`, the same model in float32,
rounded to BF16 after every operator."""


@dataclass(frozen=True)
class Content:
    """What a bundle says of its model."""

    inputs: Sequence[Mapping[str, Any]]
    outputs: Sequence[Mapping[str, Any]]
    layers: Sequence[Row]
    checks: Sequence[Mapping[str, str]]
    opset: int
    builder: Mapping[str, Any]
    sms: Sequence[int]
    least_sm: int | None
    least_db: float | None
    samples: int
    of_calibration: bool
    rtx: Mapping[str, Any] | None

    @property
    def precision(self) -> str:
        """Of the variant; the types are in the file."""
        return precision_of(self.layers)


def write_reference(path: Path, feeds: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
    """Write inputs and answers under `in/` and `out/`."""
    named: dict[str, np.ndarray[Any, Any]] = {f"in/{name}": value for name, value in feeds.items()}
    write_arrays(path, {**named, **{f"out/{name}": value for name, value in outputs.items()}})


def write_bundle(root: Path, content: Content) -> None:
    """Put everything beside `model.onnx` and `reference.npz`, which are there already."""
    copy_board_files(root)
    (root / "README.md").write_text(_readme(root, content), encoding="utf-8")
    text = json.dumps(description(root, content), indent=1, sort_keys=True, allow_nan=False)
    (root / DESCRIPTION).write_text(text + "\n", encoding="utf-8")


def model_files(root: Path) -> list[str]:
    """The model's own files: model.onnx, and its weights where they lie outside."""
    return sorted(path.name for path in root.glob(f"{MODEL}*"))


def description(root: Path, content: Content) -> dict[str, Any]:
    """`trt.json`."""
    least = content.least_db
    digests = {name: sha256_of(root / name) for name in [*model_files(root), REFERENCE]}
    return {
        "schema": SCHEMA,
        "status": "portable",
        "model": MODEL,
        "sha256": digests,
        "inputs": list(content.inputs),
        "outputs": list(content.outputs),
        "precision": content.precision,
        "layers": list(content.layers),
        "requires": {
            "tensorrt": {"min": _least_version(content.opset), "below": "12"},
            "sm": list(content.sms),
            "sm_min": content.least_sm,
            "jetpack": _jetpack(content),
            "opset": content.opset,
        },
        "builder": dict(content.builder),
        "tolerance": {"sqnr_db": LEAST_DB[content.precision] if least is None else least},
        "reference": {
            "samples": content.samples,
            "of": "calibration data" if content.of_calibration else "seeded examples",
        },
        "checks": list(content.checks),
        "rtx": content.rtx,
    }


def _least_version(opset: int) -> str:
    """The first TensorRT that is known to document the operator set."""
    return "10.3" if opset <= 20 else "10.15" if opset <= 24 else "11.0"


def _jetpack(content: Content) -> str:
    """The first whose TensorRT and board take it; Orin has no FP8, and Thor came with 7.0."""
    if 87 not in content.sms:
        return "7.0 or later, on Thor" if 110 in content.sms else "none"
    return "6.1 or later" if _least_version(content.opset) == "10.3" else "7.2 or later"


def _readme(root: Path, content: Content) -> str:
    shapes = "\n".join(
        f"    {row['name']}: {row['dtype']} {row['shape']}, smallest {row['min']}, "
        f"typical {row['opt']}, largest {row['max']}"
        for row in content.inputs
    )
    jetpack = f"JetPack {_jetpack(content)}" if _jetpack(content) != "none" else "on no Jetson"
    more = _BF16 if (root / EMULATED).is_file() else ""
    given = "calibration data" if content.of_calibration else "seeded examples (no data was given)"
    return f"""# A model for TensorRT ({content.precision})

No engine is in here: TensorRT builds one for the GPU and the version it runs on. On the device,
with its own TensorRT {_least_version(content.opset)} or later ({jetpack}), Python 3.8 or later and
numpy:

    python3 build_engine.py --result-json r.json

That checks version and GPU, builds `model.engine`, compares its answers with `reference.npz`, times
it, and writes what it found to `r.json` and `engine.json`. Exit codes: 0 validated, 2 usage, 4 a
version or GPU this bundle is not for, 5 it cannot be built, 7 damaged files or other answers.
Back on the machine that made this bundle, `compress report OUT --add r.json` takes the results in.

Inputs, and the sizes the engine is built for:

{shapes}

Reference: {content.samples} samples of {given}, answered by ONNX Runtime on `model.onnx`.
`trtexec --onnx=model.onnx` builds it too. In ONNX Runtime set `session.disable_quant_qdq` to "1":
its own rewriting of pairs in FP16 (seen in 1.31) gives other answers.{more}
"""
