"""The back end `rtl`: everything from the adder graph to the bitstream, each part checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from exporters.base import Env
from exporters.fpga import aiger, graph, route, verilog, wrapper
from exporters.fpga.devices import Device, device, too_large
from exporters.fpga.project import figure, handed_out, vectors
from exporters.fpga.synthesis import GATES, Synthesised, synthesise
from exporters.fpga.tools import require_compiler, versions
from runtimes.errors import BadArtifact, BuildFailed, Unsupported
from runtimes.fixed import reference
from runtimes.fixed.spec import Spec, read_spec
from runtimes.fpga import gates, words
from runtimes.fpga.verilator import Simulator
from runtimes.types import Artifact

VECTORS, BITSTREAM, DAIS = "sim/vectors.npz", "net.bit", "sim/dais.json"


def build(source: Artifact, options: Any, env: Env) -> Artifact:
    """Write the artifact of a `fixed` one; `Unsupported` where it does not fit the part."""
    spec, part = read_spec(source.root), device(options.device)
    if options.simulate == "verilator":
        require_compiler("to_fpga")
    tools = versions(("da4ml", "pyosys"), "to_fpga")
    logs, limit = env.checkpoint / "logs", 60.0 * options.limit_minutes
    env.progress(0.0, "solving the adder graph")
    solved = graph.solve(spec, options.cutoff)
    if refused := too_large(solved.cost, part.name, source.facts.get("fixed", {})):
        raise Unsupported("does not fit", [refused], where="to_fpga")
    write_sources(spec, solved, env.work)
    given = vectors(spec, options.vectors, env)
    expected = words.out_words(spec, reference.integers(spec, given))
    _write_vectors(spec, given, expected, env.work)
    interpreted = words.from_dais(spec, solved.comb, given)
    checks = {"numpy": len(expected), "da4ml": _same(interpreted, expected, "da4ml's interpreter")}
    if options.simulate == "verilator":
        env.progress(0.1, "Verilator compiles the design")
        simulator = Simulator(env.work / "rtl", env.scratch / "verilator", limit)
        checks["verilator"] = _same(simulator.run(spec, given), expected, "Verilator")
    env.progress(0.25, f"yosys synthesises for {part.name}")
    cells = synthesise(env.work / "rtl", env.scratch / "synthesis", part, logs, limit)
    stages = len(solved.stages)
    if (env.scratch / "synthesis" / GATES).is_file():
        aiger.convert(env.scratch / "synthesis" / GATES, env.work / gates.FILE)
        netlist = gates.Netlist(env.work / gates.FILE)
        simulated = gates.simulated(netlist, spec, given, stages)
        checks["gates"] = _same(simulated, expected, "the netlist")
    figures = _counted(cells, solved, tools)
    seeds: list[route.Routed] = []
    if options.pnr and part.routed:
        seeds = _route(part, options, env, logs, limit)
        figures |= _routed(seeds, stages, part, tools)
        _clock_kept(figures, options, part)
        chosen = route.median(seeds)
        route.pack(chosen, part, env.work / BITSTREAM, logs, limit)
    told = {
        "device": part.name, "figures": figures, "checks": checks, "tools": tools,
        "stages": stages, "da4ml_cost": solved.cost,
        "seeds": [{"seed": s.seed, "fmax_mhz": s.fmax_mhz, "luts": s.used["luts"]} for s in seeds],
    }  # fmt: skip
    return handed_out(source, spec, {**told, "notes": _told(told, options)}, env)


def write_sources(spec: Spec, solved: graph.Graph, folder: Path) -> None:
    """The Verilog into `rtl/`, da4ml's graph as data into `sim/`."""
    (folder / "rtl").mkdir(exist_ok=True)
    (folder / "sim").mkdir(exist_ok=True)
    stages = len(solved.stages)
    texts = {
        "net": verilog.core_modules(solved.stages, spec),
        "stream": wrapper.stream(spec, stages),
        "serial": wrapper.serial(spec, stages),
        "bench": wrapper.bench(spec, stages),
    }
    for name, text in texts.items():
        (folder / "rtl" / f"{name}.v").write_text(text, encoding="utf-8")
    solved.comb.save(folder / DAIS)


def _write_vectors(spec: Spec, given: dict[str, Any], expected: Any, folder: Path) -> None:
    inputs = words.in_words(spec, given)
    with (folder / VECTORS).open("wb") as stream:
        np.savez_compressed(stream, inputs=inputs, expected=expected)
    texts = {"inputs": words.to_hex(inputs, words.in_formats(spec)),
             "expected": words.to_hex(expected, words.out_formats(spec))}  # fmt: skip
    for name, text in texts.items():
        (folder / "sim" / f"{name}.hex").write_text(text, encoding="ascii")


def _same(found: Any, expected: Any, engine: str) -> int:
    """The number of vectors compared; `BadArtifact` where one differs."""
    wrong, first = words.shown(expected, found)
    if wrong:
        raise BadArtifact(
            f"{engine} gives other integers than the reference",
            where="to_fpga",
            expected="no difference",
            got=f"{wrong} of {len(expected)} vectors differ, first {first}",
            fix="this is a bug: please report it with fixed.json and weights.npz",
        )
    return len(expected)


def _counted(cells: Synthesised, solved: graph.Graph, tools: dict[str, str]) -> dict[str, Any]:
    yosys = f"yosys {tools['pyosys']}"
    made = {
        kind: figure(cells.count(kind), "synthesised", yosys)
        for kind in ("luts", "ffs", "dsps", "brams")
    }
    made["synthesised_luts"] = made["luts"]
    made["counted_luts"] = figure(round(solved.cost), "estimate", f"da4ml {tools['da4ml']}")
    made["latency_cycles"] = figure(len(solved.stages), "simulated", "the netlist, clock by clock")
    return made


def _route(part: Device, options: Any, env: Env, logs: Path, limit: float) -> list[route.Routed]:
    done: list[int] = []

    def told(seed: int) -> None:
        done.append(seed)
        share = len(done) / len(options.seeds)
        env.progress(0.5 + 0.5 * share, f"nextpnr: {len(done)} of {len(options.seeds)} seeds")

    env.progress(0.5, f"nextpnr places and routes {len(options.seeds)} seeds")
    folder = env.scratch / "synthesis"
    return route.route(folder, part, options.seeds, logs, limit, env.context.threads, told)


def _routed(
    seeds: list[route.Routed], stages: int, part: Device, tools: dict[str, str]
) -> dict[str, Any]:
    chosen = route.median(seeds)
    name = f"nextpnr-{part.family}"
    tool = f"{name} {tools.get('yowasp-' + name, '')}".strip()
    fmax = round(chosen.fmax_mhz, 3)
    made = {kind: figure(n, "post-route", tool) for kind, n in chosen.used.items()
            if n or kind == "luts"}  # fmt: skip
    made["fmax_mhz"] = figure(fmax, "post-route", f"{tool}, median of {len(seeds)} seeds")
    made["latency_ns"] = figure(round(1000 * stages / fmax, 2), "post-route", tool)
    return made


def _clock_kept(figures: dict[str, Any], options: Any, part: Device) -> None:
    fmax = figures["fmax_mhz"]["value"]
    if fmax >= options.clock_mhz:
        return
    raise BuildFailed(
        f"the clock is not kept on {part.name}",
        where="to_fpga.clock_mhz",
        expected=f"{options.clock_mhz:g} MHz",
        got=f"{fmax:.1f} MHz post-route, the median of {len(options.seeds)} seeds",
        fix=f"lower cutoff below {options.cutoff:g} for more stages, prune more, or ask for less",
    )


def _told(found: dict[str, Any], options: Any) -> list[str]:
    checked = ", ".join(f"{name} {count}" for name, count in found["checks"].items())
    figures = found["figures"]
    told = [f"0 mismatches between engines (vectors: {checked})"]
    if "fmax_mhz" in figures:
        seeds = sorted(s["fmax_mhz"] for s in found["seeds"])
        told.append(
            f"{found['device']}, post-route: {figures['luts']['value']:,} LUTs, "
            f"{figures['fmax_mhz']['value']:.1f} MHz (seeds {seeds[0]:.1f} to {seeds[-1]:.1f}), "
            f"{found['stages']} stages, {figures['latency_ns']['value']:.1f} ns; a result a clock"
        )
    else:
        told.append(
            f"{found['device']}, synthesised and not routed: {figures['luts']['value']:,} LUTs, "
            f"{found['stages']} stages; no clock is known"
        )
    if options.simulate == "none":
        told.append("the Verilog was not simulated (simulate: none), its netlist was")
    told.append("no board was loaded with the design: figures are those of the tools")
    return told
