"""The back end `hls`: a project of hls4ml for a vendor's tool, its emulator equal to the reference.

What the hardware takes and how long, no open tool can say: resources and latency are formulas until
the vendor's tool ran. Where Vitis HLS is on PATH it does, and its report is what counts.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from exporters.base import Env, installed
from exporters.fpga import hls_graph
from exporters.fpga.hls_report import REPORT, estimates, vendor_figures
from exporters.fpga.project import handed_out, vectors
from runtimes.errors import BadArtifact, BuildFailed, MissingTool, Unsupported
from runtimes.fixed import reference
from runtimes.fixed.spec import Output, Spec, read_spec
from runtimes.fpga.child import SHOWN, run_tool
from runtimes.fpga.hls import FOLDER, PROJECT, TOLD, Emulator, missing
from runtimes.types import Artifact

EXTRA = "pip install 'edge-compressor[fpga-hls]'"
VENDORS = {"vitis": "Vitis", "quartus": "Quartus", "catapult": "Catapult", "libero": "Libero"}
_FLAGS = ["-O1", "-std=c++14", "-w"]
_INCLUDES = ("ap_types", "ac_types", "ac_types/include", "ac_math/include", "ac_simutils/include",
             "nnet_utils")  # fmt: skip


def tools() -> dict[str, str]:
    """Version of hls4ml; `MissingTool` where it or g++ is not there."""
    found = installed(("hls4ml",), "to_hls", EXTRA)
    if reason := missing():
        raise MissingTool(reason, where="to_hls")
    return found


def require(options: Any) -> dict[str, str]:
    """`tools`; `MissingTool` also where hls4ml's writer for a vendor calls what is not there."""
    found = tools()
    if options.vendor == "libero" and shutil.which("shls") is None:
        raise MissingTool(
            "hls4ml writes projects for Libero only where SmartHLS (shls) is on PATH",
            where="to_hls.vendor",
            fix="install SmartHLS, or choose vitis, quartus or catapult",
        )
    return found


def build(source: Artifact, options: Any, env: Env) -> Artifact:
    """The artifact: the project in `hls/`, its emulator equal to the reference on all vectors."""
    versions = require(options)
    spec = read_spec(source.root)
    found = hls_graph.refused(spec, options.io_type == "io_stream")
    if found:
        raise Unsupported("cannot be built by hls4ml", found, where="to_hls")
    given = vectors(spec, options.vectors, env)
    limit = 60.0 * options.limit_minutes
    env.progress(0.0, f"hls4ml writes a project for {VENDORS[options.vendor]}")
    layers = write(spec, options, env.work / FOLDER)
    env.progress(0.1, "g++ compiles its emulator")
    made = Emulator(env.work / FOLDER, spec, env.scratch / "emulator", limit).run(given)
    expected = reference.integers(spec, given)
    if any(not np.array_equal(made[o.tensor], expected[o.tensor]) for o in spec.outputs):
        raise _differs(spec, given, options, env, limit)
    count = len(next(iter(given.values())))
    figures, notes = estimates(spec, layers, options), _changed(layers, options)
    said = vendor(options, env, limit)
    if said:
        versions, figures = {**versions, "vendor": said[0]}, said[1]
    else:
        notes.append("resources and latency are formulas, calibrated on nothing: no vendor's tool "
                     "ran")  # fmt: skip
    told = {
        "vendor": options.vendor, "layers": layers, "figures": figures, "tools": versions,
        "checks": {"numpy": count, "hls": count},
        "notes": [f"0 mismatches between hls4ml's emulator and the reference ({count} vectors)",
                  *notes, "no board was loaded with the design"],
    }  # fmt: skip
    return handed_out(source, spec, told, env)


def write(spec: Spec, options: Any, folder: Path) -> list[dict[str, Any]]:
    """Write hls4ml's project for `spec` into `folder`; its layers with what is in effect there."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            model = _model(spec, options, folder)
            model.write()
    except Exception as error:  # it raises plain Exception
        last = "".join(f"\n    {line[:200]}" for line in said.getvalue().splitlines()[-SHOWN:])
        raise BuildFailed(f"hls4ml failed: {error!r}{last}", where="to_hls") from error
    _portable(folder, model.config.get_config_value("Stamp"))
    ours = {theirs: name for name, theirs in hls_graph.names(spec).items()}
    return [
        {"layer": ours.get(row.name, row.name), "hls4ml": row.name, "kind": row.class_name,
         "reuse_factor": row.get_attr("reuse_factor"), "strategy": row.get_attr("strategy")}
        for row in model.get_layers() if row.class_name != "Input"
    ]  # fmt: skip


def _model(spec: Spec, options: Any, folder: Path) -> Any:
    from hls4ml.model.graph import ModelGraph
    from hls4ml.utils.config import create_config

    named = hls_graph.names(spec)
    config = create_config(
        output_dir=str(folder), project_name=PROJECT, backend=VENDORS[options.vendor],
        io_type=options.io_type, clock_period=round(1000.0 / options.clock_mhz, 3),
        **({"part": options.part} if options.part else {}),
    )  # fmt: skip
    config["HLSConfig"] = _config(spec, options)
    return ModelGraph.from_layer_list(
        config, hls_graph.layers(spec), [named[one.name] for one in spec.inputs],
        [named[out.tensor] for out in spec.outputs],
    )  # fmt: skip


def _config(spec: Spec, options: Any) -> dict[str, Any]:
    """Every type is told, so the default is for what never holds a value of the network."""
    rows = hls_graph.precisions(spec)
    return {
        "Model": {
            "Precision": "fixed<32,16,RND,SAT>",
            "ReuseFactor": options.reuse_factor,
            "Strategy": options.strategy,
        },
        "LayerName": {name: {"Precision": types} for name, types in rows.items()},
    }


def _portable(folder: Path, stamp: str) -> None:
    """The same bytes every time and everywhere, and what the emulator is compiled with."""
    for path in [*folder.glob("*.yml"), *folder.glob("*.cpp"), *folder.glob("*.sh")]:
        text = path.read_text(encoding="utf-8")
        text = text.replace(f"{folder}/", "").replace(str(folder), ".").replace(stamp, PROJECT)
        path.write_text(text, encoding="utf-8")
    for cache in list(folder.rglob("__pycache__")):
        shutil.rmtree(cache)
    folder.with_suffix(".tar.gz").unlink(missing_ok=True)  # the same once more, by one back end
    includes = [f"firmware/{name}" for name in _INCLUDES if (folder / "firmware" / name).is_dir()]
    told = {
        "flags": _FLAGS,
        "includes": includes,
        "sources": [f"firmware/{PROJECT}.cpp", f"{PROJECT}_bridge.cpp"],
    }
    (folder / TOLD).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def _changed(layers: list[dict[str, Any]], options: Any) -> list[str]:
    """hls4ml takes another reuse factor than it was given where that does not divide a layer."""
    other = [
        f"{row['layer']} {row['reuse_factor']}" for row in layers
        if row["strategy"] is not None and row["reuse_factor"] != options.reuse_factor
    ]  # fmt: skip
    if not other:
        return []
    return [f"reuse factors in effect differ from {options.reuse_factor}: " + ", ".join(other)]


def _differs(
    spec: Spec, given: Mapping[str, Any], options: Any, env: Env, limit: float
) -> BadArtifact:
    """The error that names the first layer: the project once more, every tensor a result."""
    rows = [row for row in spec.layers if row.op != "flatten"]  # which hls4ml leaves out
    kinds = [Output(row.name, row.name, row.shape, "float32") for row in rows]
    whole = replace(spec, outputs=tuple(kinds))
    write(whole, options, env.scratch / "every" / FOLDER)
    emulator = Emulator(env.scratch / "every" / FOLDER, whole, env.scratch / "every", limit)
    found, expected = emulator.run(given), reference.integers(spec, given)
    first = next((n for n, want in expected.items() if n in found
                  and not np.array_equal(found[n], want)), None)  # fmt: skip
    if first is None:
        got = "only the outputs of the whole project differ"
    else:
        wrong = found[first] != expected[first]
        got = f"{first} is the first that differs, in {int(wrong.sum())} of {wrong.size} values"
    return BadArtifact(
        "hls4ml's emulator gives other integers than the reference",
        where="to_hls",
        expected="no difference",
        got=got,
        fix="use backend rtl, or another io_type; please report it with fixed.json and weights.npz",
    )


# ---------------------------------------------------------------------------------- the vendor


def vendor(options: Any, env: Env, limit: float) -> tuple[str, dict[str, Any]] | None:
    """Run Vitis HLS where it is on PATH: the tool and its figures. Other vendors' tools are not."""
    if options.vendor != "vitis":
        return None
    project = env.work / FOLDER
    commands = {
        "vitis-run": ["--mode", "hls", "--tcl", "build_prj.tcl"],
        "vitis_hls": ["-f", "build_prj.tcl"],
    }
    name = next((name for name in commands if shutil.which(name)), None)
    if name is None:
        return None
    steps = ("reset", "csim", "synth", "cosim", "validation", "export", "vsynth", "fifo_opt")
    rows = "".join(f"    {step} {int(step == 'synth')}\n" for step in steps)
    (project / "build_opt.tcl").write_text("array set opt {\n" + rows + "}\n", encoding="utf-8")
    env.progress(0.8, f"{name} synthesises the project")
    log = env.checkpoint / "logs" / f"{name}.log"
    run_tool([name, *commands[name]], log, limit, project)
    figures = vendor_figures(project, name, options.clock_mhz)
    shutil.copyfile(project / REPORT, env.work / "vendor_report.xml")
    return name, figures
