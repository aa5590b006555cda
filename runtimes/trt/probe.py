"""Whether TensorRT can run here at all: asked in a child process, answered with a reason."""

from __future__ import annotations

from typing import Any, Dict, Mapping, Optional

from .child import run_child
from .cuda import Driver
from .errors import TrtError


def probe(_: Mapping[str, Any]) -> Dict[str, Any]:
    """The driver's CUDA version and its GPUs; `TrtError` (exit code 4) with the reason."""
    driver = Driver()
    found = driver.devices()
    return {"cuda": driver.cuda_version(), "devices": [device._asdict() for device in found]}


def why_no_gpu() -> Optional[str]:
    """One sentence where no GPU can be used here; None where one can. Never harms this process."""
    try:
        run_child("probe", {}, time_limit_s=60, quiet=True)
    except TrtError as error:
        return error.what
    return None
