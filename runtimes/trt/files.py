"""Files of a bundle: written whole or not at all, and read against their digests."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Mapping

from .errors import USAGE, TrtError


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for chunk in iter(lambda: stream.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write `data` so that a reader sees the old file or the new one, never a part."""
    text = json.dumps(dict(data), indent=1, sort_keys=True, allow_nan=False) + "\n"
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(path)
    except OSError as error:
        if fresh.exists():
            fresh.unlink()
        raise TrtError(
            f"cannot be written: {error.strerror}",
            USAGE,
            where=str(path),
            fix="name a folder you may write to, with room on its disk",
        ) from error
