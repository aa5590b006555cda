"""Zeros in a whole run: the package is what shrinks, and what the size gate reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import compressor
from compressor.modules import import_reference
from compressor.package import coded_size
from tests.e2e.conftest import ROOT, Bench

EXAMPLE = ROOT / "examples" / "01_image_classifier"
STORED = ["to_onnxruntime", {"reconstruct_weights": {"least": 64}}]


def recipe(steps: list[Any], gates: list[Any], own: list[Any]) -> dict[str, Any]:
    return {
        "schema": 1,
        "model": {"source": "net.onnx"},
        "data": {"calibration": "calib.npz", "evaluation": "eval.npz"},
        "metric": "top1",
        "steps": steps,
        "targets": {"onnxruntime": {"steps": own}},
        "gates": ["accuracy_drop<=5%", "speedup>=0.1", *gates],
    }


def run(bench: Bench, name: str, made: dict[str, Any]) -> tuple[int, dict[str, Any], str]:
    (bench.folder / f"{name}.yaml").write_text(yaml.safe_dump(made))
    done = bench.compress("run", f"{name}.yaml", "-o", name, "--effort", "quick")
    return done.returncode, bench.record(name), done.stdout + done.stderr


def candidates(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {c["name"]: c for c in record["targets"][0]["candidates"]}


PATTERN = {"prune_pattern": {"sparsity": "50%", "least": 64}}


@pytest.mark.slow
def test_a_gate_of_the_package_passes_where_one_of_the_file_fails(bench: Bench) -> None:
    package = {"gate": "size_reduction>=40%", "of": "package"}
    code, record, said = run(bench, "package", recipe([PATTERN], [package], ["to_onnxruntime"]))
    assert code == 0, said
    found = candidates(record)
    assert found["candidate"]["package_bytes"] < 0.7 * found["twin"]["package_bytes"]
    assert found["candidate"]["size_bytes"] > 0.95 * found["twin"]["size_bytes"]
    (size,) = [c for c in found["candidate"]["checks"] if "size_reduction" in c["gate"]]
    assert size["gate"] == "size_reduction>=40% of the package"
    (step,) = [s for s in record["steps"] if s["step"] == "prune_pattern"]
    assert any("neither the model file smaller" in note for note in step["notes"])
    assert not any("reads the model file" in w for w in record["warnings"])

    code, record, said = run(
        bench, "file", recipe([PATTERN], ["size_reduction>=40%"], ["to_onnxruntime"])
    )
    assert code == 1, said
    (warning,) = [w for w in record["warnings"] if "reads the model file" in w]
    assert "of: package" in warning


@pytest.mark.slow
def test_zeros_make_four_bit_weights_smaller_still(bench: Bench) -> None:
    _, dense, _ = run(bench, "dense", recipe([], [], STORED))
    _, sparse, _ = run(bench, "sparse", recipe([PATTERN], [], STORED))
    sizes = [candidates(r)["candidate"]["package_bytes"] for r in (dense, sparse)]
    assert sizes[1] < 0.9 * sizes[0]
    checks = candidates(sparse)["candidate"]["checks"]
    assert "size_reduction>=0% of the package" in [c["gate"] for c in checks]


def test_the_plan_says_which_size_a_gate_reads(bench: Bench) -> None:
    made = recipe([PATTERN], ["size<=3MB"], ["to_onnxruntime"])
    (bench.folder / "plan.yaml").write_text(yaml.safe_dump(made))
    done = bench.compress("plan", "plan.yaml")
    assert done.returncode == 0, done.stderr
    assert "size_reduction>=0% of the package" in done.stdout
    assert "size<=3MB reads the model file, which prune_pattern makes no smaller" in done.stdout


def test_two_of_four_without_quotes_is_explained(bench: Bench) -> None:
    text = yaml.safe_dump(recipe([{"prune_pattern": {}}], [], ["to_onnxruntime"]))
    (bench.folder / "sixty.yaml").write_text(text.replace("{}", "{pattern: 2:4}"))
    done = bench.compress("plan", "sixty.yaml")
    assert done.returncode == 2
    assert 'write pattern: "2:4"' in done.stderr


@pytest.mark.slow
def test_two_of_four_of_the_example_model_on_real_pictures(tmp_path: Path) -> None:
    """A trained residual network, half of its weights gone, no label and no training."""
    pytest.importorskip("torch", reason="module sources need the torch extra")
    from safetensors.torch import load_file

    data = import_reference("fashion_data:evaluation", EXAMPLE)
    try:
        evaluation = data()
    except (OSError, SystemExit, RuntimeError) as error:
        pytest.skip(f"Fashion-MNIST is not here: {error}")
    calibration = import_reference("fashion_data:calibration", EXAMPLE)()
    module = import_reference("fashion_resnet:build", EXAMPLE)()
    module.load_state_dict(load_file(EXAMPLE / "resnet.safetensors"))
    result = compressor.compress(
        module.eval(),
        {
            "model": {"inputs": {"image": ["batch", 1, 28, 28]}, "outputs": ["logits"]},
            "metric": "top1",
            "steps": [{"prune_pattern": {"pattern": "2:4"}}],
            "targets": {"onnxruntime": {"steps": ["to_onnxruntime"]}},
            "gates": [
                "accuracy_drop<=1%",
                "speedup>=0.1",
                {"gate": "size_reduction>=50%", "of": "package"},
            ],
        },
        calibration={"image": calibration["image"][:400]},
        evaluation={k: v[:3000] for k, v in evaluation.items()},
        effort="quick",
        out=tmp_path / "out",
        store=tmp_path / "store",
    )
    assert result.verdict == "pass", result.record.targets[0].reason
    (target,) = result.record.targets
    assert target.shipped == "candidate"
    sizes = {c.name: c.package_bytes for c in target.candidates}
    assert sizes["candidate"] < 0.6 * sizes["twin"]
    assert coded_size(result.artifacts["onnxruntime"]) == sizes["candidate"]
