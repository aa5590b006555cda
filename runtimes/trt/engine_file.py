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
    built = facts.get("device", {})
    pairs = {
        "library": (facts["engine"].get("api"), here.api),
        "GPU": (f"{built.get('name')} (SM {built.get('sm')})", f"{here.device} (SM {here.sm})"),
        "TensorRT": (str(facts.get("versions", {}).get(facts["engine"].get("api"))), here.version),
    }
    compatible = facts["engine"].get("version_compatible", False)
    for what, (expected, got) in pairs.items():
        if expected == got or (compatible and _compatible(what, str(expected), got)):
            continue
        return TrtError(
            f"this engine was built for another {what}",
            UNSUPPORTED,
            where=where,
            expected=str(expected),
            got=got,
            fix=REBUILD,
        )
    return None


def _compatible(what: str, built: str, here: str) -> bool:
    """A version-compatible engine: the lean runtime, and later versions of one major, load it."""
    if what == "library":
        return {built, here} == {"tensorrt", "tensorrt_lean"}
    old, new = numbers(built), numbers(here)
    return what == "TensorRT" and old[:1] == new[:1] and new >= old
