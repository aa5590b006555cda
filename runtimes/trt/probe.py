"""Whether TensorRT can run here at all: asked in a child process, answered with a reason."""

from __future__ import annotations

from typing import Any, Dict, Mapping, Optional

from . import api
from .child import run_child
from .cuda import Cuda, Driver
from .errors import TrtError


def probe(job: Mapping[str, Any]) -> Dict[str, Any]:
    """What there is to run on.

    Args:
        job: `gpu`, an index, adds its free memory; `apis` (back ends) adds their versions.

    Returns:
        cuda (version), devices, free_bytes, libraries (back end → version) and, of those that
        cannot be imported, why.

    Raises:
        TrtError: exit code 4, with the reason, where there is no driver or no GPU.
    """
    driver = Driver()
    found = {
        "cuda": driver.cuda_version(),
        "devices": [device._asdict() for device in driver.devices()],
        "libraries": {},
        "why": {},
    }  # type: Dict[str, Any]
    if job.get("gpu") is not None:
        cuda = Cuda(int(job["gpu"]))
        found["free_bytes"] = cuda.memory()[0]
        cuda.close()
    for name in job.get("apis", ()):
        try:
            found["libraries"][name] = str(api.load(name).__version__)
        except TrtError as error:
            found["why"][name] = error.what
    return found


def why_no_gpu() -> Optional[str]:
    """One sentence where no GPU can be used here; None where one can. Never harms this process."""
    try:
        run_child("probe", {}, time_limit_s=60, quiet=True)
    except TrtError as error:
        return error.what
    return None
