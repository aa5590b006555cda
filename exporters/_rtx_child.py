"""One TensorRT-RTX build in a process of its own: `python -m exporters._rtx_child request.json`.

A process builds once: after a build that failed, TensorRT-RTX 1.7 compiles the next one's
convolutions in float. It raises nothing on a model that does not compile: what went wrong is in the
answer.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from runtimes.trt import api

# Its compiler numbers things in the order of their addresses, which is random by default: plans of
# INT8 models then differ from build to build.
_ADDR_NO_RANDOMIZE = 0x0040000
_TOLD = ("WARNING", "ERROR", "INTERNAL_ERROR")


def main() -> None:
    """Build what the request says, write the plan, then the answer."""
    fixed = _fix_addresses()
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    answer = {**build(api.load("tensorrt_rtx"), request), "reproducible": fixed}
    Path(request["answer"]).write_text(json.dumps(answer), encoding="utf-8")


def _fix_addresses() -> bool:
    """Start again at fixed addresses; False where the kernel does not let us, as in containers."""
    libc = ctypes.CDLL(None)
    now = libc.personality(0xFFFFFFFF) if hasattr(libc, "personality") else -1
    fixed = now >= 0 and bool(now & _ADDR_NO_RANDOMIZE)
    if not fixed and now >= 0 and libc.personality(now | _ADDR_NO_RANDOMIZE) >= 0:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - ourselves
    return fixed


def build(trt: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Errors by node, warnings, the table of layers, seconds; the plan is in its file."""
    log = _log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(api.network_flags(trt))
    began = time.process_time()
    parser = trt.OnnxParser(network, log)
    parsed = parser.parse_from_file(request["model"])
    errors = [_error(parser.get_error(i)) for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    plan = None
    if parsed:
        _set_capabilities(trt, config, request["compute_capabilities"])
        api.add_profile(network, config, builder, request["inputs"])
        plan = builder.build_serialized_network(network, config)
    if plan is not None:
        Path(request["plan"]).write_bytes(memoryview(plan))
    return {
        "version": str(trt.__version__),
        "parsed": bool(parsed),
        "built": plan is not None,
        "errors": errors,
        "log": log.told,
        "table": log.table,
        "seconds": round(time.process_time() - began, 3),
    }


def _log(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        """Keeps what is said aloud, and of the verbose lines the table of the engine's layers."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.told: list[str] = []
            self.table: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if severity.name in _TOLD:
                self.told.append(f"{severity.name}: {text.strip()}")
            elif text.startswith("Layers:"):
                self.table = text.split("\n\n", 1)[0].splitlines()[1:]

    return Log()


def _error(error: Any) -> dict[str, str]:
    return {"node": error.node_name(), "op": error.node_operator(), "text": error.desc()}


def _set_capabilities(trt: Any, config: Any, wanted: list[int]) -> None:
    config.num_compute_capabilities = len(wanted)
    for i, number in enumerate(wanted):
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{number}"), i)


if __name__ == "__main__":
    main()
