"""The bundle's own description, `trt.json`: read, checked, and held against this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

from .errors import BAD, UNSUPPORTED, USAGE, TrtError
from .files import sha256_of

SCHEMA = 1
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8", "int4")
_KEYS = ("model", "sha256", "inputs", "outputs", "precision", "layers", "requires", "builder")


class Bundle(NamedTuple):
    """A bundle's folder and what its `trt.json` says."""

    root: Path
    data: Mapping[str, Any]

    @property
    def model(self) -> Path:
        """The ONNX file."""
        return self.root / str(self.data["model"])

    @property
    def digest(self) -> str:
        """SHA-256 of the ONNX file, by which results find their bundle again."""
        return str(self.data["sha256"][self.data["model"]])

    @property
    def tolerance_db(self) -> float:
        """The SQNR that outputs must have against the reference."""
        return float(self.data.get("tolerance", {}).get("sqnr_db", 0.0))


def read_bundle(root: Path) -> Bundle:
    """The bundle in `root`.

    Raises:
        TrtError: exit code 2 where there is no trt.json, 7 where it is damaged, of another schema,
            or a file has another digest.
    """
    path = root / "trt.json"
    if not path.is_file():
        raise TrtError(
            "no trt.json",
            USAGE,
            where=str(root),
            expected="the folder of a TensorRT bundle",
            fix="name it: python build_engine.py FOLDER",
        )
    bundle = Bundle(root, _parsed(path))
    for name, expected in bundle.data["sha256"].items():
        _check_digest(root / name, expected)
    return bundle


def _parsed(path: Path) -> Dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        schema = data["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise TrtError(f"damaged: {error!r}", BAD, where=str(path)) from error
    if schema != SCHEMA:
        raise TrtError(
            "of another schema",
            BAD,
            where=str(path),
            expected=str(SCHEMA),
            got=str(schema),
            fix="use the build_engine.py that came with it",
        )
    missing = [key for key in _KEYS if key not in data]
    if missing or data["model"] not in data["sha256"] or data["precision"] not in PRECISIONS:
        what = "lacks " + ", ".join(missing) if missing else "names no model or precision we know"
        raise TrtError(what, BAD, where=str(path))
    return dict(data)


def _check_digest(path: Path, expected: str) -> None:
    if not path.is_file():
        raise TrtError("file is missing", BAD, where=str(path), fix="copy the whole bundle again")
    got = sha256_of(path)
    if got != expected:
        raise TrtError(
            "file was changed after it was made",
            BAD,
            where=str(path),
            expected="sha256 " + expected,
            got=got,
            fix="copy the whole bundle again",
        )


def numbers(version: str) -> Tuple[int, ...]:
    """The leading numbers of a version: `10.3.0.26` → (10, 3, 0, 26)."""
    found: List[int] = []
    for part in version.split("."):
        if not part.isdigit():
            break
        found.append(int(part))
    return tuple(found)


def check_version(bundle: Bundle, version: str) -> None:
    """`TrtError` (exit code 4) where this TensorRT is not in the bundle's range."""
    wanted = bundle.data["requires"].get("tensorrt", {})
    low, below = str(wanted.get("min", "0")), str(wanted.get("below", ""))
    if numbers(version) >= numbers(low) and (not below or numbers(version) < numbers(below)):
        return
    jetpack = bundle.data["requires"].get("jetpack")
    raise TrtError(
        "this TensorRT is not one the bundle was made for",
        UNSUPPORTED,
        where="TensorRT",
        expected=f">= {low}" + (f", < {below}" if below else ""),
        got=version,
        fix=(f"JetPack {jetpack}, or " if jetpack else "") + "--try-anyway at your own risk",
    )


def check_gpu(bundle: Bundle, name: str, sm: int) -> Optional[str]:
    """A sentence on a GPU newer than all the bundle knows; `TrtError` (4) on one it cannot use."""
    known = [int(each) for each in bundle.data["requires"].get("sm") or []]
    least = bundle.data["requires"].get("sm_min")
    too_old = least is not None and sm < int(least)
    if not too_old and (not known or sm in known):
        return None
    if not too_old and sm > max(known):
        return f"SM {sm} is newer than all that the bundle was made for"
    raise TrtError(
        "this GPU is not one the bundle was made for",
        UNSUPPORTED,
        where=name,
        expected="SM " + ", ".join(str(each) for each in known if each >= int(least or 0)),
        got=f"SM {sm}",
        fix="make the bundle in another precision, or --try-anyway at your own risk",
    )
