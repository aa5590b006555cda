"""Named arrays in one `.npz` file, without pickle, the same bytes for the same arrays.

`numpy.savez` takes names as keyword arguments, so a tensor called `file` breaks it, and it stamps
the current time into the file; hence this pair of functions.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, Dict, Mapping

import numpy as np

from runtimes.errors import UsageError

_EPOCH = (1980, 1, 1, 0, 0, 0)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Write `arrays` by name, sorted, uncompressed; any name is allowed, slashes included."""
    with zipfile.ZipFile(str(path), "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            entry = zipfile.ZipInfo(name + ".npy", _EPOCH)
            with archive.open(entry, "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.asarray(arrays[name]), allow_pickle=False)


def read_arrays(path: Path) -> Dict[str, np.ndarray[Any, Any]]:
    """All arrays of an `.npz` file; `UsageError` where it is missing, damaged or holds objects."""
    try:
        with np.load(str(path), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise UsageError("no such file", where=str(path)) from error
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise UsageError(
            f"not a readable .npz file: {error}",
            where=str(path),
            expected="arrays by input name, no Python objects",
            fix="write it with numpy.savez(path, **arrays)",
        ) from error
