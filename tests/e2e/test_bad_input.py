"""Whatever is wrong with what the user hands in: the exit code, the place, and the fix."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

from compressor.cli import main
from tests import models
from tests.e2e.conftest import Bench

Case = tuple[Callable[[Path], Sequence[str]], int, Sequence[str]]


def run(*flags: str) -> Sequence[str]:
    return ("run", "-q", "-o", "out", *flags)


def recipe(folder: Path, text: str) -> str:
    (folder / "r.yaml").write_text(text)
    return "r.yaml"


def standard(folder: Path, **changed: str) -> Sequence[str]:
    """The run that would work, with some files exchanged."""
    files = {"model": "net.onnx", "calibration": "calib.npz", "evaluation": "eval.npz"} | changed
    return run(
        files["model"], "--target", "onnxruntime", "--calibration", files["calibration"],
        "--evaluation", files["evaluation"], "--metric", "top1",
    )  # fmt: skip


def no_target(folder: Path) -> Sequence[str]:
    return run("net.onnx")


def unknown_key(folder: Path) -> Sequence[str]:
    return run(recipe(folder, "modle: {source: net.onnx}\ntargets: {onnxruntime: {}}"))


def wrong_type(folder: Path) -> Sequence[str]:
    return run(recipe(folder, "model: {source: 3}\ntargets: {onnxruntime: {}}"))


def unknown_step(folder: Path) -> Sequence[str]:
    text = "model: {source: net.onnx}\ntargets: {onnxruntime: {steps: [quantise_static]}}"
    return run(recipe(folder, text))


def unknown_option(folder: Path) -> Sequence[str]:
    text = "model: {source: net.onnx}\ntargets: {onnxruntime: {steps: [to_onnxruntime, "
    return run(recipe(folder, text + "{quantize_weights: {bit: 4}}]}}"))


def unknown_target(folder: Path) -> Sequence[str]:
    return run("net.onnx", "--target", "onnxruntim")


def unknown_gate(folder: Path) -> Sequence[str]:
    return run("net.onnx", "--target", "onnxruntime", "--gate", "speed>=2")


def module_step_on_onnx(folder: Path) -> Sequence[str]:
    text = "model: {source: net.onnx}\nsteps: [recover]\n"
    return run(recipe(folder, text + "targets: {onnxruntime: {}}"))


def missing_model(folder: Path) -> Sequence[str]:
    return standard(folder, model="nothing.onnx")


def missing_data(folder: Path) -> Sequence[str]:
    return standard(folder, calibration="nothing.npz")


def truncated(folder: Path) -> Sequence[str]:
    (folder / "half.onnx").write_bytes((folder / "net.onnx").read_bytes()[:5000])
    return standard(folder, model="half.onnx")


def without_external_data(folder: Path) -> Sequence[str]:
    (folder / "ext").mkdir()
    path = models.external_data(folder / "ext" / "model.onnx")
    for file in (folder / "ext").iterdir():
        if file != path:
            file.unlink()
    return run("ext/model.onnx", "--target", "onnxruntime")


def opset_too_new(folder: Path) -> Sequence[str]:
    model = onnx.load(folder / "net.onnx")
    model.opset_import[0].version = 99
    onnx.save(model, folder / "new.onnx")
    return standard(folder, model="new.onnx")


def empty_data(folder: Path) -> Sequence[str]:
    np.savez(folder / "empty.npz", image=np.zeros((0, 1, 28, 28), np.float32))
    return standard(folder, calibration="empty.npz")


def nan_data(folder: Path) -> Sequence[str]:
    images = models.fashion_like(120, seed=5)["image"]
    images[7, 0, 3, 3] = np.nan
    np.savez(folder / "nan.npz", image=images)
    return standard(folder, calibration="nan.npz")


def constant_data(folder: Path) -> Sequence[str]:
    np.savez(folder / "grey.npz", image=np.full((120, 1, 28, 28), 0.5, np.float32))
    return standard(folder, calibration="grey.npz")


def black_data(folder: Path) -> Sequence[str]:
    np.savez(folder / "black.npz", image=np.zeros((120, 1, 28, 28), np.float32))
    return standard(folder, calibration="black.npz")


def channels_last(folder: Path) -> Sequence[str]:
    images = models.fashion_like(120, seed=5)["image"].transpose(0, 2, 3, 1)
    np.savez(folder / "nhwc.npz", image=images)
    return standard(folder, calibration="nhwc.npz")


def already_quantized(folder: Path) -> Sequence[str]:
    models.save(models.already_quantized(), folder / "q.onnx")
    text = "model: {source: q.onnx}\ndata: {calibration: calib.npz}\n"
    steps = "targets: {onnxruntime: {steps: [to_onnxruntime, quantize_static]}}"
    return run(recipe(folder, text + steps))


def changed(folder: Path, change: Callable[[onnx.ModelProto], None]) -> Sequence[str]:
    model = onnx.load(folder / "net.onnx")
    change(model)
    onnx.save(model, folder / "changed.onnx")
    return standard(folder, model="changed.onnx")


def custom_domain(folder: Path) -> Sequence[str]:
    def change(model: onnx.ModelProto) -> None:
        node = next(n for n in model.graph.node if n.name == "relu3")
        node.op_type, node.domain = "Wobble", "acme"
        model.opset_import.append(onnx.helper.make_opsetid("acme", 1))

    return changed(folder, change)


def unknown_operator(folder: Path) -> Sequence[str]:
    def change(model: onnx.ModelProto) -> None:
        next(n for n in model.graph.node if n.name == "relu3").op_type = "Rulo"

    return changed(folder, change)


def one_name_for_two_tensors(folder: Path) -> Sequence[str]:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node[1].output[0] = model.graph.node[0].output[0]

    return changed(folder, change)


def past_two_gigabytes(folder: Path) -> Sequence[str]:
    models.external_data(folder / "big.onnx")
    with (folder / "big.onnx.data").open("r+b") as file:
        file.truncate(2_200_000_000)  # sparse: takes no room
    return standard(folder, model="big.onnx")


def overlapping(folder: Path) -> Sequence[str]:
    data = dict(np.load(folder / "eval.npz"))
    np.savez(folder / "same.npz", image=data["image"][100:220])
    return standard(folder, calibration="same.npz")


def wrong_name(folder: Path) -> Sequence[str]:
    np.savez(folder / "named.npz", imgae=models.fashion_like(120, seed=6)["image"])
    return standard(folder, calibration="named.npz")


def wrong_shape(folder: Path) -> Sequence[str]:
    np.savez(folder / "shape.npz", image=np.ones((120, 1, 32, 32), np.float32))
    return standard(folder, calibration="shape.npz")


def no_metric(folder: Path) -> Sequence[str]:
    return run("net.onnx", "--target", "onnxruntime", "--evaluation", "eval.npz")


def keep_nothing(folder: Path) -> Sequence[str]:
    return (*standard(folder), "--keep-float", "haed*")


def unwritable(folder: Path) -> Sequence[str]:
    return (*standard(folder)[:2], "-o", "/proc/out", *standard(folder)[4:])


def not_a_run(folder: Path) -> Sequence[str]:
    return ("explain", "calib.npz")


def bad_shape_flag(folder: Path) -> Sequence[str]:
    return (*standard(folder), "--shape", "image=8..1")


CASES: list[Case] = [
    (no_target, 2, ["--target", "fix: add --target onnxruntime"]),
    (unknown_key, 2, ["r.yaml", "unknown key", "did you mean 'model'?"]),
    (wrong_type, 2, ["r.yaml.model.source", "got 3"]),
    (unknown_step, 2, ["quantise_static", "did you mean 'quantize_static'?"]),
    (unknown_option, 2, ["quantize_weights", "unknown key", "did you mean 'bits'?"]),
    (unknown_target, 2, ["did you mean 'onnxruntime'?"]),
    (unknown_gate, 2, ["speed", "did you mean 'speedup'?"]),
    (module_step_on_onnx, 2, ["recover", "gets onnx", "give the torch module"]),
    (missing_model, 2, ["nothing.onnx"]),
    (missing_data, 2, ["nothing.npz"]),
    (truncated, 2, ["half.onnx"]),
    (without_external_data, 2, ["model.onnx"]),
    (opset_too_new, 4, ["opset", "99"]),
    (empty_data, 2, ["empty.npz"]),
    (nan_data, 2, ["nan.npz", "7"]),
    (constant_data, 2, ["data.calibration: grey.npz", "0.5 throughout", "fix: check how"]),
    (black_data, 2, ["data.calibration: black.npz", "expected samples", "got image is 0 through"]),
    (channels_last, 2, ["nhwc.npz", "got [120, 28, 28, 1]", "fix: the channels stand last"]),
    (already_quantized, 4, ["quantize_static", "already quantized", "fix: hand in the float"]),
    (custom_domain, 4, ["relu3", "no operator acme.Wobble", "fix: write this part"]),
    (unknown_operator, 2, ["changed.onnx", "No Op registered for Rulo", "fix: export"]),
    (one_name_for_two_tensors, 2, ["changed.onnx", "not valid", "stem.out"]),
    (past_two_gigabytes, 4, ["big.onnx", "2.20 GB", "fix: split the model"]),
    (overlapping, 2, ["calibration[", "evaluation["]),
    (wrong_name, 2, ["imgae", "image"]),
    (wrong_shape, 2, ["shape.npz", "32"]),
    (no_metric, 2, ["no metric is named", "--metric"]),
    (keep_nothing, 2, ["haed*", "head"]),
    (unwritable, 2, ["/proc/out", "-o"]),
    (not_a_run, 7, ["calib.npz"]),
    (bad_shape_flag, 2, ["image", "min..max@opt"]),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0].__name__)
def test_bad_input(
    case: Case,
    bench: Bench,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make, code, fragments = case
    for name in ("net.onnx", "calib.npz", "eval.npz"):
        shutil.copy(bench.folder / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMPRESS_HOME", str(tmp_path / "store"))
    found = main(list(make(tmp_path)))
    said = capsys.readouterr().err
    assert found == code, said
    for fragment in fragments:
        assert fragment in said, said
    assert "Traceback" not in said
    assert not (tmp_path / "out" / "run.json").exists()


def test_a_plan_names_the_gates_of_a_run_without_labels(bench: Bench) -> None:
    flags = ("plan", "net.onnx", "--target", "onnxruntime", "--calibration", "calib.npz")
    assert "agreement>=97%" in bench.compress(*flags).stdout


def test_a_plan_finds_an_unknown_metric(bench: Bench) -> None:
    found = bench.compress("plan", *standard(bench.folder)[4:-1], "top9")
    assert found.returncode == 2
    assert "unknown metric 'top9'" in found.stderr


def test_what_the_users_evaluator_raises_is_not_our_bug(bench: Bench) -> None:
    (bench.folder / "loops.py").write_text("def broken(run):\n    raise ValueError('oops')\n")
    found = bench.compress(*standard(bench.folder), "--evaluator", "loops:broken")
    assert found.returncode == 2
    assert "loops.py:2: broken raised ValueError: oops" in found.stderr


def test_an_evaluator_brings_its_own_data(bench: Bench) -> None:
    (bench.folder / "own.py").write_text(
        "import numpy as np\n"
        "def loop(run):\n"
        "    run({'image': np.zeros((1, 1, 28, 28), np.float32)})\n"
        "    return {'metric': 0.5, 'per_sample': np.tile([0.0, 1.0], 200)}\n"
    )
    flags = ("--calibration", "calib.npz", "--evaluator", "own:loop", "--effort", "quick")
    model = ("run", "net.onnx", "--target", "onnxruntime", "-o", "own", "-q")
    done = bench.compress(*model, *flags, "--gate", "speedup>=0.1")
    assert "drop 0" in done.stdout, done.stderr
    assert "not judged" not in done.stdout


def test_a_bounded_batch_is_kept_to_everywhere(bench: Bench) -> None:
    pytest.importorskip("openvino", reason="bounded shapes are OpenVINO's")
    model = ("run", "net.onnx", "--target", "openvino", "--shape", "image=2..8@4", "-o", "bounded")
    data = ("--calibration", "calib.npz", "--evaluation", "eval.npz", "--metric", "top1")
    done = bench.compress(*model, *data, "--effort", "quick", "--batch", "16", "-q")
    assert "batch 8" in done.stdout, done.stderr
