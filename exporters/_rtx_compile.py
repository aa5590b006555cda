"""TensorRT-RTX as a compiler on a machine without a GPU: one model, one process, a time limit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import util
from pathlib import Path
from typing import Any

import exporters
from exporters._rtx_layers import EngineLayer, parse_table
from runtimes.errors import BadArtifact, Refusal

# What the library has code for. Orin (87), Hopper (90) and Thor (110) are TensorRT's alone.
CAPABILITIES = (75, 80, 86, 89, 120, 121)
PACKAGES = ("tensorrt-rtx-cu13-libs", "tensorrt-rtx-cu13-bindings")
FIX = "pip install 'edge-compressor[tensorrt-rtx]'"
_MAGIC = b"vtrt"

_COMMAND = (sys.executable, "-m", "exporters._rtx_child")

Inputs = Sequence[Mapping[str, Any]]  # `name`, `min`, `opt` and `max` shape of each, as in trt.json


@dataclass(frozen=True)
class Problem:
    """What the parser or the builder objects to; `node` is empty where it names none."""

    node: str
    text: str


@dataclass(frozen=True)
class Outcome:
    """How a compilation ended.

    Attributes:
        why_not: in one sentence why there is no plan; empty where there is one.
        problems: what was objected to, by node.
        warnings: what the parser or the builder said, but went on.
        version: of the compiler; empty where it did not get so far.
        seconds: of processor time, for parsing and building.
        plan_bytes: size of the plan.
        layers: the engine's layers.
        reproducible: False where another build may number things otherwise (see `_rtx_child`).
    """

    why_not: str = ""
    problems: tuple[Problem, ...] = ()
    warnings: tuple[str, ...] = ()
    version: str = ""
    seconds: float = 0.0
    plan_bytes: int = 0
    layers: tuple[EngineLayer, ...] = ()
    reproducible: bool = True

    @property
    def compiled(self) -> bool:
        """Is there a plan?"""
        return not self.why_not


def wrong_capabilities(wanted: Sequence[int]) -> list[Refusal]:
    """Those that TensorRT-RTX has no code for; a single one would fail the whole plan."""
    why = "TensorRT-RTX has no code for it"
    fix = "take of " + ", ".join(map(str, CAPABILITIES)) + "; Jetsons and servers are TensorRT's"
    return [
        Refusal(f"compute capability {number}", why, fix)
        for number in wanted
        if number not in CAPABILITIES
    ]


def missing() -> str:
    """Why nothing can be compiled here; empty where it can."""
    there = any(util.find_spec(name) for name in ("tensorrt_rtx", "tensorrt_rtx_bindings"))
    return "" if there else f"TensorRT-RTX is not installed: {FIX}"


def compile_plan(
    model: Path,
    plan: Path,
    capabilities: Sequence[int],
    inputs: Inputs,
    *,
    limit_s: float,
) -> Outcome:
    """Compile an ONNX file into `plan`, which is written whole or not at all.

    Args:
        model: the file; its precision is in its types.
        plan: where the plan goes.
        capabilities: compute capabilities it is to run on, as 86; all of `CAPABILITIES`.
        inputs: names and shapes, for those with free dimensions.
        limit_s: the process is ended after so many seconds.
    """
    if why := missing():
        return Outcome(why_not=why)
    with tempfile.TemporaryDirectory(prefix=".rtx-", dir=plan.parent) as folder:
        work = Path(folder).resolve()
        request = {
            "model": str(model.resolve()),
            "plan": str(work / "plan"),
            "answer": str(work / "answer.json"),
            "compute_capabilities": list(capabilities),
            "inputs": [dict(spec) for spec in inputs],
        }
        (work / "request.json").write_text(json.dumps(request), encoding="utf-8")
        if why := _run(work, limit_s):
            return Outcome(why_not=why)
        outcome = _outcome(json.loads((work / "answer.json").read_text(encoding="utf-8")))
        if not outcome.compiled:
            return outcome
        made = work / "plan"
        if (version := plan_version(made)) != outcome.version:
            raise BadArtifact(
                "the plan is of another version than its compiler",
                where=str(plan),
                expected=outcome.version,
                got=version,
            )
        size = made.stat().st_size
        made.replace(plan)
    return replace(outcome, plan_bytes=size)


def _run(work: Path, limit_s: float) -> str:
    """Why the process left no answer; empty where it did."""
    with (work / "log").open("wb") as log:
        try:
            done = subprocess.run(
                [*_COMMAND, str(work / "request.json")],
                cwd=Path(exporters.__file__).parent.parent,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=limit_s,
                env={**os.environ, "PYTHONHASHSEED": "0"},
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"TensorRT-RTX was stopped after {limit_s:g} s"
    if (work / "answer.json").is_file():
        return ""
    if done.returncode < 0:
        return f"TensorRT-RTX died of {signal.Signals(-done.returncode).name}"
    told = (work / "log").read_text("utf-8", "replace").strip().splitlines()
    return f"TensorRT-RTX did not start: {told[-1] if told else f'exit code {done.returncode}'}"


def _outcome(answer: Mapping[str, Any]) -> Outcome:
    errors = [Problem(e["node"], _sentence(e["text"])) for e in answer["errors"]]
    said = [text for text in answer["log"] if not text.startswith("WARNING")]
    if answer["parsed"] and not answer["built"]:
        errors = [Problem("", _sentence(text.split(": ", 1)[1])) for text in said]
    why = ""
    if not answer["built"]:
        first = errors[0] if errors else Problem("", "it gave no reason")
        where = f"{first.node}: " if first.node else ""
        why = f"TensorRT-RTX {answer['version']} refused it: {where}{first.text}"
    return Outcome(
        why_not=why,
        problems=tuple(errors),
        warnings=tuple(text for text in answer["log"] if text.startswith("WARNING")),
        version=answer["version"],
        seconds=answer["seconds"],
        layers=tuple(parse_table(answer["table"])),
        reproducible=answer["reproducible"],
    )


def _sentence(text: str) -> str:
    """One line, without what the library adds on a machine that has no driver."""
    return " ".join(text.split()).split(" [checkMacros", 1)[0]


def plan_version(path: Path) -> str:
    """The version that wrote a plan, as `1.7.1.116`, read from its header without the library.

    Raises `BadArtifact` where the file is no plan.
    """
    with path.open("rb") as stream:
        header = stream.read(28)
    if len(header) < 28 or not header.startswith(_MAGIC):
        raise BadArtifact(
            "not a plan of TensorRT-RTX",
            where=str(path),
            expected=f"a file that begins with {_MAGIC.decode()}",
            got=f"{header[:4]!r}",
        )
    return ".".join(map(str, header[24:28]))
