"""Packages: reproducible bytes, every attack refused, reference outputs reproduced."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compressor.package import build_package, coded_size, verify_package
from compressor.result import TargetResult
from runtimes.base import load_runtime
from runtimes.errors import BadArtifact, RuntimeUnavailable, UsageError
from runtimes.types import Artifact, TensorSpec
from tests.run_records import target

onnx = pytest.importorskip("onnx", reason="needs the core install")
pytest.importorskip("onnxruntime", reason="needs the core install")


def write_model(root: Path, seed: int = 0) -> Artifact:
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(seed).standard_normal((6, 4)).astype("float32")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "dense")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    root.mkdir(parents=True, exist_ok=True)
    (root / "model.onnx").write_bytes(model.SerializeToString())
    specs = TensorSpec("x", "float32", ("batch", 6)), TensorSpec("y", "float32", ("batch", 4))
    return Artifact.write(root, "onnxruntime", "model.onnx", specs[:1], specs[1:])


def result() -> TargetResult:
    return target(versions=load_runtime("onnxruntime").versions())


def make(out: Path, artifact: Artifact, **extra: object) -> Path:
    feeds = {"x": np.linspace(-1, 1, 18, dtype="float32").reshape(3, 6)}
    with load_runtime("onnxruntime").open_session(artifact) as session:
        outputs = session.run(feeds)
    given = {"reference_outputs": outputs, "provenance": {"source": "aa" * 32}, **extra}
    return build_package(result(), artifact, out=out, reference_feeds=feeds, **given)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return make(tmp_path / "packages", write_model(tmp_path / "a"), name="fashion")


def unpacked(package: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(package) as archive:
        return [(m, archive.extractfile(m).read()) for m in archive.getmembers()]


def repack(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w:gz", format=tarfile.USTAR_FORMAT) as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def changed(package: Path, name: str, edit: object) -> Path:
    members = [(m, edit(d) if m.name == name else d) for m, d in unpacked(package)]
    return repack(package.with_name("changed.tar.gz"), members)


def consistent(package: Path, name: str, data: bytes) -> Path:
    """The package with one file replaced and the manifest's digest made to fit."""
    import hashlib

    members = {m.name: d for m, d in unpacked(package)}
    members[name] = data
    manifest = json.loads(members["manifest.json"])
    manifest["files"].setdefault(name, {})["sha256"] = hashlib.sha256(data).hexdigest()
    members["manifest.json"] = json.dumps(manifest).encode()
    pairs = [(tarfile.TarInfo(n), d) for n, d in members.items()]
    return repack(package.with_name("consistent.tar.gz"), pairs)


def test_same_content_gives_the_same_bytes(tmp_path, package):
    again = make(tmp_path / "elsewhere", write_model(tmp_path / "b"), name="fashion")
    assert again.name == package.name == "fashion-onnxruntime.tar.gz"
    assert again.read_bytes() == package.read_bytes()


def test_members_carry_no_time_owner_or_mode(package):
    members = [m for m, _ in unpacked(package)]
    assert {(m.mtime, m.uid, m.gid, m.mode, m.uname) for m in members} == {(0, 0, 0, 0o644, "")}
    assert members[0].name == "model/model.onnx"


def test_holds_what_a_device_needs(package):
    names = {m.name for m, _ in unpacked(package)}
    assert {"manifest.json", "reference.npz", "run.py", "requirements.txt", "LICENSE"} <= names
    engines = {n for n in names if n.startswith("runtimes/rt_")}
    assert engines == {"runtimes/rt_onnxruntime.py"}
    assert all(n.endswith(".py") for n in names if n.startswith("runtimes/"))


def test_manifest_names_versions_specs_verdict_and_licences(package):
    manifest = json.loads({m.name: d for m, d in unpacked(package)}["manifest.json"])
    assert manifest["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["batch", 6]}]
    assert "onnxruntime" in manifest["versions"]
    assert manifest["verdict"]["gates"]["accuracy_drop<=1%"] == "pass"
    assert manifest["licences"][0]["licence"] == "Apache-2.0"
    assert manifest["provenance"]["source"] == "aa" * 32


def test_run_py_works_on_its_own(tmp_path, package):
    with tarfile.open(package) as archive:
        archive.extractall(tmp_path / "device", filter="data")
    command = [sys.executable, "-I", "-c", ("import sys, runpy; sys.path.insert(0, '.'); "
               "sys.modules['compressor'] = None; runpy.run_path('run.py')")]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path / "device", capture_output=True, text=True)
    assert done.stdout.strip() == "y (3, 4) largest difference 0.0", done.stderr
    assert len((tmp_path / "device" / "run.py").read_text().splitlines()) <= 15


def test_verify_says_what_it_verified(package):
    said = "\n".join(verify_package(package))
    assert "each with the SHA-256" in said
    assert "output y reproduced on 3 samples: largest difference 0 " in said
    assert "verdict when it was packed: pass" in said


def test_a_tampered_byte_is_detected(package):
    other = changed(package, "model/model.onnx", lambda d: d[:-1] + bytes([d[-1] ^ 1]))
    with pytest.raises(BadArtifact, match=r"model/model\.onnx: file was changed"):
        verify_package(other)


@pytest.mark.parametrize("at", [0.3, 0.6, 0.9])
def test_damaged_gzip_is_refused(package, at):
    data = bytearray(package.read_bytes())
    data[int(len(data) * at)] ^= 0xFF
    package.write_bytes(data)
    with pytest.raises(BadArtifact):
        verify_package(package)


@pytest.mark.parametrize("keep", [0, 10, 400, -1, -9])
def test_truncated_archive_is_refused(package, keep):
    package.write_bytes(package.read_bytes()[:keep])
    with pytest.raises(BadArtifact):
        verify_package(package)


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    ("info", "words"),
    [
        (member("../evil"), "leaves the package"),
        (member("model/../../evil"), "leaves the package"),
        (member("/etc/evil"), "leaves the package"),
        (member("model//x"), "leaves the package"),
        (member("./x"), "leaves the package"),
        (member("c:evil"), "not plain"),
        (member("..\\evil"), "not plain"),
        (member("a\x1b[2Jb"), "not plain"),
        (member("link", tarfile.SYMTYPE, "/etc/passwd"), "symbolic link"),
        (member("link", tarfile.LNKTYPE, "run.py"), "hard link"),
        (member("dev", tarfile.CHRTYPE), "device"),
        (member("dev", tarfile.BLKTYPE), "device"),
        (member("pipe", tarfile.FIFOTYPE), "pipe"),
        (member("folder", tarfile.DIRTYPE), "folder"),
        (member("run.py"), "stands twice"),
        (member("RUN.py"), "stands twice"),
        (member("run.py/x"), "file and a folder"),
        (member("extra.py"), "not in the manifest"),
        (member("x", tarfile.XHDTYPE), "extended header"),
        (member("x", tarfile.GNUTYPE_LONGNAME), "extended header"),
        (member("x", tarfile.GNUTYPE_SPARSE), "sparse"),
    ],
)
def test_dangerous_members_are_refused(package, tmp_path, info, words):
    before = set(tmp_path.rglob("*")) | {package.with_name("bad.tar.gz")}
    bad = repack(package.with_name("bad.tar.gz"), [*unpacked(package), (info, b"")])
    with pytest.raises(BadArtifact, match=words):
        verify_package(bad)
    assert set(tmp_path.rglob("*")) == before


def test_missing_member_is_refused(package):
    members = [(m, d) for m, d in unpacked(package) if m.name != "run.py"]
    with pytest.raises(BadArtifact, match=r"run\.py: file of the manifest is missing"):
        verify_package(repack(package.with_name("less.tar.gz"), members))


def test_oversized_member_is_refused_without_unpacking_it(package):
    huge = (tarfile.TarInfo("zeros"), bytes(3_000_000))
    bomb = repack(package.with_name("bomb.tar.gz"), [huge, *unpacked(package)])
    assert bomb.stat().st_size < 100_000
    with pytest.raises(BadArtifact, match="unpacks to more"):
        verify_package(bomb, limit_bytes=1_000_000)


def test_a_header_that_announces_terabytes_is_refused(package, tmp_path):
    info = tarfile.TarInfo("zeros")
    info.size = 7 << 30
    header = info.tobuf(tarfile.USTAR_FORMAT)
    path = tmp_path / "liar.tar.gz"
    path.write_bytes(gzip.compress(header + bytes(10_000)))
    with pytest.raises(BadArtifact, match="ends too early"):
        verify_package(path)


def test_data_after_the_end_is_refused(package, tmp_path):
    raw = gzip.decompress(package.read_bytes())
    path = tmp_path / "tail.tar.gz"
    path.write_bytes(gzip.compress(raw + b"hidden" + bytes(506)))
    with pytest.raises(BadArtifact, match="after the end"):
        verify_package(path)


def test_artifact_json_may_not_point_outside(package):
    data = {m.name: d for m, d in unpacked(package)}["model/artifact.json"]
    described = json.loads(data)
    described["files"]["../../../etc/passwd"] = "00"
    bad = consistent(package, "model/artifact.json", json.dumps(described).encode())
    with pytest.raises(BadArtifact, match="other files than the package holds"):
        verify_package(bad)


def test_a_format_that_could_run_code_is_not_opened(package):
    data = {m.name: d for m, d in unpacked(package)}["model/artifact.json"]
    bad = consistent(package, "model/artifact.json", data.replace(b'"onnxruntime"', b'"module"'))
    with pytest.raises(BadArtifact, match="could run code"):
        verify_package(bad)


def test_other_reference_outputs_are_not_reproduced(tmp_path):
    wrong = {"y": np.full((3, 4), 9.0, "float32")}
    package = make(tmp_path, write_model(tmp_path / "a"), reference_outputs=wrong)
    with pytest.raises(BadArtifact, match="output y is not reproduced"):
        verify_package(package)


def test_pickled_reference_is_refused(package):
    stream = io.BytesIO()
    np.savez(stream, **{"input:x": np.array([{"a": 1}], dtype=object)})
    with pytest.raises(BadArtifact, match=r"unreadable reference\.npz"):
        verify_package(consistent(package, "reference.npz", stream.getvalue()))


def test_reference_that_announces_a_huge_array_is_refused(package):
    inner, outer = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(
        inner, {"descr": "<f4", "fortran_order": False, "shape": (1 << 50,)}
    )
    with zipfile.ZipFile(outer, "w") as archive:
        archive.writestr("input:x.npy", inner.getvalue())
    with pytest.raises(BadArtifact, match="another size than it has"):
        verify_package(consistent(package, "reference.npz", outer.getvalue()))


@pytest.mark.parametrize(
    ("key", "value"),
    [("schema", 9), ("tolerance", 1e9), ("tolerance", "x"), ("files", []), ("verdict", {})],
)
def test_malformed_manifest_is_refused(package, key, value):
    edit = lambda d: json.dumps(json.loads(d) | {key: value}).encode()  # noqa: E731
    with pytest.raises(BadArtifact):
        verify_package(changed(package, "manifest.json", edit))


def test_missing_engine_is_not_a_pass(package, monkeypatch):
    runtime = load_runtime("onnxruntime")
    monkeypatch.setattr(runtime, "missing", lambda: "onnxruntime is not installed")
    with pytest.raises(RuntimeUnavailable, match="SHA-256") as error:
        verify_package(package)
    assert error.value.exit_code == 4


def test_no_such_package_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="no such package"):
        verify_package(tmp_path / "x.tar.gz")


def test_a_changed_artifact_is_not_packed(tmp_path):
    artifact = write_model(tmp_path / "a")
    artifact.path.write_bytes(b"other")
    with pytest.raises(BadArtifact, match="changed after it was made"):
        build_package(result(), artifact, out=tmp_path, reference_feeds={}, reference_outputs={},
                      provenance={})  # fmt: skip


def test_coded_size_counts_the_model_alone(tmp_path):
    artifact = write_model(tmp_path / "a")
    size = coded_size(artifact)
    assert 100 < size < 2000
    assert coded_size(replace(artifact, facts={"notes": ["x" * 9999]})) == size


@pytest.mark.parametrize(
    "header",
    ["{'descr': '<f4', 'fortran_order': False, {shape': (4,), }", "{" * 300, "[]", "{1: 2}",
     "{'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
     "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}",
     "{'descr': ('<f4', (1 << 62,)), 'fortran_order': False, 'shape': (1,)}"],
)  # fmt: skip
def test_hostile_array_headers_are_refused(package, header):
    text = header.ljust(118 if len(header) < 118 else len(header)).encode() + b"\n"
    array = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(4)
    outer = io.BytesIO()
    with zipfile.ZipFile(outer, "w") as archive:
        archive.writestr("input:x.npy", array)
    with pytest.raises(BadArtifact, match=r"unreadable reference\.npz"):
        verify_package(consistent(package, "reference.npz", outer.getvalue()))
