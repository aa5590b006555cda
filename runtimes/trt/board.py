"""Facts about the board: driver, JetPack, power mode, temperature, memory. Reads, never sets."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Dict, List, Optional

Text = Optional[str]


def facts(root: Path = Path("/")) -> Dict[str, Any]:
    """What can be read of the board; None for what is not there."""
    return {
        "model": _first(root, "proc/device-tree/model", "sys/class/dmi/id/product_name"),
        "l4t": l4t(_read(root / "etc/nv_tegra_release")),
        "jetpack": jetpack(_output("dpkg-query", "-W", "-f=${Version}", "nvidia-jetpack")),
        "power_mode": power_mode(_output("nvpmodel", "-q")),
        "temperature_c": temperature_c(root),
        "memory_available_bytes": available_bytes(_read(root / "proc/meminfo")),
    }


def driver_version(root: Path = Path("/")) -> Text:
    """The kernel module's version on a PC, L4T's on a Jetson."""
    found = re.search(r"Kernel Module\D*([\d.]+)", _read(root / "proc/driver/nvidia/version"))
    return found.group(1) if found else l4t(_read(root / "etc/nv_tegra_release"))


def l4t(text: str) -> Text:
    """`36.4.0` from `# R36 (release), REVISION: 4.0, …`."""
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text)
    return f"{found.group(1)}.{found.group(2)}" if found else None


def jetpack(text: str) -> Text:
    """`6.1` from the package's version `6.1+b123`."""
    found = re.match(r"\d+(\.\d+)+", text)
    return found.group(0) if found else None


def power_mode(text: str) -> Text:
    """The name behind `NV Power Mode:` in the answer of `nvpmodel -q`."""
    found = re.search(r"NV Power Mode:\s*(\S+)", text)
    return found.group(1) if found else None


def temperature_c(root: Path = Path("/")) -> Optional[float]:
    """The hottest thermal zone."""
    texts = [_read(zone) for zone in sorted((root / "sys/class/thermal").glob("*/temp"))]
    values = [int(text) / 1000 for text in map(str.strip, texts) if text.lstrip("-").isdigit()]
    return max(values) if values else None


def available_bytes(text: str) -> Optional[int]:
    """Memory that programs can still get, from `/proc/meminfo`; on a Jetson the GPU's too."""
    found = re.search(r"MemAvailable:\s*(\d+) kB", text)
    return int(found.group(1)) * 1024 if found else None


def _first(root: Path, *names: str) -> Text:
    texts = [_read(root / name).strip(" \0\n") for name in names]
    return next((text for text in texts if text), None)


def _output(*command: str) -> str:
    """What a tool of the board prints; empty where there is none or it fails."""
    tool = shutil.which(command[0])
    if tool is None:
        return ""
    arguments: List[str] = [tool, *command[1:]]
    try:
        done = subprocess.run(
            arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
