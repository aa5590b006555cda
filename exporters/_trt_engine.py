"""Where TensorRT and a GPU are at hand, a bundle gets its engine right away, by its own builder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from runtimes.errors import BadArtifact, BuildFailed, CompressError, RuntimeUnavailable

_KINDS: dict[int, type[CompressError]] = {4: RuntimeUnavailable, 7: BadArtifact}
RESULT = "r.json"


def versions_here() -> dict[str, str]:
    """TensorRT's, CUDA's and the driver's versions where an engine can be built; else empty."""
    from runtimes import rt_tensorrt

    return rt_tensorrt.versions() if rt_tensorrt.missing() is None else {}


def build_here(root: Path, scratch: Path) -> dict[str, Any]:
    """Run the bundle's `build_engine.py` in `root`; its results.

    It times nothing: the run does, beside other candidates.

    Raises:
        RuntimeUnavailable, BuildFailed, BadArtifact: by its exit code, with its own reason.
    """
    result = scratch / RESULT
    flags = ["--result-json", str(result), "--seconds", "0"]
    done = subprocess.run(
        [sys.executable, "build_engine.py", *flags],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    told: dict[str, Any] = json.loads(result.read_text()) if result.is_file() else {}
    if done.returncode == 0:
        return told
    kind = _KINDS.get(done.returncode, BuildFailed)
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    reason = str(told.get("reason") or (lines or ["no output"])[-1])
    raise kind(f"TensorRT built no engine: {reason}", where="to_tensorrt")
