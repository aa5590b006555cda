"""Coded packages and deltas: byte-identical files back, the right base only, damage refused."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from compressor.cli import main
from compressor.package import (
    build_delta,
    build_package,
    coded_size,
    unpack_package,
    verify_package,
)
from runtimes.base import load_runtime
from runtimes.errors import BadArtifact, UsageError
from runtimes.types import Artifact, TensorSpec
from tests.compressor.test_package import changed, make, repack, result, unpacked

onnx = pytest.importorskip("onnx", reason="needs the core install")
pytest.importorskip("onnxruntime", reason="needs the core install")
IN, OUT = 270, 200


def write_model(root: Path, seed: int = 0, moved: float = 0.0) -> Artifact:
    """One product, its weights INT8 behind a scale: large enough to be coded."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(seed)
    real = rng.standard_normal((IN, OUT)) * 12
    real += moved * np.random.default_rng(seed + 1).standard_normal(real.shape)
    stored = np.clip(np.round(real), -127, 127).astype(np.int8)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["v"], "open"),
        helper.make_node("MatMul", ["x", "v"], ["y"], "dense"),
    ]
    scale = np.float32(0.02 + moved / 1000)
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", IN])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", OUT])],
        [numpy_helper.from_array(stored, "w"), numpy_helper.from_array(np.array(scale), "s")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    root.mkdir(parents=True)
    (root / "model.onnx").write_bytes(model.SerializeToString())
    specs = TensorSpec("x", "float32", ("batch", IN)), TensorSpec("y", "float32", ("batch", OUT))
    return Artifact.write(root, "onnxruntime", "model.onnx", specs[:1], specs[1:])


def packed(out: Path, artifact: Artifact) -> Path:
    feeds = {"x": np.linspace(-1, 1, 3 * IN, dtype="float32").reshape(3, IN)}
    with load_runtime("onnxruntime").open_session(artifact) as session:
        outputs = session.run(feeds)
    return build_package(
        result(), artifact, out=out, reference_feeds=feeds, reference_outputs=outputs,
        provenance={"source": "aa" * 32},
    )  # fmt: skip


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return packed(tmp_path / "old", write_model(tmp_path / "a"))


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    return packed(tmp_path / "new", write_model(tmp_path / "b", moved=0.3))


@pytest.fixture
def delta(tmp_path: Path, package: Path, newer: Path) -> Path:
    return build_delta(package, newer, tmp_path / "delta.tar.gz")


def content(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_a_model_travels_coded_and_comes_back(tmp_path, package):
    names = [m.name for m, _ in unpacked(package)]
    assert names[:3] == ["model.coded", "model/artifact.json", "manifest.json"]
    assert "model/model.onnx" not in names
    unpack_package(package, tmp_path / "whole")
    found = content(tmp_path / "whole")
    assert found["model/model.onnx"] == (tmp_path / "a" / "model.onnx").read_bytes()
    assert "model.coded" not in found
    assert "reproduced on 3 samples" in "\n".join(verify_package(package))


def test_coded_size_is_that_of_the_member(tmp_path, package):
    sizes = {m.name: len(d) for m, d in unpacked(package)}
    artifact = Artifact.load(tmp_path / "a")
    assert coded_size(artifact) == sizes["model.coded"]
    assert sizes["model.coded"] < 0.98 * len(gzip.compress(artifact.path.read_bytes(), 9))


def test_a_large_model_stays_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr("compressor.package.LARGEST_BYTES", 1000)
    package = packed(tmp_path, write_model(tmp_path / "a"))
    assert dict_of(package).keys() >= {"model/model.onnx", "model/artifact.json"}
    assert verify_package(package)


def test_the_same_content_gives_the_same_bytes(tmp_path, package, newer, delta):
    assert packed(tmp_path / "x", write_model(tmp_path / "c")).read_bytes() == package.read_bytes()
    again = build_delta(package, newer, tmp_path / "again.tar.gz")
    assert again.read_bytes() == delta.read_bytes()


def test_a_device_decodes_it_with_what_is_inside(tmp_path, package):
    with tarfile.open(package) as archive:
        archive.extractall(tmp_path / "device", filter="data")
    code = "import sys, runpy; sys.path.insert(0, '.'); sys.modules['compressor'] = None; "
    for _ in range(2):  # the second time the model lies there
        done = subprocess.run(
            [sys.executable, "-I", "-c", code + "runpy.run_path('run.py')"],
            cwd=tmp_path / "device", capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.stdout.startswith(f"y (3, {OUT}) largest difference 0"), done.stderr


def test_a_delta_gives_the_new_files_and_is_smaller(tmp_path, package, newer, delta):
    unpack_package(newer, tmp_path / "wanted")
    unpack_package(delta, tmp_path / "got", base=package)
    assert content(tmp_path / "got") == content(tmp_path / "wanted")
    assert delta.stat().st_size < 0.5 * newer.stat().st_size
    assert "reproduced on 3 samples" in "\n".join(verify_package(delta, base=package))


def test_a_delta_applies_to_an_unpacked_base_and_deltas_chain(tmp_path, newer, package, delta):
    newest = packed(tmp_path / "newest", write_model(tmp_path / "c", moved=0.6))
    second = build_delta(newer, newest, tmp_path / "second.tar.gz")
    unpack_package(package, tmp_path / "v1")
    unpack_package(delta, tmp_path / "v2", base=tmp_path / "v1")
    unpack_package(second, tmp_path / "v3", base=tmp_path / "v2")
    assert "each with the SHA-256" in "\n".join(verify_package(second, base=tmp_path / "v2"))
    unpack_package(newest, tmp_path / "wanted")
    assert content(tmp_path / "v3") == content(tmp_path / "wanted")
    with pytest.raises(UsageError, match="is a delta itself"):
        verify_package(second, base=delta)


def test_a_device_applies_a_delta_without_the_host(tmp_path, package, newer, delta):
    for path, name in ((package, "old"), (delta, "delta")):
        with tarfile.open(path) as archive:
            archive.extractall(tmp_path / "device" / name, filter="data")
    run = [sys.executable, "-m", "runtimes", "unpack"]
    for arguments in (["."], ["../delta", "--base", "."]):
        done = subprocess.run(
            [*run, *arguments], cwd=tmp_path / "device" / "old", capture_output=True, text=True,
            env={"PYTHONPATH": "."}, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verified"] > 10
    unpack_package(newer, tmp_path / "wanted")
    assert content(tmp_path / "device" / "delta") == content(tmp_path / "wanted")


def test_a_delta_to_the_same_package_is_nearly_nothing(tmp_path, package):
    same = build_delta(package, package, tmp_path / "same.tar.gz")
    assert same.stat().st_size < 2500
    assert verify_package(same, base=package)


def test_a_delta_between_unlike_packages_still_gives_the_files(tmp_path, package):
    from tests.compressor.test_package import write_model as tiny

    other = make(tmp_path / "tiny", tiny(tmp_path / "t"))
    for old, new in ((package, other), (other, package)):
        delta = build_delta(old, new, tmp_path / "d.tar.gz")
        assert verify_package(delta, base=old)


def test_a_delta_needs_its_base(package, delta):
    with pytest.raises(UsageError, match="needs the package that it was made from"):
        verify_package(delta)


def test_another_base_is_refused(tmp_path, newer, delta):
    with pytest.raises(BadArtifact, match="made from another base") as error:
        verify_package(delta, base=newer)
    assert str(newer) in error.value.got


def test_a_changed_base_is_refused(tmp_path, package, delta):
    unpack_package(package, tmp_path / "v1")
    (tmp_path / "v1" / "LICENSE").write_text("other")
    with pytest.raises(BadArtifact, match="the base was changed: LICENSE"):
        verify_package(delta, base=tmp_path / "v1")


def test_packages_of_the_first_schema_still_open(tmp_path):
    from tests.compressor.test_package import write_model as tiny

    package = make(tmp_path, tiny(tmp_path / "a"))

    def before(data: bytes) -> bytes:
        manifest = json.loads(data)
        assert manifest.pop("coding") is None
        return json.dumps(manifest | {"schema": 1}).encode()

    assert verify_package(changed(package, "manifest.json", before))


def edited(package: Path, **coding: object) -> Path:
    """The package with other words about its coding."""

    def edit(data: bytes) -> bytes:
        manifest = json.loads(data)
        return json.dumps(manifest | {"coding": manifest["coding"] | coding}).encode()

    return changed(package, "manifest.json", edit)


@pytest.mark.parametrize(
    ("coding", "words"),
    [
        ({"version": 9}, "coding of another version"),
        ({"version": None}, "coding of another version"),
        ({"files": None}, "does not say which files"),
        ({"files": [["model/model.onnx", "1"]]}, "does not say which files"),
        ({"files": [["model/model.onnx", -1]]}, "does not say which files"),
        ({"files": [["model/model.onnx", True]]}, "does not say which files"),
        ({"files": [["../evil", 10]]}, "not plain"),
        ({"files": [["/evil", 10]]}, "not plain"),
        ({"files": [["a", 1], ["A", 1]]}, "stands twice"),
        ({"files": [["model/model.onnx", 1 << 60]]}, "unpacks to more"),
        ({"files": [["model/model.onnx", 1000]]}, "damaged coding"),
        ({"files": [["run.py", 54_000]]}, "damaged coding"),
    ],
)
def test_hostile_words_about_the_coding_are_refused(tmp_path, package, coding, words):
    bad = edited(package, **coding)
    before = set(tmp_path.rglob("*"))
    with pytest.raises(BadArtifact, match=words):
        verify_package(bad)
    assert set(tmp_path.rglob("*")) == before


def test_a_coded_file_may_not_overwrite_another(package):
    size = dict(json.loads(dict_of(package)["manifest.json"])["coding"]["files"])
    bad = edited(package, files=[["run.py", size["model/model.onnx"]]])
    with pytest.raises(BadArtifact, match="stands there already"):
        verify_package(bad)


def dict_of(package: Path) -> dict[str, bytes]:
    return {m.name: d for m, d in unpacked(package)}


@pytest.mark.parametrize("coding", [[], 1, "x"])
def test_a_coding_of_another_type_is_refused(package, coding):
    edit = lambda d: json.dumps(json.loads(d) | {"coding": coding}).encode()  # noqa: E731
    with pytest.raises(BadArtifact):
        verify_package(changed(package, "manifest.json", edit))


@pytest.mark.parametrize("at", [0.0, 0.01, 0.1, 0.5, 0.9, 0.9999])
def test_a_damaged_model_is_refused(package, at):
    def flip(data: bytes) -> bytes:
        place = int(len(data) * at)
        return data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :]

    with pytest.raises(BadArtifact):
        verify_package(changed(package, "model.coded", flip))


def test_a_missing_model_is_refused(package):
    members = [(m, d) for m, d in unpacked(package) if m.name != "model.coded"]
    with pytest.raises(BadArtifact, match=r"model\.coded is missing"):
        verify_package(repack(package.with_name("less.tar.gz"), members))


@pytest.mark.parametrize(
    "base",
    [None, {}, {"digest": 1}, {"digest": "x", "files": []}, {"files": []}],
)
def test_hostile_words_about_the_base_are_refused(delta, package, base):
    edit = lambda d: json.dumps(json.loads(d) | {"base": base}).encode()  # noqa: E731
    with pytest.raises(BadArtifact):
        verify_package(changed(delta, "delta.json", edit), base=package)


def test_a_delta_may_not_read_outside_its_base(delta, package):
    def edit(data: bytes) -> bytes:
        described = json.loads(data)
        described["base"]["files"][0] = ["../../../etc/passwd", 1]
        return json.dumps(described).encode()

    with pytest.raises(BadArtifact, match="not plain"):
        verify_package(changed(delta, "delta.json", edit), base=package)


def test_a_folder_that_is_there_is_left_alone(tmp_path, package):
    with pytest.raises(UsageError, match="is there already"):
        unpack_package(package, tmp_path)


def test_the_verbs(tmp_path, package, newer, capsys):
    made = str(tmp_path / "d.tar.gz")
    assert main(["delta", str(package), str(newer), "-o", made]) == 0
    assert "% of the" in capsys.readouterr().out
    assert main(["verify", made]) == 2
    assert main(["verify", made, "--base", str(newer)]) == 7
    assert main(["verify", made, "--base", str(package)]) == 0
    assert main(["unpack", made, "--base", str(package), "-o", str(tmp_path / "o")]) == 0
    assert (tmp_path / "o" / "run.py").is_file()
    assert main(["delta", str(package), str(newer), "-o", str(tmp_path / "d.zip")]) == 2


def test_the_manifest_names_the_model_by_its_own_digest(package, tmp_path):
    manifest = json.loads(dict_of(package)["manifest.json"])
    wanted = hashlib.sha256((tmp_path / "a" / "model.onnx").read_bytes()).hexdigest()
    assert manifest["files"]["model/model.onnx"]["sha256"] == wanted
    assert manifest["schema"] == 2
