"""Power while something is timed, by the vendor's tool: `tegrastats`, or `nvidia-smi` on a PC."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from types import TracebackType
from typing import IO, Any, Dict, List, Optional, Tuple, Type

_TOOLS: Dict[str, Tuple[str, ...]] = {
    "tegrastats": ("--interval", "100"),
    "nvidia-smi": ("--query-gpu=power.draw", "--format=csv,noheader,nounits", "-lms", "100"),
}
_RAIL = re.compile(r"\b((?:VDD|VIN)_\w+) (\d+)(?:mW)?/(\d+)(?:mW)?")


class Watch:
    """A context in which the tool runs; afterwards `told` holds what it said, or is empty."""

    def __init__(self) -> None:
        self.told: Dict[str, Any] = {}
        self._process: Optional[subprocess.Popen[bytes]] = None
        self._lines: Optional[IO[bytes]] = None
        self._name = next((name for name in _TOOLS if shutil.which(name)), "")

    def __enter__(self) -> Watch:
        if self._name:
            self._lines = tempfile.TemporaryFile()
            command = [str(shutil.which(self._name)), *_TOOLS[self._name]]
            try:
                self._process = subprocess.Popen(
                    command, stdout=self._lines, stderr=subprocess.DEVNULL
                )
            except OSError:
                self._process = None
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        value: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
        if self._lines is not None:
            self._lines.seek(0)
            self.told = summary(self._name, self._lines.read().decode("utf-8", "replace"))
            self._lines.close()


def summary(tool: str, text: str) -> Dict[str, Any]:
    """Mean power in mW, of what, and over how many readings; empty where none can be read."""
    parse = _tegrastats if tool == "tegrastats" else _nvidia_smi
    readings = [reading for reading in map(parse, text.splitlines()) if reading is not None]
    if not readings:
        return {}
    mean_mw = sum(value for value, _ in readings) / len(readings)
    return {"mean_mw": mean_mw, "of": readings[0][1], "readings": len(readings), "by": tool}


def _tegrastats(line: str) -> Optional[Tuple[float, str]]:
    """The whole module's rail, where there is one; else the sum of those that are told."""
    rails = {name: float(now) for name, now, _ in _RAIL.findall(line)}
    if not rails:
        return None
    if "VDD_IN" in rails:
        return rails["VDD_IN"], "VDD_IN"
    names: List[str] = sorted(rails)
    return sum(rails.values()), " + ".join(names)


def _nvidia_smi(line: str) -> Optional[Tuple[float, str]]:
    try:
        return 1e3 * float(line), "the GPU's board"
    except ValueError:
        return None
