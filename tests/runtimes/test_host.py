"""Facts about a machine, from trees that look like one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runtimes import host

CPUINFO = "model name\t: Test CPU\nflags\t\t: fpu avx2 avx512_vnni hypervisor\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in {
        "proc/cpuinfo": CPUINFO,
        "proc/loadavg": "0.50 0.25 0.10 1/100 42\n",
        "proc/meminfo": "MemTotal: 1000 kB\nMemAvailable: 600 kB\n",
        "proc/stat": "cpu  100 0 50 9999 7 1 2 40 0 0\n",
        "proc/vmstat": "pgpgin 5\npswpin 17\n",
        "proc/self/status": "VmPeak: 9 kB\nVmHWM:\t    2048 kB\n",
        "proc/self/cgroup": "0::/job\n",
        "sys/fs/cgroup/job/cpu.max": "150000 100000\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_facts_of_a_machine(root: Path) -> None:
    facts = host.facts({"engine": "1.0"}, root)
    assert facts["cpu"] == "Test CPU"
    assert facts["isa"] == ["avx2", "avx512_vnni"]
    assert facts["virtual"] is True
    assert (facts["cpu_quota"], facts["cpus_usable"]) == (1.5, 1)
    assert facts["memory_available_bytes"] == 600 * 1024
    assert facts["versions"] == {"engine": "1.0"}


def test_what_cannot_be_read_is_none_with_a_reason(root: Path) -> None:
    facts = host.facts(root=root)
    assert facts["governor"] is None
    assert "cpufreq" in facts["unknown"]["governor"]


def test_an_empty_tree_is_no_error(tmp_path: Path) -> None:
    facts = host.facts(root=tmp_path)
    assert facts["memory_bytes"] is None
    assert host.cpu_time(tmp_path) is host.swapped_in_pages(tmp_path) is None
    assert host.peak_rss_bytes(tmp_path) is None


def test_facts_of_this_machine_are_json() -> None:
    json.dumps(host.facts(), allow_nan=False)


def test_counters(root: Path) -> None:
    per_second = host.os.sysconf("SC_CLK_TCK")
    assert host.cpu_time(root) == (153 / per_second, 40 / per_second)
    assert host.swapped_in_pages(root) == 17
    assert host.peak_rss_bytes(root) == 2048 * 1024


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "50000 100000"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2.0),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
)
def test_cpu_quota(files: dict, quota: float | None, tmp_path: Path) -> None:
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    value, why = host.cpu_quota(tmp_path)
    assert value == quota
    assert bool(why) == (quota is None)
