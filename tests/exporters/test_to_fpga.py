"""Every engine computes the reference's integers; what does not fit or fails says so."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from exporters import to_fpga
from exporters.fpga import rtl, tools
from exporters.fpga.devices import device
from runtimes.errors import BadArtifact, BuildFailed, MissingTool, UsageError
from runtimes.fixed import reference
from runtimes.fixed.spec import read_spec
from runtimes.fpga import verilator, words
from runtimes.rt_fpga import open_session
from runtimes.types import Artifact
from tests import fixed_nets
from tests.step_env import make_env

pytest.importorskip("torch", reason="fixed-point models are made with the torch extra")

from compressor.passes.quantize_fixed import Options
from tests.compressor.passes.test_quantize_fixed import made

needs_tools = pytest.mark.skipif(
    any(not tools.where_installed([name]) for name in tools.PACKAGES),
    reason="the extra fpga is not installed",
)
FEW = Options(weight_bits=4, activation_bits=4, input_bits=4, zeros=0.6, steps=20, batch=16)


@needs_tools
def test_adder_graph_and_verilog_of_every_kind_of_layer(tmp_path: Path) -> None:
    """Convolution, skip branch and pooling, unrolled: da4ml's interpreter and Verilator."""
    from exporters.fpga import graph

    _, artifact = made(tmp_path, fixed_nets.residual(), FEW)
    spec = read_spec(artifact.root)
    given = words.joined([words.edges(spec), words.random_vectors(spec, 100, 0)])
    expected = words.out_words(spec, reference.integers(spec, given))
    solved = graph.solve(spec, 5)
    assert len(solved.stages) > 1
    np.testing.assert_array_equal(words.from_dais(spec, solved.comb, given), expected)
    if reason := verilator.missing():
        pytest.skip(reason)
    rtl.write_sources(spec, solved, tmp_path)
    simulator = verilator.Simulator(tmp_path / "rtl", tmp_path / "built")
    np.testing.assert_array_equal(simulator.run(spec, given), expected)


@needs_tools
@pytest.mark.slow
def test_from_a_small_net_to_a_bitstream(tmp_path: Path, monkeypatch) -> None:
    """The whole open flow: about a minute. Vectors through the netlist that was placed."""
    source, fixed = made(tmp_path, fixed_nets.dense(), FEW)
    simulate = "none" if verilator.missing() else "verilator"
    options = to_fpga.Options(seeds=(1, 2), vectors=64, simulate=simulate)
    env = make_env(tmp_path, reference=source, name="fpga")
    artifact = to_fpga.run(fixed, options, env)
    assert min(artifact.facts["checks"].values()) >= 64
    assert {"da4ml", "gates"} <= set(artifact.facts["checks"])
    figures = artifact.facts["figures"]
    assert figures["luts"]["provenance"] == figures["latency_ns"]["provenance"] == "post-route"
    stages, fmax = figures["latency_cycles"]["value"], figures["fmax_mhz"]["value"]
    assert figures["latency_ns"]["value"] == pytest.approx(1000 * stages / fmax, rel=1e-3)
    assert (artifact.root / rtl.BITSTREAM).stat().st_size > 10_000
    x = np.random.default_rng(3).random((70, 12)).astype(np.float32)
    outputs = {}
    for engine in ("numpy", "gates", "dais"):
        with open_session(artifact, device=engine) as session:
            outputs[engine] = session.run({"x": x})["scores"]
    np.testing.assert_array_equal(outputs["gates"], outputs["numpy"])
    np.testing.assert_array_equal(outputs["dais"], outputs["numpy"])
    with pytest.raises(BuildFailed, match="the clock is not kept"):
        rtl._clock_kept(figures, to_fpga.Options(clock_mhz=900), device("ice40-hx8k"))
    text = (artifact.root / "rtl" / "net.v").read_text(encoding="utf-8")
    (artifact.root / "rtl" / "net.v").write_text(text.replace(" + ", " - ", 1), encoding="utf-8")
    if simulate == "verilator":  # a wrong sign is found
        spec = read_spec(artifact.root)
        given = words.random_vectors(spec, 50, 1)
        expected = words.out_words(spec, reference.integers(spec, given))
        simulator = verilator.Simulator(artifact.root / "rtl", tmp_path / "wrong")
        with pytest.raises(BadArtifact, match="other integers than the reference"):
            rtl._same(simulator.run(spec, given), expected, "Verilator")


def test_too_large_says_what_would_fit() -> None:
    facts = {"weights": 2720, "zero_weights": 0, "bits": {"fc": 6}}
    found = to_fpga.too_large(16_986, "ice40-hx8k", facts)
    assert found is not None
    assert "needs about 28,027 LUTs (da4ml counts 16,986), ice40-hx8k has 7,680" in found.why
    assert "prune to 74% zeros" in found.fix
    assert found.fix.endswith("choose ecp5-45k")
    assert to_fpga.too_large(4000, "ice40-hx8k", facts) is None


def test_a_part_nobody_knows_and_options_out_of_range() -> None:
    with pytest.raises(UsageError, match="did you mean ecp5-25k"):
        to_fpga.Options(device="ecp5-25")
    with pytest.raises(UsageError, match="seeds"):
        to_fpga.Options(seeds=())


def test_a_tool_that_fails_or_hangs_shows_its_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "nextpnr.log"
    code = "import os; print('placing'); print('no BELs left', flush=True); os.abort()"
    with pytest.raises(BuildFailed, match=r"(?s)nextpnr was ended by signal 6.*no BELs left"):
        tools.run_python(code, [], log, 60, tmp_path)
    assert "placing" in log.read_text(encoding="utf-8")
    with pytest.raises(BuildFailed, match="was stopped after 1 s"):
        tools.run_tool([sys.executable, "-c", "while True: pass"], log, 1, tmp_path)


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingTool, match=r"g\+\+ and make and perl not found"):
        tools.require_compiler("to_fpga")
    with pytest.raises(MissingTool, match="edge-compressor\\[fpga\\]"):
        tools.versions(("no-such-package",), "to_fpga")


def test_an_artifact_without_a_netlist_runs_in_numpy_alone(tmp_path: Path) -> None:
    _, artifact = made(tmp_path, fixed_nets.dense(), FEW)
    assert isinstance(artifact, Artifact)
    with pytest.raises(BadArtifact, match=r"no sim/gates\.npz"):
        open_session(artifact, device="gates")
    with pytest.raises(UsageError, match="unknown engine"):
        open_session(artifact, device="board")
