"""What `compress doctor` finds, on machines and installations made up for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from compressor import doctor
from compressor.doctor import Finding


def test_this_machine_can_run() -> None:
    findings = doctor.diagnose()
    assert doctor.exit_code(findings) == 0
    looked_at = {f.what for f in findings}
    assert {"python", "package runtimes", "processor", "threads", "store", "telemetry"} <= looked_at


def test_every_fix_is_shown_below_its_finding() -> None:
    lines = doctor.render([Finding("ok", "a", "fine"), Finding("missing", "long", "gone", "do it")])
    assert lines == ["ok      a     fine", "missing long  gone", " " * 14 + "fix: do it"]


@pytest.mark.parametrize(
    ("finding", "code"),
    [
        (Finding("missing", "extra x", "", needed=False), 0),
        (Finding("missing", "core", "", needed=True), 4),
        (Finding("warn", "store", "", needed=True), 0),
    ],
)
def test_exit_code_counts_only_what_every_run_needs(finding: Finding, code: int) -> None:
    assert doctor.exit_code([finding]) == code


def test_an_intruding_distribution_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    owners = {"runtimes": ["edge-compressor", "runtimes"], "compressor": ["edge-compressor"]}
    monkeypatch.setattr(doctor.metadata, "packages_distributions", lambda: owners)
    found = {f.what: f for f in doctor._our_packages()}
    assert found["package runtimes"].state == "missing"
    assert "pip uninstall runtimes " in found["package runtimes"].fix
    assert found["package compressor"].state == "ok"


def test_a_shadowing_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.machinery

    spec = importlib.machinery.ModuleSpec("exporters", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(doctor, "find_spec", lambda name: spec if name == "exporters" else None)
    found = {f.what: f for f in doctor._our_packages()}
    assert str(tmp_path) in found["package exporters"].detail


def test_requirements_are_grouped_by_extra() -> None:
    lines = ["numpy>=1.26", "torch>=2.6; extra == 'torch'", 'scipy>=1; extra == "optimize"']
    lines += ["edge-compressor[torch]; extra == 'all'"]
    assert doctor._by_extra(lines) == {
        "": {"numpy": ">=1.26"},
        "torch": {"torch": ">=2.6"},
        "optimize": {"scipy": ">=1"},
    }


@pytest.mark.parametrize(
    ("have", "wanted", "below"),
    [("1.9.2", ">=1.18,<2", True), ("2.13.0+cpu", ">=2.6", False), ("3", "", False)],
)
def test_versions_compare_as_numbers(have: str, wanted: str, below: bool) -> None:
    assert doctor._below(have, wanted) is below


def test_an_absent_requirement_names_the_extra_to_install() -> None:
    finding = doctor._requirements("fpga", {"no-such-distribution": ">=1"})
    assert finding.state == "missing"
    assert finding.fix == "pip install 'edge-compressor[fpga]'"
    assert not finding.needed


def test_a_processor_without_int8_instructions_is_a_warning() -> None:
    assert doctor._processor("Old", ["sse4_1", "avx2"]).state == "warn"
    assert "i8mm" in doctor._processor("ARM", ["asimd", "i8mm"]).detail


def test_a_quota_below_the_cores_is_a_warning() -> None:
    assert "1.5" in doctor._threads(4, 1, 1.5).detail
    assert doctor._threads(4, 4, None).state == "ok"


def test_a_store_nobody_can_write_is_missing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert doctor._store(tmp_path / "file" / "store").state == "missing"


def test_the_store_is_measured_and_not_created(tmp_path: Path) -> None:
    root = tmp_path / "new" / "store"
    assert doctor._store(root).state in ("ok", "warn")
    assert not root.exists()
    root.mkdir(parents=True)
    (root / "blob").write_bytes(bytes(2_000_000))
    assert "2 MB" in doctor._store(root).detail


def test_telemetry_of_other_programs_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: "2025.2.0")
    assert doctor._telemetry(tmp_path).state == "warn"
    (tmp_path / "intel").mkdir()
    (tmp_path / "intel" / "openvino_telemetry").write_text("0")
    assert doctor._telemetry(tmp_path).state == "ok"
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    assert doctor._telemetry(tmp_path).state == "ok"


def test_looking_leaves_the_environment_alone() -> None:
    before = dict(os.environ)
    doctor.diagnose()
    assert dict(os.environ) == before
