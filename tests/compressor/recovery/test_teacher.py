"""The original's outputs: each computed once, found again after a restart, of the right sample."""
# ruff: noqa: E402

import pytest

torch = pytest.importorskip("torch", reason="needs the torch extra")

from compressor.recovery import teacher
from compressor.recovery.teacher import make_teacher
from runtimes.types import TensorSpec
from tests.step_env import ArraySamples

DATA = ArraySamples({"x": torch.arange(24.0).reshape(12, 2).numpy()})


class Doubles(torch.nn.Module):
    """Notes the size of every batch."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, x):
        self.sizes.append(len(x))
        return 2 * x


def asked(made, indices):
    batch = [torch.from_numpy(DATA.feeds(indices)["x"])]
    (found,) = made.outputs(indices, batch)
    torch.testing.assert_close(found, 2 * batch[0])


def new(folder, first="n"):
    module = Doubles()
    made = make_teacher(module, [TensorSpec("x", "float32", (first, 2))], DATA, False, folder)
    module.sizes.clear()
    return made, module.sizes


def test_only_what_is_missing_is_computed(tmp_path):
    made, sizes = new(tmp_path)
    for indices in ([3, 1, 7], [1, 7, 3], [7, 0, 3, 11]):
        asked(made, indices)
    assert sizes == [3, 2]


def test_a_model_of_one_batch_size_gets_no_other(tmp_path):
    made, sizes = new(tmp_path, first=4)
    for indices in ([3, 1, 7, 2], [7, 0, 3, 11], [0, 11, 7, 3]):
        asked(made, indices)
    assert sizes == [4, 4]


def test_a_restart_finds_what_was_saved_and_no_more(tmp_path):
    made, _ = new(tmp_path)
    asked(made, [0, 1, 2])
    made.save()
    asked(made, [3, 4])
    again, sizes = new(tmp_path)
    asked(again, [0, 1, 2])
    assert sizes == []
    asked(again, [2, 3, 4])
    assert sizes == [2]


def test_above_the_limit_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(teacher, "LIMIT_BYTES", 10)
    made, sizes = new(tmp_path)
    asked(made, [0, 1])
    asked(made, [0, 1])
    made.save()
    assert sizes == [2, 2]
    assert list(tmp_path.iterdir()) == []
