"""Compress trained models for edge targets and prove, on the target, what it cost and gained."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compressor.api import Result, compress
    from compressor.modules import load_module
    from compressor.recipe import load_recipe
    from compressor.record import load_record
    from runtimes.errors import CompressError

__version__ = "0.1.0"
__all__ = [
    "CompressError",
    "Result",
    "__version__",
    "compress",
    "load_module",
    "load_recipe",
    "load_record",
]

_HOMES = {
    "CompressError": "runtimes.errors",
    "Result": "compressor.api",
    "compress": "compressor.api",
    "load_module": "compressor.modules",
    "load_recipe": "compressor.recipe",
    "load_record": "compressor.record",
}


def __getattr__(name: str) -> Any:
    """Public names are imported on first use, so that `compress --help` stays fast."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'compressor' has no attribute {name!r}")
