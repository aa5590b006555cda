"""hls4ml's projects: emulators give the reference's integers, figures say what they are from."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from exporters import to_hls
from exporters.fpga import hls, hls_graph, hls_report
from exporters.fpga.tools import where_installed
from runtimes.errors import BadArtifact, BuildFailed, MissingTool, UsageError
from runtimes.fixed.spec import Spec
from runtimes.fpga.hls import missing
from runtimes.rt_fpga import open_session
from tests import fixed_nets
from tests.step_env import make_env

pytest.importorskip("torch", reason="fixed-point models are made with the torch extra")

from compressor.passes.quantize_fixed import Options
from tests.compressor.passes.test_quantize_fixed import made

needs_hls4ml = pytest.mark.skipif(
    bool(missing()) or not where_installed(["hls4ml"]),
    reason="the extra fpga-hls or g++ is not installed",
)
FEW = Options(weight_bits=4, activation_bits=4, input_bits=4, zeros=0.6, steps=20, batch=16)
XML = """<profile><UserAssignments><TargetClockPeriod>5.00</TargetClockPeriod></UserAssignments>
<PerformanceEstimates><SummaryOfTimingAnalysis><EstimatedClockPeriod>3.2</EstimatedClockPeriod>
</SummaryOfTimingAnalysis><SummaryOfOverallLatency><Worst-caseLatency>6</Worst-caseLatency>
<Interval-max>1</Interval-max></SummaryOfOverallLatency></PerformanceEstimates>
<AreaEstimates><Resources><BRAM_18K>0</BRAM_18K><DSP>4</DSP><FF>321</FF><LUT>654</LUT></Resources>
</AreaEstimates></profile>"""


def vitis(folder: Path, does: str) -> Path:
    """A stand-in of `vitis_hls` in a folder for PATH."""
    folder.mkdir()
    script = folder / "vitis_hls"
    script.write_text("#!/bin/sh\n" + does, encoding="utf-8")
    script.chmod(script.stat().st_mode | stat.S_IEXEC)
    return folder


@needs_hls4ml
def test_a_small_net_its_engine_and_a_vendors_report(tmp_path: Path, monkeypatch) -> None:
    source, fixed = made(tmp_path, fixed_nets.dense(), FEW)
    env = make_env(tmp_path, reference=source, name="fpga")
    artifact = to_hls.run(fixed, to_hls.Options(vectors=64, clock_mhz=250), env)
    figures = artifact.facts["figures"]
    assert artifact.facts["checks"]["hls"] >= 64
    assert {row["provenance"] for row in figures.values()} == {"estimate (formula)"}
    assert "latency_ns" not in figures, "no clock is known"
    settings = (artifact.root / "hls" / "hls4ml_config.yml").read_text(encoding="utf-8")
    assert str(tmp_path) not in settings
    x = np.random.default_rng(3).random((70, 12)).astype(np.float32)
    found = {}
    for engine in ("numpy", "hls"):
        with open_session(artifact, device=engine) as session:
            found[engine] = session.run({"x": x})["scores"]
    np.testing.assert_array_equal(found["hls"], found["numpy"])

    project = make_env(tmp_path, reference=source, name="vendor")
    (project.work / "hls").mkdir()
    report = hls_report.REPORT
    folder = Path(report).parent
    does = f"""test "$2" = build_prj.tcl || exit 3
mkdir -p {folder}
cat > {report} <<END
{XML}
END
"""
    path = vitis(tmp_path / "bin", does)
    monkeypatch.setenv("PATH", f"{path}:/usr/bin:/bin")
    said = hls.vendor(to_hls.Options(clock_mhz=250), project, 60)
    assert said is not None
    assert said[1]["luts"] == {"value": 654, "provenance": "vendor report", "tool": "vitis_hls"}
    assert said[1]["latency_ns"]["value"] == 24
    assert "synth 1" in (project.work / "hls" / "build_opt.tcl").read_text(encoding="utf-8")
    path = vitis(tmp_path / "broken", "echo no licence; exit 1")
    monkeypatch.setenv("PATH", f"{path}:/usr/bin:/bin")
    with pytest.raises(BuildFailed, match=r"(?s)vitis_hls ended with code 1.*no licence"):
        hls.vendor(to_hls.Options(), project, 60)


@needs_hls4ml
@pytest.mark.slow
def test_every_kind_of_layer_and_the_first_that_differs(tmp_path: Path, monkeypatch) -> None:
    """Skip branch, groups, padded pooling, a mean over nine; shared multipliers."""
    source, fixed = made(tmp_path, fixed_nets.residual(), FEW)
    options = to_hls.Options(vectors=64, strategy="resource", reuse_factor=4)
    env = make_env(tmp_path, reference=source, name="fpga")
    artifact = to_hls.run(fixed, options, env)
    assert any("reuse factors in effect differ from 4" in note for note in artifact.facts["notes"])
    streams = replace(options, io_type="io_stream")
    refused = to_hls.refusals(fixed, streams, env.context)
    assert [(one.where, one.fix) for one in refused] == [("m", "use io_parallel")]

    precisions = hls_graph.precisions

    def wrapping(spec: Spec) -> dict[str, dict[str, str]]:
        rows = precisions(spec)
        name = hls_graph.names(spec)["sum"]
        kept = rows[name]["result"]
        return {**rows, name: {"result": kept.replace("SAT", "WRAP").replace("<6,3", "<4,1")}}

    monkeypatch.setattr(hls_graph, "precisions", wrapping)
    with pytest.raises(BadArtifact, match="sum is the first that differs"):
        to_hls.run(fixed, options, make_env(tmp_path, reference=source, name="wraps"))


def test_what_is_missing_and_what_is_out_of_range(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(UsageError, match=r"to_hls\.reuse_factor"):
        to_hls.Options(reuse_factor=0)
    monkeypatch.setattr(hls, "installed", lambda *_: {"hls4ml": "1"})
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingTool, match=r"g\+\+ not found"):
        hls.require(to_hls.Options())
    monkeypatch.setattr(hls, "missing", lambda: None)
    with pytest.raises(MissingTool, match="SmartHLS"):
        hls.require(to_hls.Options(vendor="libero"))
