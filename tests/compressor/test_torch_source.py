from __future__ import annotations

import collections
import pickle
import zipfile
from pathlib import Path

import pytest

from compressor.sources import SourceSpec, identify, open_source, source_factory
from runtimes.errors import UsageError

torch = pytest.importorskip("torch", reason="needs the torch extra")
nn = torch.nn
torch_models = pytest.importorskip("tests.torch_models")
pytestmark = pytest.mark.torch
ROOT = Path(__file__).parents[2]
MLP = {"features": ["batch", 16]}


def opened(model, tmp_path, inputs=None, **asked):
    spec = SourceSpec(model=model, inputs=inputs or MLP, base_dir=ROOT, **asked)
    return open_source(spec, tmp_path / "artifact")


def factory(tmp_path, weights, inputs=None):
    return opened("tests.torch_models:tiny_mlp", tmp_path, inputs, weights=weights)


@pytest.fixture
def state():
    torch.manual_seed(1)
    return torch_models.tiny_mlp().state_dict()


def test_a_factory_with_safetensors(state, tmp_path):
    from safetensors.torch import load_file, save_file

    save_file(state, tmp_path / "w.safetensors")
    made = factory(tmp_path, tmp_path / "w.safetensors")
    assert (made.format, made.inputs[0].shape) == ("module", ("batch", 16))
    assert [str(s) for s in made.outputs] == ["output float32[batch, 10]"]
    assert torch.equal(load_file(made.path)["0.weight"], state["0.weight"])


@pytest.mark.parametrize(
    ("wrap", "said"),
    [(lambda s: s, ""), (lambda s: {"module." + k: v for k, v in s.items()}, "'module.'"),
     (lambda s: {"_orig_mod." + k: v for k, v in s.items()}, "'_orig_mod.'"),
     (lambda s: {"state_dict": s, "epoch": 3}, "'state_dict'")],
)  # fmt: skip
def test_a_checkpoint_as_people_save_it(wrap, said, state, tmp_path):
    torch.save(wrap(dict(state)), tmp_path / "w.pt")
    made = factory(tmp_path, tmp_path / "w.pt")
    assert said in " ".join(made.facts["notes"])


def test_weights_that_do_not_fit_are_listed(state, tmp_path):
    state = dict(state)
    state["fc.weight"] = state.pop("0.weight")
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(UsageError, match=r"missing 0\.weight; unexpected fc\.weight"):
        factory(tmp_path, tmp_path / "w.pt")


def test_weights_of_another_size_are_named(state, tmp_path):
    state["0.weight"] = torch.zeros(64, 8)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(UsageError, match=r"0\.weight") as caught:
        factory(tmp_path, tmp_path / "w.pt")
    assert (caught.value.expected, caught.value.got) == ("[64, 16]", "[64, 8]")


class Spy:
    """Leaves a trace where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_checkpoint_with_code_in_it_is_not_run(tmp_path):
    torch.save({"weights": Spy(tmp_path / "ran")}, tmp_path / "w.pt")
    with pytest.raises(UsageError, match="run code") as caught:
        factory(tmp_path, tmp_path / "w.pt")
    assert "state_dict()" in caught.value.fix
    assert not (tmp_path / "ran").exists()


def test_a_pickled_module_as_weights_is_refused(tmp_path):
    torch.save(torch_models.tiny_mlp(), tmp_path / "w.pt")
    with pytest.raises(UsageError, match="pickled Python objects"):
        factory(tmp_path, tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_damaged_weights(name, state, tmp_path):
    from safetensors.torch import save_file

    (save_file if "safe" in name else torch.save)(dict(state), tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(UsageError, match=r"damaged|truncated"):
        factory(tmp_path, tmp_path / name)


def test_missing_inputs_are_asked_for(tmp_path):
    with pytest.raises(UsageError, match="inputs") as caught:
        open_source(SourceSpec(model=torch_models.tiny_mlp()), tmp_path)
    assert "inputs: {image:" in caught.value.fix


def test_wrong_inputs_show_torchs_own_reason(tmp_path):
    with pytest.raises(UsageError, match="shapes cannot be multiplied"):
        opened(torch_models.tiny_mlp(), tmp_path, {"features": ["batch", 17]})


def test_an_instance_is_neither_changed_nor_needed_again(tmp_path):
    module = torch_models.tiny_resnet().train()
    made = opened(module, tmp_path, {"image": [None, 1, 28, 28]})
    assert module.training
    assert made.inputs[0].shape == ("batch", 1, 28, 28)
    built = source_factory(SourceSpec(model=module))()
    assert built is not module
    assert not built.training


def test_identity_of_an_instance_is_its_structure_and_weights():
    torch.manual_seed(0)
    first = torch_models.tiny_mlp()
    before = identify(SourceSpec(model=first, inputs=MLP))
    assert identify(SourceSpec(model=first, inputs=MLP)) == before
    with torch.no_grad():
        first[0].weight[0, 0] += 1
    assert identify(SourceSpec(model=first, inputs=MLP)) != before


def test_settings_without_weights_are_part_of_the_identity():
    relu, gelu = nn.Sequential(nn.Flatten(1)), nn.Sequential(nn.Flatten(2))
    assert identify(SourceSpec(model=relu)) != identify(SourceSpec(model=gelu))


class TwoOut(nn.Module):
    def forward(self, first, second):
        return {"halves": first[:, ::2], "total": first.sum(1) + second, "fixed": first.new_ones(3)}


def test_outputs_are_found_by_running(tmp_path):
    made = opened(TwoOut(), tmp_path, {"second": ["batch"], "first": ["batch", "time"]})
    assert [s.name for s in made.inputs] == ["first", "second"]  # in forward's order
    assert [str(s) for s in made.outputs] == [
        "halves float32[batch, halves_dim1]", "total float32[batch]", "fixed float32[3]",
    ]  # fmt: skip


def test_outputs_may_be_named_and_must_fit(tmp_path):
    made = opened(torch_models.tiny_mlp(), tmp_path, outputs=["logits"])
    assert made.outputs[0].name == "logits"
    with pytest.raises(UsageError, match="output names"):
        opened(torch_models.tiny_mlp(), tmp_path, outputs=["a", "b"])


class OneSize(nn.Module):
    def forward(self, x):
        return x.reshape(2, -1) if x.shape[0] == 2 else x.undefined


def test_a_dimension_that_cannot_vary_is_named(tmp_path):
    with pytest.raises(UsageError, match="dimension batch cannot vary"):
        opened(OneSize(), tmp_path, {"x": ["batch", 4]})


def test_narrowed_shapes_are_static(tmp_path):
    made = opened(torch_models.tiny_mlp(), tmp_path, shapes={"features": {"batch": (4, 4, 4)}})
    assert (made.inputs[0].shape, made.outputs[0].shape) == ((4, 16), (4, 10))


def test_the_same_module_gives_the_same_artifact(tmp_path):
    module = torch_models.tiny_unet()
    made = [
        open_source(SourceSpec(model=module, inputs=torch_models.INPUTS["tiny_unet"]), tmp_path / n)
        for n in "ab"
    ]
    assert made[0].digest() == made[1].digest()


# ── files that are no module ─────────────────────────────────────────────────────────────────────


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_named_with_its_fix(tmp_path):
    scripted = torch.jit.trace(torch_models.tiny_mlp(), torch.zeros(1, 16))
    scripted.save(tmp_path / "m.pt")
    for model in (tmp_path / "m.pt", scripted):
        with pytest.raises(UsageError, match="TorchScript") as caught:
            opened(model, tmp_path)
        assert "Python module" in caught.value.fix
    with pytest.raises(UsageError, match="TorchScript"):
        factory(tmp_path, tmp_path / "m.pt")


def test_a_pickled_module_or_bare_weights_as_model(state, tmp_path):
    torch.save(torch_models.tiny_mlp(), tmp_path / "module.pt")
    torch.save(state, tmp_path / "state.pt")
    (tmp_path / "old.pkl").write_bytes(pickle.dumps(collections.OrderedDict(), protocol=2))
    for name, kind in (
        ("module.pt", "pickled"), ("state.pt", "weights without a model"), ("old.pkl", "pickled"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=kind) as caught:
            opened(tmp_path / name, tmp_path)
        assert "module:function" in caught.value.fix


def exported(path: Path) -> Path:
    batch = torch.export.Dim("batch")
    module = torch_models.tiny_mlp().eval()
    program = torch.export.export(module, (torch.randn(2, 16),), dynamic_shapes=({0: batch},))
    torch.export.save(program, path)
    return path


def test_an_exported_program_is_kept_as_it_is(tmp_path):
    path = exported(tmp_path / "m.pt2")
    made = open_source(SourceSpec(model=path), tmp_path / "artifact")
    assert (made.format, made.inputs[0].shape) == ("exported", ("batch", 16))
    assert made.path.read_bytes() == path.read_bytes()
    assert source_factory(SourceSpec(model=path)) is None


def test_an_exported_program_with_code_in_it_is_not_run(tmp_path):
    path, bad = exported(tmp_path / "m.pt2"), tmp_path / "bad.pt2"
    torch.save((Spy(tmp_path / "ran"),), tmp_path / "spy")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(bad, "w") as new:
        for name in old.namelist():
            evil = name.endswith("sample_inputs/model.pt")
            new.writestr(name, (tmp_path / "spy").read_bytes() if evil else old.read(name))
    with pytest.raises(UsageError, match="run code"):
        open_source(SourceSpec(model=bad), tmp_path / "artifact")
    assert not (tmp_path / "ran").exists()


def test_a_truncated_program(tmp_path):
    path = exported(tmp_path / "m.pt2")
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UsageError):
        open_source(SourceSpec(model=path), tmp_path / "artifact")


def test_an_exported_program_in_memory_is_told_to_be_saved():
    program = torch.export.export(torch_models.tiny_mlp().eval(), (torch.randn(2, 16),))
    with pytest.raises(UsageError) as caught:
        identify(SourceSpec(model=program))
    assert "torch.export.save" in caught.value.fix


def test_a_module_that_cannot_be_copied_is_told_so(tmp_path):
    module = torch_models.tiny_mlp()
    module.table = (i for i in range(3))  # generators cannot be copied
    with pytest.raises(UsageError, match="cannot be copied"):
        opened(module, tmp_path)
