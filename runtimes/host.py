"""Facts about this machine, as plain JSON: whatever can change a latency and can be read cheaply.

A fact that cannot be read is None, and `unknown` says why. Linux is read from /proc and /sys; on
another system most facts are unknown.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

ISA_FLAGS = (
    "sse4_1", "avx", "avx2", "fma", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16",
    "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip


def facts(versions: Optional[Dict[str, str]] = None, root: Path = Path("/")) -> Dict[str, Any]:
    """What is known of this machine, and the engines' `versions`; files are read below `root`."""
    cpu, flags = _cpu(root)
    governor, governor_why = _cpufreq(root, "scaling_governor")
    frequency, frequency_why = _cpufreq(root, "scaling_cur_freq")
    quota, quota_why = cpu_quota(root)
    unknown = {"governor": governor_why, "frequency_mhz": frequency_why, "cpu_quota": quota_why}
    return {
        "cpu": cpu,
        "machine": platform.machine(),
        "isa": [flag for flag in ISA_FLAGS if flag in flags],
        "virtual": "hypervisor" in flags,
        "cpus": os.cpu_count(),
        "cpus_usable": usable_cpus(quota),
        "cpu_quota": quota,
        "governor": governor,
        "frequency_mhz": int(frequency) / 1000 if frequency else None,
        "temperature_c": _temperature(root),
        "load_average": _load_average(root),
        "memory_bytes": _meminfo(root, "MemTotal"),
        "memory_available_bytes": _meminfo(root, "MemAvailable"),
        "kernel": platform.release(),
        "system": platform.system(),
        "python": platform.python_version(),
        "python_build": sys.version.split("\n")[0],
        "versions": dict(versions or {}),
        "unknown": {name: why for name, why in unknown.items() if why},
    }


class CpuTime(NamedTuple):
    """CPU time of the whole machine since boot, in seconds."""

    busy: float
    stolen: float


def cpu_time(root: Path = Path("/")) -> Optional[CpuTime]:
    """Busy time (user, nice, system, interrupts) and time a hypervisor stole; None off Linux."""
    fields = _read(root / "proc/stat").split("\n")[0].split()
    if len(fields) < 9:
        return None
    ticks = [int(field) for field in fields[1:9]]
    user, nice, system, _, _, irq, softirq, stolen = ticks
    per_second = os.sysconf("SC_CLK_TCK")
    return CpuTime((user + nice + system + irq + softirq) / per_second, stolen / per_second)


def swapped_in_pages(root: Path = Path("/")) -> Optional[int]:
    """Pages read back from swap since boot, by the whole machine; None off Linux."""
    for line in _read(root / "proc/vmstat").split("\n"):
        if line.startswith("pswpin "):
            return int(line.split()[1])
    return None


def peak_rss_bytes(root: Path = Path("/")) -> Optional[int]:
    """The most memory this process ever had resident (VmHWM); None off Linux."""
    for line in _read(root / "proc/self/status").split("\n"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def usable_cpus(quota: Optional[float] = None) -> int:
    """CPUs this process may use: its affinity mask, cut by the container's quota, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    return count if quota is None else max(1, min(count, int(quota)))


def cpu_quota(root: Path = Path("/")) -> Tuple[Optional[float], str]:
    """CPUs the container may use (cgroup v2, then v1), else None and why."""
    for folder in _cgroup_folders(root):
        parts = _read(folder / "cpu.max").split()
        if len(parts) == 2:
            if parts[0] == "max":
                return None, "no quota is set"
            return int(parts[0]) / int(parts[1]), ""
    quota = _read(root / "sys/fs/cgroup/cpu/cpu.cfs_quota_us").strip()
    period = _read(root / "sys/fs/cgroup/cpu/cpu.cfs_period_us").strip()
    if quota and period:
        return (int(quota) / int(period), "") if int(quota) > 0 else (None, "no quota is set")
    return None, "no cgroup quota file can be read"


def _cgroup_folders(root: Path) -> List[Path]:
    """This process's cgroup v2 folder, then the root one."""
    base = root / "sys/fs/cgroup"
    own = [line[3:] for line in _read(root / "proc/self/cgroup").split("\n") if line[:3] == "0::"]
    return [base / path.lstrip("/") for path in own] + [base]


def _cpu(root: Path) -> Tuple[str, Sequence[str]]:
    """Name and instruction set flags of the first CPU."""
    name, flags = "", []  # type: Tuple[str, List[str]]
    for line in _read(root / "proc/cpuinfo").split("\n"):
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "Hardware") and not name:
            name = value.strip()
        if key.strip() in ("flags", "Features") and not flags:
            flags = value.split()
    return name or platform.processor() or "unknown", flags


def _cpufreq(root: Path, name: str) -> Tuple[Optional[str], str]:
    folder = root / "sys/devices/system/cpu/cpu0/cpufreq"
    if not folder.is_dir():
        return None, "the kernel shows no cpufreq (usual in a virtual machine)"
    text = _read(folder / name).strip()
    return (text, "") if text else (None, f"{name} cannot be read")


def _temperature(root: Path) -> Optional[float]:
    """The hottest thermal zone, in °C."""
    zones = sorted((root / "sys/class/thermal").glob("thermal_zone*/temp"))
    texts = [_read(zone).strip() for zone in zones]
    values = [int(text) / 1000 for text in texts if text.lstrip("-").isdigit()]
    return max(values) if values else None


def _load_average(root: Path) -> Optional[List[float]]:
    fields = _read(root / "proc/loadavg").split()
    return [float(field) for field in fields[:3]] if len(fields) >= 3 else None


def _meminfo(root: Path, name: str) -> Optional[int]:
    for line in _read(root / "proc/meminfo").split("\n"):
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
