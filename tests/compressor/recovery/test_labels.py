"""Labels in recovery: cross-entropy by itself, the user's loss, and errors that say what is off."""
# ruff: noqa: E402

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the torch extra")

from compressor.recovery.labels import check_labels, make_task_loss
from runtimes.errors import UsageError
from tests.step_env import ArraySamples


def samples(labels):
    return ArraySamples({"x": np.zeros((4, 2), np.float32)}, labels)


def made(labels, outputs, function=None, names=("scores",)):
    reference = "my:loss" if function else ""
    return make_task_loss(
        0.25, names, samples(labels), ([0, 1, 2, 3], outputs), function, reference
    )


def test_class_numbers_give_cross_entropy_in_its_share():
    outputs = [torch.randn(4, 3)]
    task = made([0, 2, 1, 1], outputs)
    own = torch.nn.functional.cross_entropy(outputs[0][[2, 1]], torch.tensor([1, 2]))
    found = task.mixed(torch.tensor(8.0), [outputs[0][[2, 1]]], [2, 1])
    assert float(found) == pytest.approx(0.75 * 8 + 0.25 * float(own), rel=1e-5)


def test_labels_a_position_find_the_output_they_are_of():
    outputs = [torch.randn(4, 5), torch.randn(4, 3, 6, 6)]
    labels = np.random.default_rng(0).integers(0, 3, (4, 6, 6))
    task = made(labels, outputs, names=("flat", "mask"))
    assert task.told == "cross-entropy of mask"
    assert torch.isfinite(task.mixed(torch.tensor(0.0), outputs, [0, 1, 2, 3]))


def test_a_language_models_classes_are_the_last_axis():
    outputs = [torch.randn(4, 6, 9)]
    labels = np.random.default_rng(0).integers(0, 9, (4, 6))
    task = made(labels, outputs)
    flat = outputs[0].flatten(0, 1), torch.from_numpy(labels).flatten()
    own = torch.nn.functional.cross_entropy(*flat)
    found = task.mixed(torch.tensor(0.0), outputs, [0, 1, 2, 3])
    assert float(found) == pytest.approx(0.25 * float(own), rel=1e-5)


def test_the_users_loss_gets_outputs_by_name_and_labels_of_the_batch():
    seen = []

    def loss(outputs, labels):
        seen.append((sorted(outputs), labels.tolist()))
        return (outputs["scores"].sum(1) - labels).abs().mean()

    task = made([0.5, 1.5, 2.5, 3.5], [torch.randn(4, 3)], loss)
    task.mixed(torch.tensor(0.0), [torch.randn(2, 3)], [3, 0])
    assert seen[-1] == (["scores"], [3.5, 0.5])


def test_labels_that_are_no_numbers_reach_the_loss_as_they_are():
    def loss(outputs, labels):
        return outputs["scores"].mean() * len(labels[0])

    task = made(["ab", "c", "d", "e"], [torch.ones(4, 3)], loss)
    found = task.mixed(torch.tensor(0.0), [torch.ones(1, 3)], [0])
    assert float(found) == pytest.approx(0.25 * 2)


@pytest.mark.parametrize(
    ("labels", "reference", "says"),
    [
        (None, "", "the training data has none"),
        (None, "my:loss", "the training data has none"),
        ([0.5, 1.0, 2.0, 3.0], "", "no class numbers"),
        (["a", "b", "c", "d"], "", "no class numbers"),
        ([-1, 0, 1, 2], "", "no class numbers"),
    ],
)
def test_labels_that_are_missing_or_fit_no_loss(labels, reference, says):
    with pytest.raises(UsageError, match=says) as caught:
        check_labels(samples(labels), reference)
    assert caught.value.fix


@pytest.mark.parametrize("outputs", [[torch.randn(4, 3)], [torch.randn(4, 9, 2)]])
def test_classes_beyond_the_outputs(outputs):
    with pytest.raises(UsageError, match="fit no output") as caught:
        made([0, 1, 2, 7], outputs)
    assert "up to 7" in caught.value.got


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (lambda outputs, labels: outputs["scores"], "is no scalar"),
        (lambda outputs, labels: 0.5, "is no scalar"),
        (lambda outputs, labels: outputs["scores"].detach().mean(), "has no gradient"),
        (lambda outputs, labels: outputs["scores"].mean() / 0, "is not finite"),
        (lambda outputs: outputs, "cannot be called with 2 arguments"),
    ],
)
def test_losses_that_cannot_be_trained_on(loss, says):
    with pytest.raises(UsageError, match=says) as caught:
        made([0, 1, 2, 1], [torch.ones(4, 3)], loss)
    assert caught.value.where == "recover.loss my:loss"
