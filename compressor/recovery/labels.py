"""The user's labels and loss, mixed with the distance to the original."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from compressor.usercode import takes
from exporters.base import Samples
from runtimes.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

Loss = Callable[[Mapping[str, "Tensor"], Any], "Tensor"]
WHERE = "recover.labels"


@dataclass(frozen=True)
class TaskLoss:
    """A loss on labels with its share of the aim.

    Attributes:
        weight: of the loss on labels; the distance to the original has the rest of 1.
        names: of the outputs.
        labels: one a sample.
        loss: from outputs by name, [n, …] each, and labels of the same samples to a scalar.
        told: what the loss is, for notes.
    """

    weight: float
    names: Sequence[str]
    labels: Sequence[Any]
    loss: Loss
    told: str

    def mixed(self, distance: Tensor, outputs: Sequence[Tensor], chosen: Sequence[int]) -> Tensor:
        """The whole aim for the samples `chosen`."""
        floats = [o.float() if o.is_floating_point() else o for o in outputs]
        own = self.loss(dict(zip(self.names, floats, strict=True)), _picked(self.labels, chosen))
        return (1 - self.weight) * distance + self.weight * own


def check_labels(data: Samples, reference: str) -> None:
    """Raise `UsageError` where the training data has no labels, or they fit no loss known."""
    if data.labels is None:
        raise UsageError(
            "labels are asked for, and the training data has none",
            where=WHERE,
            expected="one label a sample in data.training",
            fix="add an array named labels (or `labels: <its name>`) to data.training, or leave "
            "the option out: recovery needs none",
        )
    if not reference and _whole(data.labels) is None:
        raise UsageError(
            "the labels are no class numbers, so no loss follows from them",
            where=WHERE,
            expected="integers from 0, one a sample or one a position",
            got=_shown(data.labels[0]),
            fix="name yours: loss: package.module:function, called with (outputs, labels)",
        )


def make_task_loss(
    weight: float,
    names: Sequence[str],
    data: Samples,
    example: tuple[Sequence[int], Sequence[Tensor]],
    function: Loss | None,
    reference: str,
) -> TaskLoss:
    """Cross-entropy on the output that holds class scores, or the user's `function`, tried out.

    `example` are samples and the outputs on them. Raises `UsageError` where labels are missing or
    fit no output, or the function gives anything but a finite scalar with a gradient.
    """
    check_labels(data, reference)
    labels = data.labels
    assert labels is not None
    if function is None:
        outputs = dict(zip(names, example[1], strict=True))
        found = scores_of(outputs, labels)
        if found is None:
            raise _no_scores(outputs, labels)
        name, axis = found
        told = f"cross-entropy of {name}"
        return TaskLoss(weight, names, labels, _cross_entropy(name, axis), told)
    takes(function, 2, f"recover.loss {reference}", "function(outputs, labels)")
    made = TaskLoss(weight, names, labels, function, reference)
    _try_out(made, example, f"recover.loss {reference}")
    return made


def _cross_entropy(name: str, axis: int) -> Loss:
    from torch.nn import functional

    return lambda outputs, labels: functional.cross_entropy(
        outputs[name].movedim(axis, 1), labels.long()
    )


def _picked(labels: Sequence[Any], chosen: Sequence[int]) -> Any:
    """Labels of some samples: a tensor where they are numbers of one shape, else a list."""
    import torch

    own = [labels[i] for i in chosen]
    try:
        array = np.asarray(own)
    except ValueError:
        return own
    return own if array.dtype.kind not in "biuf" else torch.from_numpy(np.ascontiguousarray(array))


def _whole(labels: Sequence[Any]) -> np.ndarray | None:
    """Labels that are class numbers as one array, else None."""
    try:
        array = np.asarray(labels)
    except ValueError:
        return None
    good = array.dtype.kind in "iu" and array.size > 0 and int(array.min()) >= 0
    return array if good else None


def scores_of(
    outputs: Mapping[str, Tensor], labels: Sequence[Any] | None
) -> tuple[str, int] | None:
    """The output [n, classes, …] or [n, …, classes] that labels [n, …] are of, and its axis."""
    array = None if labels is None else _whole(labels)
    if array is None:
        return None
    for axis in (1, -1):
        for name, out in outputs.items():
            places = [*out.shape]
            fits = out.is_floating_point() and out.dim() == array.ndim + 1
            if fits and places.pop(axis) > int(array.max()) and places[1:] == [*array.shape[1:]]:
                return name, axis
    return None


def _no_scores(outputs: Mapping[str, Tensor], labels: Sequence[Any]) -> UsageError:
    array = _whole(labels)
    assert array is not None
    return UsageError(
        "the labels fit no output",
        where=WHERE,
        expected="class numbers [n, …] below the classes of an output [n, classes, …] or "
        "[n, …, classes]",
        got=f"labels {list(array.shape)} up to {int(array.max())}, outputs "
        + ", ".join(f"{n} {list(o.shape)}" for n, o in outputs.items()),
        fix="name your loss: loss: package.module:function, called with (outputs, labels)",
    )


def _try_out(made: TaskLoss, example: tuple[Sequence[int], Sequence[Tensor]], where: str) -> None:
    import torch

    chosen, outputs = example
    asked = [o.detach().clone().requires_grad_(o.is_floating_point()) for o in outputs]
    with torch.enable_grad():
        given = dict(zip(made.names, asked, strict=True))
        found = made.loss(given, _picked(made.labels, chosen))
    if not isinstance(found, torch.Tensor) or found.numel() != 1 or found.dim():
        raise _bad("is no scalar", where, _shown(found), "return a mean over the batch")
    if not found.requires_grad:
        raise _bad("has no gradient", where, _shown(found), "compute it from outputs with torch")
    if not bool(torch.isfinite(found)):
        raise _bad("is not finite", where, _shown(found), "look at the labels and the outputs")


def _bad(what: str, where: str, got: str, fix: str) -> UsageError:
    return UsageError(
        f"what the loss returned {what}",
        where=where,
        expected="a finite torch scalar with a gradient",
        got=got,
        fix=fix,
    )


def _shown(value: Any) -> str:
    shape = getattr(value, "shape", None)
    if shape is None or not len(shape):
        return f"{type(value).__name__} {str(value)[:60]}"
    return f"{type(value).__name__} of shape {list(shape)}"
