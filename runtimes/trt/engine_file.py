"""An engine and the `engine.json` beside it: whether both fit this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, Mapping, NamedTuple, Optional

from .bundle import numbers
from .errors import BAD, UNSUPPORTED, USAGE, TrtError
from .files import sha256_of

REBUILD = "build it here: python build_engine.py --rebuild"


class Here(NamedTuple):
    """What an engine is tied to."""

    api: str
    version: str
    device: str
    sm: int


def facts_path(engine: Path) -> Path:
    """`engine.json` of `model.engine`; of another engine, its own name and `.json`."""
    usual = engine.name == "model.engine"
    return engine.with_name("engine.json" if usual else engine.name + ".json")


def read_facts(engine: Path) -> Optional[Dict[str, Any]]:
    """What `engine.json` says; None where there is none that can be read."""
    try:
        data = json.loads(facts_path(engine).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) and isinstance(data.get("engine"), dict) else None


def why_not(engine: Path, digest: str, here: Here) -> Optional[TrtError]:
    """Why the engine in this file cannot be used here; None where it can.

    Exit code 2: there is none. 7: damaged, or of another model. 4: of another GPU or version.
    """
    where = str(engine)
    if not engine.is_file():
        return TrtError("no engine yet", USAGE, where=where, fix="python build_engine.py")
    facts = read_facts(engine)
    if facts is None:
        return TrtError("no engine.json beside it says what it is", BAD, where=where, fix=REBUILD)
    if sha256_of(engine) != facts["engine"].get("sha256"):
        return TrtError("damaged: not the engine of engine.json", BAD, where=where, fix=REBUILD)
    if facts.get("bundle") != digest:
        return TrtError("built of another model", BAD, where=where, fix=REBUILD)
    return _other_machine(facts, here, where)


def ahead_why_not(engine: Path, made: Mapping[str, Any], here: Here) -> Optional[TrtError]:
    """Why a plan that was compiled without a GPU cannot be used here; None where it can.

    `made` says its `version` and `compute_capabilities`. Exit codes as above.
    """
    where = str(engine)
    if not engine.is_file():
        return TrtError("the plan is gone", BAD, where=where, fix=REBUILD)
    if made["version"] != here.version:
        what, expected, got = "version of TensorRT-RTX", made["version"], here.version
    elif here.sm not in made["compute_capabilities"]:
        sms = ", ".join(f"SM {sm}" for sm in made["compute_capabilities"])
        what, expected, got = "GPU", sms, f"{here.device} (SM {here.sm})"
    else:
        return None
    fix = "name this GPU in compute_capabilities and compile with this version"
    return TrtError(
        f"this plan was compiled for another {what}",
        UNSUPPORTED,
        where=where,
        expected=expected,
        got=got,
        fix=fix,
    )


def _other_machine(facts: Mapping[str, Any], here: Here, where: str) -> Optional[TrtError]:
    engine, built = facts["engine"], facts.get("device", {})
    version = str(facts.get("versions", {}).get(engine.get("api")))
    pairs = {
        "library": (str(engine.get("api")), here.api, _libraries(engine, here)),
        "GPU": (
            f"{built.get('name')} (SM {built.get('sm')})",
            f"{here.device} (SM {here.sm})",
            _gpus(engine, built, here),
        ),
        "TensorRT": (version, here.version, _versions(engine, version, here)),
    }
    for what, (expected, got, compatible) in pairs.items():
        if expected != got and not compatible:
            return TrtError(
                f"this engine was built for another {what}",
                UNSUPPORTED,
                where=where,
                expected=expected,
                got=got,
                fix=REBUILD,
            )
    return None


def _libraries(engine: Mapping[str, Any], here: Here) -> bool:
    """The lean runtime loads version-compatible engines."""
    pair = {engine.get("api"), here.api}
    return bool(engine.get("version_compatible")) and pair == {"tensorrt", "tensorrt_lean"}


def _versions(engine: Mapping[str, Any], built: str, here: Here) -> bool:
    """Later versions of the same major load version-compatible engines."""
    old, new = numbers(built), numbers(here.version)
    return bool(engine.get("version_compatible")) and old[:1] == new[:1] and new >= old


def _gpus(engine: Mapping[str, Any], built: Mapping[str, Any], here: Here) -> bool:
    """Hardware-compatible engines run on desktop GPUs from Ampere (SM 80) on, not on a Jetson."""
    asked = engine.get("builder", {}).get("hardware_compatible")
    jetsons = {72, 87, 110}
    sms = {int(built.get("sm") or 0), here.sm}
    return bool(asked) and min(sms) >= 80 and not sms & jetsons
