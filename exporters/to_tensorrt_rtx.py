"""Step and target `tensorrt_rtx`: a TensorRT bundle → the same with a plan of TensorRT-RTX in it.

TensorRT-RTX compiles ahead of time without a GPU, for consumer cards (and no Jetson). The last part
of its work, the code of the card at hand, it does when the plan is loaded: that a plan was made
proves that the model is legal and in what each layer computes, and says nothing of speed. A plan is
no TensorRT engine; TensorRT does not load it.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from typing import Any

from exporters._onnx_graph import load_model
from exporters._rtx_check import described, in_a_sentence
from exporters._rtx_compile import FIX, PACKAGES, compile_plan, wrong_capabilities
from exporters._trt_bundle import DESCRIPTION, MODEL
from exporters._trt_check import after_mending, check_rows, errors
from exporters._trt_target import bundle_target
from exporters._trt_types import needs
from exporters.base import Context, Env, Refusal, StepSpec, installed
from runtimes.errors import BuildFailed, Unsupported
from runtimes.types import MANIFEST, Artifact

REV = 2
ACCEPTS = frozenset({"tensorrt"})
PRODUCES = "tensorrt_rtx"
NEEDS: frozenset[str] = frozenset()
USES: frozenset[str] = frozenset()
BUILD = frozenset({"compute_capabilities", "limit_s"})

PLAN = "model.rtx.plan"
_SHOWN = 8
_FIX = "keep these layers in float (keep: {float: […]}), or leave a compute capability out"
_UNFIXED = "TensorRT-RTX numbers things by their addresses, which this system does not let us fix"

# The bundle need not ask the compiler that comes next.
TARGET = bundle_target(
    "tensorrt_rtx", StepSpec("to_tensorrt", {"proxy": ()}), StepSpec("to_tensorrt_rtx")
)


@dataclass(frozen=True)
class Options:
    """What the plan is compiled for.

    Attributes:
        compute_capabilities: of the cards: 75 (Turing), 80 and 86 (Ampere), 89 (Ada), 120 and 121
            (Blackwell). One that cannot run the model fails the whole plan: FP8 begins with 89,
            INT4, BF16 and products in FP32 with 80.
        limit_s: the compiler is ended after so many seconds.
    """

    compute_capabilities: tuple[int, ...] = (86, 89, 120)
    limit_s: float = 600.0


def tools() -> dict[str, str]:
    """Versions of TensorRT-RTX's two wheels."""
    return installed(PACKAGES, "to_tensorrt_rtx", FIX)


def refusals(source: Artifact, options: Options, context: Context) -> list[Refusal]:
    """Compute capabilities that TensorRT-RTX has no code for.

    Of a model that is no bundle yet, which `compress check` hands in, what becomes of it as well.
    """
    found = wrong_capabilities(options.compute_capabilities)
    if source.format not in ACCEPTS:
        found += errors(after_mending(source, context.shapes))
    return [*found, *_lacking(source, options)]


def _lacking(source: Artifact, options: Options) -> list[Refusal]:
    """Cards that lack a number type of the model's."""
    asked = needs(load_model(source.path))
    return asked.refusals(options.compute_capabilities, "compute_capabilities")


def check_quantized(source: Artifact, context: Context) -> list[dict[str, str]]:
    """For `compress check` of a model with Q/DQ pairs: what becomes of it as a bundle."""
    return check_rows(source, context.shapes)


def run(source: Artifact, options: Options, env: Env) -> Artifact:
    """Copy the bundle and compile its model beside it.

    Raises:
        Unsupported: for cards that lack a number type of the model's.
        BuildFailed: with every node that TensorRT-RTX refuses, and with every layer that does not
            compute in what the model asks for.
    """
    if wrong := _lacking(source, options):
        raise Unsupported("not for these cards", wrong, where="to_tensorrt_rtx")
    root = env.work
    shutil.copytree(source.root, root, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
    bundle = json.loads((root / DESCRIPTION).read_text(encoding="utf-8"))
    sms = options.compute_capabilities
    outcome = compile_plan(
        root / MODEL, root / PLAN, sms, bundle["inputs"], limit_s=options.limit_s
    )
    macs = {row["name"]: int(row["macs"]) for row in bundle["layers"]}
    found = described(root / MODEL, outcome, sms, macs)
    if not outcome.compiled:
        raise BuildFailed(_listed(outcome.why_not, found), where="to_tensorrt_rtx", fix=_FIX)
    if found["problems"]:
        what = _listed("layers do not compute in what the model asks for", found)
        raise BuildFailed(what, where="to_tensorrt_rtx", fix=_FIX)
    text = json.dumps({**bundle, "rtx": found}, indent=1, sort_keys=True, allow_nan=False)
    (root / DESCRIPTION).write_text(text + "\n", encoding="utf-8")
    facts = {
        **source.facts,
        "plan": {"file": PLAN, "version": outcome.version, "compute_capabilities": list(sms)},
        "notes": [*source.facts.get("notes", []), _told(found)],
    }
    if not outcome.reproducible and "int8" in found["layers"]["by_type"]:
        facts["not_reproducible"] = _UNFIXED
    return Artifact.write(root, "tensorrt_rtx", MODEL, source.inputs, source.outputs, facts)


def _listed(what: str, found: dict[str, Any]) -> str:
    named = [f"{p['node']}: {p['text']}" for p in found["problems"] if p["node"]]
    more = [f"… and {len(named) - _SHOWN} more"] if len(named) > _SHOWN else []
    return "\n  ".join([what, *named[:_SHOWN], *more])


def _told(found: dict[str, Any]) -> str:
    """The plan in a sentence; its size is told, and what is judged is the model's."""
    size = f"{found['plan_bytes']:,} bytes with the sources of its kernels"
    return f"{PLAN}, {size}, is no TensorRT engine: {in_a_sentence(found)}"
