"""Artifact → outputs and times: the part that travels to a board.

The standard library and numpy are imported at module level, an engine only inside the functions
that use it, and every file here parses on Python 3.8 (older JetPack). No torch (except
`rt_torch`), no onnx, no pydantic.
"""

import sys

# `import openvino` alone reports home through this package unless the user ever declined (no
# consent file counts as consent); so does NNCF. Both do without it where it looks absent. All
# three of our packages import this one first, in every process of a run.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
