"""The emulator of an HLS project: its C++ compiled with g++, and run on vectors.

hls4ml writes it beside the project, over the bit-true types `ap_fixed` and `ac_fixed`. Tensors are
in its order there: channels last, and so is what was flattened from them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Sequence

import numpy as np

from runtimes.errors import BadArtifact, MissingTool
from runtimes.fixed import reference
from runtimes.fixed.spec import Spec
from runtimes.fpga.child import run_tool

FOLDER, PROJECT, TOLD = "hls", "net", "emulator.json"
LIMIT_S = 1200.0
_TELLING = ("error", "Assertion")


def missing() -> Optional[str]:
    """Why no emulator can be compiled here; None where it can."""
    if shutil.which("g++") is None:
        return "g++ not found, which compiles the emulator: apt-get install g++"
    return None


def orders(spec: Spec) -> Dict[str, Any]:
    """Per tensor, where in ours the values lie that an HLS project has one after the other."""
    found: Dict[str, Any] = {}
    shapes = spec.shapes
    for one in spec.inputs:
        found[one.name] = _channels_last(one.shape)
    for layer in spec.layers:
        if layer.op in ("relu", "add", "flatten"):
            found[layer.name] = found[layer.inputs[0]]
        else:
            found[layer.name] = _channels_last(shapes[layer.name])
    return found


def _channels_last(shape: Any) -> Any:
    places = np.arange(int(np.prod(shape, dtype=np.int64))).reshape(shape)
    return np.moveaxis(places, 0, -1).ravel() if places.ndim > 1 else places.ravel()


class Emulator:
    """A compiled project; build once, run often.

    It is a program of its own, so that an assertion in the C++ becomes an error message.

    Args:
        project: with `emulator.json`, which has the compiler's arguments.
        spec: what it was made from.
        folder: where the program, its vectors and the log go.
        limit_s: seconds that compiling, or one run, may take.

    Raises `MissingTool` without g++, `BuildFailed` with the last lines of what fails.
    """

    def __init__(self, project: Path, spec: Spec, folder: Path, limit_s: float = LIMIT_S) -> None:
        reason = missing()
        if reason:
            raise MissingTool(reason, where="hls")
        path = project / TOLD
        if not path.is_file():
            raise BadArtifact(f"the HLS project has no {TOLD}", where=str(project))
        told = json.loads(path.read_text(encoding="utf-8"))
        folder.mkdir(parents=True, exist_ok=True)
        self._spec, self._project, self._limit_s = spec, project, limit_s
        self._folder = folder.resolve()
        self._program = self._folder / "emulator"
        main = self._folder / "main.cpp"
        main.write_text(_main(spec), encoding="utf-8")
        weights = str((project / "firmware" / "weights").resolve())
        includes = ["-I" + name for name in told["includes"]]
        macro = "-DWEIGHTS_DIR=" + json.dumps(weights)
        sources = [*told["sources"], str(main)]
        command = ["g++", *told["flags"], *includes, macro, *sources, "-o", str(self._program)]
        self._run(command)

    def run(self, tensors: Mapping[str, Any]) -> Dict[str, Any]:
        """The outputs' integers by tensor, [vectors, *shape], for integers of the inputs."""
        spec, order = self._spec, orders(self._spec)
        given = []
        for one in spec.inputs:
            flat = np.asarray(tensors[one.name]).reshape(len(tensors[one.name]), -1)
            given.append(reference.dequantize(flat[:, order[one.name]], one.format, "float64"))
        source, taken = self._folder / "inputs.bin", self._folder / "outputs.bin"
        np.concatenate(given, 1).tofile(str(source))
        self._run([str(self._program), str(source), str(taken)])
        sizes = [_size(spec.shapes[out.tensor]) for out in spec.outputs]
        values = np.fromfile(str(taken)).reshape(len(given[0]), sum(sizes))
        found: Dict[str, Any] = {}
        for out, part in zip(spec.outputs, np.split(values, np.cumsum(sizes)[:-1], 1)):
            integers = np.empty(part.shape, np.int64)
            scaled = part * 2.0 ** spec.formats[out.tensor].fraction
            integers[:, order[out.tensor]] = np.rint(scaled).astype(np.int64)
            found[out.tensor] = integers.reshape(len(part), *spec.shapes[out.tensor])
        return found

    def _run(self, command: Sequence[str]) -> None:
        log = self._folder / f"{Path(command[0]).name}.log"
        run_tool(command, log, self._limit_s, self._project, where="hls", telling=_TELLING)


def _size(shape: Sequence[int]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def _main(spec: Spec) -> str:
    """A program that takes vectors of doubles from one file into another."""
    given = [_size(one.shape) for one in spec.inputs]
    made = [_size(spec.shapes[out.tensor]) for out in spec.outputs]
    offsets = [sum(given[:i]) for i in range(len(given))]
    results = [sum(made[:i]) for i in range(len(made))]
    arguments = [f"x.data() + {at}" for at in offsets] + [f"y.data() + {at}" for at in results]
    return f"""#include <cstdio>
#include <vector>
extern "C" void {PROJECT}_double({", ".join(["double *"] * len(arguments))});
int main(int, char **names) {{
    std::vector<double> x({sum(given)}), y({sum(made)});
    FILE *from = std::fopen(names[1], "rb"), *to = std::fopen(names[2], "wb");
    if (!from || !to) return 1;
    while (std::fread(x.data(), sizeof(double), x.size(), from) == x.size()) {{
        {PROJECT}_double({", ".join(arguments)});
        std::fwrite(y.data(), sizeof(double), y.size(), to);
    }}
    return std::fclose(to);
}}
"""
