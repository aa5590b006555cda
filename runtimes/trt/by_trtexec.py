"""Building and validating through `trtexec`, where the Python binding is missing."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

from . import compare, layers, trtexec
from .errors import FAILED, TrtError
from .power import Watch
from .records import errors_in, read_outputs, read_profile, read_times
from .timing import timed
from .validate import resized, slowest


def build(job: Mapping[str, Any], time_limit_s: Optional[float]) -> Dict[str, Any]:
    """`build.build` with the tool `job["trtexec"]`; the layers' facts lie beside the engine."""
    tool, version = Path(job["trtexec"]), str(job["version"])
    facts = Path(job["engine"]).with_suffix(".layers.json")
    command = trtexec.build_command(tool, version, job, facts)
    _, taken_ns = timed(lambda: _run(command, time_limit_s))
    if not Path(job["engine"]).is_file():
        raise TrtError("no engine was written", FAILED, where=str(tool))
    return {"seconds": taken_ns / 1e9, "notes": ["built by trtexec"], "warnings": []}


def validate(job: Mapping[str, Any], time_limit_s: Optional[float]) -> Dict[str, Any]:
    """`validate.validate` with the tool `job["trtexec"]`, on one call's worth of samples."""
    feeds, expected = compare.read_reference(Path(job["reference"]))
    first, last = compare.batches(feeds, job["inputs"])[0]
    feeds = {name: value[first:last] for name, value in feeds.items()}
    expected = {name: value[first:last] for name, value in expected.items()}
    dtypes = {name: str(value.dtype) for name, value in expected.items()}
    with tempfile.TemporaryDirectory(prefix="trtexec-") as folder:
        bench = _Bench(Path(folder), job, time_limit_s)
        outputs = read_outputs(bench.run(feeds, False, 1.0)["outputs"], dtypes)
        timing = bench.times(feeds) if job["seconds"] else []
        profile = bench.profile(feeds) if job["seconds"] else []
    facts = Path(job["engine"]).with_suffix(".layers.json")
    found = layers.read_layers(facts.read_text(encoding="utf-8")) if facts.is_file() else []
    notes = [] if found else ["trtexec left no facts on layers: build again with --rebuild"]
    return {
        "layers": layers.count(found, job["layers"]) if found else {},
        "numeric": compare.compare(outputs, expected),
        "timing": timing,
        "slowest": slowest(profile),
        "memory": {},
        "notes": [*notes, f"compared on {last - first} samples, through trtexec"],
    }


class _Bench:
    """Runs of the tool in a folder of their own."""

    def __init__(self, folder: Path, job: Mapping[str, Any], time_limit_s: Optional[float]) -> None:
        self._folder, self._job, self._limit = folder, job, time_limit_s

    def times(self, feeds: compare.Arrays) -> List[Dict[str, Any]]:
        """Figures at every batch size, CUDA graph off and on as the job says."""
        made = []
        for batch in self._job["batches"] or [None]:
            sized = resized(feeds, self._job["inputs"], batch)
            for graph in self._job["graph"]:
                with Watch() as watch:
                    text = self.run(sized, graph, float(self._job["seconds"]))["times"]
                row = {"graph": graph, "batch": compare.rows(sized), **read_times(text)}
                made.append({**row, "power": watch.told} if watch.told else row)
        return made

    def profile(self, feeds: compare.Arrays) -> List[Tuple[str, float]]:
        """(layer, mean ms), from a run of its own."""
        return read_profile(self.run(feeds, False, 1.0, profile=True)["profile"])

    def run(
        self, feeds: compare.Arrays, graph: bool, seconds: float, profile: bool = False
    ) -> Dict[str, str]:
        """What one run wrote: `times`, `outputs` and, if asked for, the `profile` of layers."""
        raw = {name: self._folder / f"{i}.bin" for i, name in enumerate(sorted(feeds))}
        for name, path in raw.items():
            path.write_bytes(feeds[name].tobytes())
        free = [
            s["name"] for s in self._job["inputs"] if any(isinstance(d, str) for d in s["shape"])
        ]
        written = ("times", "outputs", *(("profile",) if profile else ()))
        made = {key: self._folder / f"{key}.json" for key in written}
        command = trtexec.bench_command(
            Path(self._job["trtexec"]),
            str(self._job["version"]),
            Path(self._job["engine"]),
            shapes={name: feeds[name].shape for name in free},
            inputs=raw,
            graph=graph,
            seconds=seconds,
            gpu=int(self._job["gpu"]),
            **made,
        )
        _run(command, self._limit)
        return {key: path.read_text(encoding="utf-8") for key, path in made.items()}


def _run(command: List[str], time_limit_s: Optional[float]) -> str:
    """What the tool printed; `TrtError` (exit code 5) with its own errors where it failed."""
    sys.stderr.write(" ".join(command) + "\n")
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=time_limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise TrtError(
            f"took longer than {time_limit_s:g} s and was ended",
            FAILED,
            where=command[0],
            fix="raise --time-limit",
        ) from error
    text = done.stdout.decode("utf-8", "replace")
    if done.returncode:
        raise TrtError(f"failed: {errors_in(text)}", FAILED, where=command[0])
    return text
