"""Command lines of `trtexec`, for boards whose Python binding is missing.

What a mode is by default changed with 11.x (CUDA graph and spin wait on, transfers off), and which
flags exist changed with 10 and 11: every mode is written out, in the words of the version.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from .bundle import numbers
from .errors import UNSUPPORTED, TrtError

_PLACES = ("/usr/src/tensorrt/bin/trtexec", "/usr/local/tensorrt/bin/trtexec")
_BANNER = re.compile(r"\[TensorRT v(\d+)\]")
_MIB = 1 << 20
Shapes = Mapping[str, Sequence[int]]


def find(given: Optional[str] = None) -> Optional[Path]:
    """The tool: the one named, the one on the path, or where packages put it."""
    places = [given] if given else [shutil.which("trtexec"), *_PLACES]
    return next((Path(place) for place in places if place and Path(place).is_file()), None)


def version_of(tool: Path) -> str:
    """Its version, from the first line it prints; `TrtError` (exit code 4) where it says none."""
    try:
        done = subprocess.run(
            [str(tool), "--help"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=60,
            check=False,
        )
        return banner_version(done.stdout.decode("utf-8", "replace"))
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise TrtError(f"says no version: {error}", UNSUPPORTED, where=str(tool)) from error


def banner_version(text: str) -> str:
    """`8.6.1` from `[TensorRT v8601]`, `10.3.0` from `[TensorRT v100300]`."""
    found = _BANNER.search(text)
    if found is None:
        raise ValueError("no [TensorRT v…] in what it prints")
    digits = int(found.group(1))
    if digits >= 10_00_00:  # two digits each since 10.0
        return f"{digits // 10000}.{digits // 100 % 100}.{digits % 100}"
    return f"{digits // 1000}.{digits // 100 % 10}.{digits % 100}"


def build_command(tool: Path, version: str, job: Mapping[str, Any], layer_info: Path) -> List[str]:
    """Builds `job["engine"]` and writes the layers' facts; `job` is that of `build.build`."""
    line = [str(tool), f"--onnx={job['model']}", f"--saveEngine={job['engine']}"]
    line.append(f"--device={job.get('gpu') or 0}")
    line += _profile(job["inputs"])
    line += _types(version, job["precision"])
    line += _builder(version, job["builder"])
    if job.get("timing_cache"):
        line.append(f"--timingCacheFile={job['timing_cache']}")
    line += ["--profilingVerbosity=detailed", f"--exportLayerInfo={layer_info}"]
    return [*line, "--skipInference" if numbers(version) >= (8, 6) else "--buildOnly"]


def bench_command(
    tool: Path,
    version: str,
    engine: Path,
    *,
    shapes: Shapes,
    inputs: Mapping[str, Path],
    graph: bool,
    seconds: float,
    times: Path,
    outputs: Path,
    gpu: int = 0,
    profile: Optional[Path] = None,
) -> List[str]:
    """Runs an engine on raw input files, transfers and spin wait on; profiles in a run apart."""
    major = numbers(version)[0]
    line = [str(tool), f"--loadEngine={engine}", f"--device={gpu}"]
    line += [f"--shapes={_shapes(shapes)}"] if shapes else []
    line.append("--loadInputs=" + ",".join(f"{name}:{path}" for name, path in inputs.items()))
    line += ["--warmUp=500", f"--duration={max(1, round(seconds))}", "--iterations=50"]
    line += ["--percentile=50,90,95,99", "--infStreams=1" if major >= 10 else "--streams=1"]
    if graph:
        line.append("--useCudaGraph")
    elif major >= 11:
        line.append("--noCudaGraph")
    line += ["--useSpinWait"] + (["--includeDataTransfers"] if major >= 11 else [])
    if profile is not None:
        line += [f"--exportProfile={profile}", "--separateProfileRun"]
    return [*line, f"--exportTimes={times}", f"--exportOutput={outputs}"]


def _profile(inputs: Sequence[Mapping[str, Any]]) -> List[str]:
    free = [spec for spec in inputs if any(isinstance(dim, str) for dim in spec["shape"])]
    if not free:
        return []
    made: Dict[str, Shapes] = {
        key: {spec["name"]: spec[key] for spec in free} for key in ("min", "opt", "max")
    }
    return [f"--{key}Shapes={_shapes(shapes)}" for key, shapes in made.items()]


def _shapes(shapes: Shapes) -> str:
    return ",".join(f"{name}:{'x'.join(map(str, dims))}" for name, dims in shapes.items())


def _types(version: str, precision: str) -> List[str]:
    """Types are in the file: 10.x is told so, 11.x knows nothing else, 8.x needs the flags."""
    major = numbers(version)[0]
    if major >= 10:
        return ["--stronglyTyped"] if major == 10 else []
    weak: Dict[str, Tuple[str, ...]] = {"fp16": ("--fp16",), "int8": ("--fp16", "--int8")}
    return list(weak.get(precision, ()))


def _builder(version: str, options: Mapping[str, Any]) -> List[str]:
    line: List[str] = []
    workspace = int(options.get("workspace_bytes") or 0) // _MIB
    if workspace:
        old = numbers(version)[0] < 10
        line.append(f"--workspace={workspace}" if old else f"--memPoolSize=workspace:{workspace}")
    if options.get("optimization_level") is not None and numbers(version) >= (8, 6):
        line.append(f"--builderOptimizationLevel={options['optimization_level']}")
    line += ["--versionCompatible"] if options.get("version_compatible") else []
    line += ["--hardwareCompatibilityLevel=ampere+"] if options.get("hardware_compatible") else []
    line += ["--sparsity=enable"] if options.get("sparsity") else []
    if options.get("dla_core") is not None:
        line += [f"--useDLACore={options['dla_core']}", "--allowGPUFallback"]
    return line
