"""What `trtexec` writes: times, profiles, outputs, errors. Unknown keys are left alone."""

from __future__ import annotations

import json
from typing import Any, Dict, List, Mapping, Sequence, Tuple

import numpy as np

from .errors import FAILED, TrtError
from .timing import summary

_TIMES = ("h2dMs", "computeMs", "d2hMs")
_OLD_TIMES = ("inMs", "computeMs", "outMs")  # before 8.0


def read_times(text: str) -> Dict[str, Any]:
    """Figures of an `--exportTimes` file, as `timing.measure` gives them."""
    records = _records(text, "--exportTimes")
    if not records:
        raise TrtError("--exportTimes holds no inference", FAILED, where="trtexec")
    rows = [_row(record) for record in records]
    first = min(float(record.get("startH2dMs", record.get("startInMs", 0))) for record in records)
    last = max(float(record.get("endD2hMs", record.get("endOutMs", 0))) for record in records)
    return {**summary(rows, last - first), "source": "trtexec --exportTimes"}


def _row(record: Mapping[str, Any]) -> Tuple[float, float, float, float]:
    keys = _TIMES if _TIMES[0] in record else _OLD_TIMES
    try:
        h2d, compute, d2h = (float(record[key]) for key in keys)
        enqueue = float(record.get("endEnqMs", 0.0)) - float(record.get("startEnqMs", 0.0))
    except KeyError as error:
        raise TrtError(f"--exportTimes lacks {error}", FAILED, where="trtexec") from error
    return h2d, compute, d2h, enqueue


def read_profile(text: str) -> List[Tuple[str, float]]:
    """(layer, average ms) rows of an `--exportProfile` file, in order."""
    rows = [record for record in _records(text, "--exportProfile") if "name" in record]
    return [(str(row["name"]), float(row["averageMs"])) for row in rows]


def read_outputs(text: str, dtypes: Mapping[str, str]) -> Dict[str, np.ndarray[Any, Any]]:
    """Arrays by name from an `--exportOutput` file, in the types of the bundle's outputs."""
    made = {}
    for record in _records(text, "--exportOutput"):
        name, dims = str(record["name"]), str(record.get("dimensions", ""))
        shape = [int(part) for part in dims.split("x")] if dims else []
        values = np.array(record["values"], np.float64)
        made[name] = values.reshape(shape).astype(dtypes.get(name, "float32"))
    return made


def errors_in(log: str) -> str:
    """The last lines of a log that are marked as errors."""
    found = [line.strip() for line in log.splitlines() if "[E]" in line]
    return "\n  ".join(found[-3:]) or "\n  ".join(log.strip().splitlines()[-3:])


def _records(text: str, what: str) -> Sequence[Mapping[str, Any]]:
    try:
        found = json.loads(text)
        return [record for record in found if isinstance(record, Mapping)]
    except (ValueError, TypeError) as error:
        raise TrtError(f"{what} is no JSON: {error}", FAILED, where="trtexec") from error
