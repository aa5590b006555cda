from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from compressor.sources import SourceSpec, open_source, source_factory
from exporters import to_onnx
from runtimes.errors import BuildFailed
from tests.exporters.helpers import step

torch = pytest.importorskip("torch", reason="needs the torch extra")
nn = torch.nn
torch_models = pytest.importorskip("tests.torch_models")

pytestmark = pytest.mark.torch
ROOT = Path(__file__).parents[2]


def export(model, inputs, tmp_path, **options):
    spec = SourceSpec(model=model, inputs=inputs, base_dir=ROOT)
    folder = tmp_path / f"module{len(list(tmp_path.glob('module*')))}"
    source = open_source(spec, folder)
    return step(to_onnx, source, tmp_path, factory=source_factory(spec), **options)


@pytest.mark.parametrize("name", torch_models.INPUTS)
def test_every_architecture_exports_with_free_dimensions(name, tmp_path):
    made = export(f"tests.torch_models:{name}", torch_models.INPUTS[name], tmp_path)
    ((key, shape),) = torch_models.INPUTS[name].items()
    assert [s.name for s in made.inputs] == [key]
    assert made.inputs[0].shape == tuple(shape)
    assert made.outputs[0].shape[0] == "batch"
    assert made.facts["check"]["max_rel_error"] < 1e-4
    assert made.facts["opset"] == 21


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_recurrent_layers_are_one_node(kind, tmp_path):
    rnn = torch_models.Recurrent(kind(8, 16, batch_first=True))
    made = export(rnn, {"sequence": ["batch", "time", 8]}, tmp_path)
    ops = [node.op_type for node in onnx.load(made.path).graph.node]
    assert ops.count(kind.__name__) == 1
    assert len(ops) < 15
    assert made.facts["exporter"] == "torchscript"


def test_nodes_and_weights_are_named_after_modules(tmp_path):
    made = export("tests.torch_models:tiny_unet", torch_models.INPUTS["tiny_unet"], tmp_path)
    model = onnx.load(made.path)
    assert {"down.0/Conv", "up/ConvTranspose", "mask/Conv"} <= {n.name for n in model.graph.node}
    names = {t.name for t in model.graph.initializer}
    assert {"down.0.weight", "up.weight", "mask.weight", "mask.bias"} <= names


def test_the_same_module_gives_the_same_bytes(tmp_path):
    inputs = torch_models.INPUTS["tiny_vit_block"]
    made = [export("tests.torch_models:tiny_vit_block", inputs, tmp_path) for _ in range(2)]
    assert made[0].digest() == made[1].digest()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny_resnet", "tiny_gru"])
def test_another_process_gives_the_same_bytes(name, tmp_path):
    made = export(f"tests.torch_models:{name}", torch_models.INPUTS[name], tmp_path)
    code = (
        "import sys; from pathlib import Path; from tests.exporters.test_to_onnx import *;"
        f"print(export('tests.torch_models:{name}', torch_models.INPUTS['{name}'],"
        " Path(sys.argv[1])).digest())"
    )
    (tmp_path / "other").mkdir()
    argv = [sys.executable, "-c", code, str(tmp_path / "other")]
    told = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=ROOT)
    assert told.stdout.strip() == made.digest()


class Two(nn.Module):
    """Two inputs of different dtypes, two outputs in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.table = nn.Linear(4, 4), nn.Embedding(10, 4)

    def forward(self, dense, ids):
        y = self.linear(dense) + self.table(ids)
        return {"sum": y, "double": y * 2}


def test_several_inputs_and_outputs_keep_names_and_dtypes(tmp_path):
    inputs = {"ids": {"shape": ["batch"], "dtype": "int64"}, "dense": ["batch", 4]}
    made = export(Two(), inputs, tmp_path)
    assert [str(s) for s in made.inputs] == ["dense float32[batch, 4]", "ids int64[batch]"]
    assert [s.name for s in made.outputs] == ["sum", "double"]


class Branch(nn.Module):
    """A choice made in Python: a trace keeps one of the two branches."""

    def forward(self, x):
        return x * 2 if x.sum() > 0 else x - 1


def test_a_branch_that_the_trace_froze_fails_the_build_quietly(tmp_path, capfd):
    with pytest.raises(BuildFailed, match="computes something else"):
        export(Branch(), {"x": ["batch", 4]}, tmp_path)
    assert capfd.readouterr() == ("", "")


class Frozen(nn.Module):
    """A size read as a Python number: right in torch, a constant once traced."""

    def forward(self, x):
        return x * float(x.shape[1])


def test_a_dimension_that_the_trace_froze_fails_the_build(tmp_path):
    with pytest.raises(BuildFailed, match="output"):
        export(Frozen(), {"x": ["batch", "time"]}, tmp_path, exporter="torchscript")


def test_when_dynamo_fails_the_other_exporter_is_used_and_said(tmp_path, monkeypatch):
    from exporters import _torch_export

    def fail(*given):
        raise RuntimeError("cannot trace this")

    monkeypatch.setattr(_torch_export, "export_dynamo", fail)
    made = export(nn.Linear(4, 2), {"x": ["batch", 4]}, tmp_path)
    assert made.facts["exporter"] == "torchscript"
    assert "cannot trace this" in made.facts["notes"][0]


def test_when_both_fail_the_error_names_both(tmp_path, monkeypatch):
    from exporters import _torch_export

    def fail(*given):
        raise RuntimeError("no")

    monkeypatch.setattr(_torch_export, "export_dynamo", fail)
    monkeypatch.setattr(_torch_export, "export_torchscript", fail)
    with pytest.raises(BuildFailed, match=r"(?s)dynamo.*torchscript"):
        export(nn.Linear(4, 2), {"x": ["batch", 4]}, tmp_path)


def test_nothing_is_printed(tmp_path, capfd):
    export(nn.Linear(4, 2), {"x": ["batch", 4]}, tmp_path)
    assert capfd.readouterr() == ("", "")


def test_free_height_and_width_of_a_unet(tmp_path):
    made = export(torch_models.tiny_unet(), {"image": ["batch", 1, "height", "width"]}, tmp_path)
    assert made.outputs[0].shape == ("batch", 1, "height", "width")


def test_an_exported_program_keeps_its_names(tmp_path):
    module, batch = torch_models.tiny_mlp().eval(), torch.export.Dim("batch")
    program = torch.export.export(module, (torch.randn(2, 16),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "model.pt2")
    source = open_source(SourceSpec(model=tmp_path / "model.pt2"), tmp_path / "exported")
    made = step(to_onnx, source, tmp_path)
    assert made.inputs == source.inputs
    assert made.inputs[0].shape == ("batch", 16)
    assert made.facts["exporter"] == "dynamo"
