"""Channels and ranks under one budget: the split is what was measured, and it is stored whole."""
# ruff: noqa: E402

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the torch extra")
pytest.importorskip("torch_pruning", reason="needs the torch extra")

from torch import nn

from compressor.factorization import pairs
from compressor.modules import load_module
from compressor.passes import factorize_layers
from compressor.passes.factorize_layers import Options
from compressor.pruning import costs
from exporters.base import Context
from runtimes.errors import UsageError
from tests import small_modules as sm
from tests.step_env import ArraySamples, make_env


def net(width: int = 64) -> nn.Module:
    torch.manual_seed(0)
    wide = nn.Linear(16, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
    return nn.Sequential(*wide, nn.Linear(width, 8)).eval()


def with_dead_units() -> nn.Module:
    """Half of the units of both hidden layers never say anything: channels are free."""
    module = net()
    with torch.no_grad():
        for name in ("0", "2"):
            module.get_submodule(name).weight[::2] = 0
            module.get_submodule(name).bias[::2] = -1
    return module


def of_low_rank() -> nn.Module:
    """The large layer has rank 4: ranks are free, and no unit is."""
    module = net()
    with torch.no_grad():
        module[2].weight.copy_(torch.randn(64, 4) @ torch.randn(4, 64) / 16)
    return module


def made(module, tmp_path, data=True, name="joint", **options):
    source = sm.artifact(module, tmp_path / "own", ("n", 16), "float32")
    x = np.random.default_rng(0).standard_normal((512, 16)).astype("float32")
    env = make_env(
        tmp_path, reference=source, data={"calibration": ArraySamples({"x": x})} if data else {},
        factory=net, context=Context(width_multiple=1), name=name,
    )  # fmt: skip
    artifact = factorize_layers.run(source, Options(samples=64, **options), env)
    return artifact, load_module(artifact, net)


def noise(smaller, module) -> float:
    x = np.random.default_rng(9).standard_normal((256, 16)).astype("float32")
    a, b = sm.outputs(smaller, x)[0], sm.outputs(module, x)[0]
    return float(np.square(a - b).mean() / b.var())


def test_channels_that_say_nothing_go_before_ranks(tmp_path):
    module, keep = with_dead_units(), {"params": 0.4}
    joint, both = made(module, tmp_path, keep=keep, channels="auto")
    _, alone = made(module, tmp_path, keep=keep, name="alone")
    example = [torch.zeros(2, 16)]
    left = costs.count(both, example, "params") / costs.count(module, example, "params")
    assert left == pytest.approx(0.4, rel=0.02)
    assert "50% of the saving is made by removed channels" in joint.facts["notes"][-1]
    assert noise(both, module) < 0.5 * noise(alone, module)
    assert joint.facts["removed"]
    assert pairs.ranks(both)
    assert joint.facts["parameters_before"] == sum(p.numel() for p in module.parameters())


def test_where_ranks_lose_least_no_channel_goes(tmp_path):
    module, keep = of_low_rank(), {"params": 0.52}
    joint, both = made(module, tmp_path, keep=keep, channels="auto")
    _, alone = made(module, tmp_path, keep=keep, name="alone")
    assert joint.facts["notes"][-1].startswith("0% of the saving is made by removed channels")
    assert "removed" not in joint.facts
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(both.state_dict()[name], value, rtol=0, atol=0)


def test_a_split_that_cannot_be_made_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "net", lambda: nn.Sequential(nn.Linear(16, 40)).eval())
    joint, _ = made(net(), tmp_path, keep={"params": 0.635}, channels="auto")
    told = joint.facts["notes"][-1]  # its only channels are the outputs
    assert told.startswith("0% of")
    assert told.count(" with ") == 1


def test_a_split_is_not_guessed_without_data(tmp_path):
    with pytest.raises(UsageError, match=r"factorize_layers.channels(.|\n)*add data.calibration"):
        made(net(), tmp_path, data=False, keep={"params": 0.6}, channels="auto")
