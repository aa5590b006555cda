"""The branches of an `If`, quantized as models of their own on what calibration feeds to them.

NNCF (3.4) enters branches too, but fails on inputs without names and on a branch that the data
never takes, and keeps what all of the data feeds to a branch in memory. Here a branch gets one
batch at a time, and one that is never taken stays float. OpenVINO runs branches in integers; bodies
of loops stay float.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from compressor.quantization.onnx_branches import in_loop, not_taken
from compressor.quantization.openvino_ir import compiled_f32
from compressor.quantization.openvino_weights import RECURRENT_TYPES, WEIGHTED_TYPES, bodies

SIDES = ("then", "else")  # by a body's number
# Quantizes a body on feeds by the order of its parameters; says why layers in it stay float.
Quantize = Callable[[Any, Iterable[Any]], tuple[Any, dict[str, str]]]


def nested_ops(model: Any) -> Iterator[Any]:
    """Every op in topological order, those of a body before what it belongs to."""
    for op in model.get_ordered_ops():
        for body in bodies(op):
            yield from nested_ops(body)
        yield op


def layers_in(model: Any) -> list[str]:
    """Names of the layers with weights, those in bodies too."""
    kinds = WEIGHTED_TYPES | RECURRENT_TYPES
    return [op.get_friendly_name() for op in nested_ops(model) if op.get_type_name() in kinds]


def has_branches(model: Any) -> bool:
    """Whether there is an `If`, in whatever depth."""
    return any(op.get_type_name() == "If" for op in nested_ops(model))


def condition_ops(model: Any) -> set[str]:
    """Names of ops behind the last layers with weights that say which branch is taken.

    In integers they would clip and round what a branch is chosen by.
    """
    wanted = [op.input_value(0) for op in model.get_ordered_ops() if op.get_type_name() == "If"]
    found: set[str] = set()
    while wanted:
        op = wanted.pop().get_node()
        heavy = op.get_type_name() in WEIGHTED_TYPES | RECURRENT_TYPES
        if not heavy and op.get_friendly_name() not in found:
            found.add(op.get_friendly_name())
            wanted += op.input_values()
    return found


def quantize_branches(
    model: Any, made: Any, feeds: Iterable[Any], quantize: Quantize, threads: int
) -> dict[str, str]:
    """Put quantized branches into `made`, which is the float `model` with its own layers quantized.

    Args:
        model: an `openvino.Model`; it is left as it is.
        made: changed in place.
        feeds: calibration data, iterated over several times for each branch.
        quantize: does one branch.
        threads: of the engine that computes what goes into a branch.

    Returns:
        Layer in a body → why it stays float.
    """
    left: dict[str, str] = {}
    ops = {op.get_friendly_name(): op for op in made.get_ordered_ops()}
    for op in model.get_ordered_ops():
        name = op.get_friendly_name()
        for number, body in enumerate(bodies(op)):
            layers = layers_in(body)
            if not layers:
                continue
            if op.get_type_name() != "If":
                left |= dict.fromkeys(layers, in_loop(name))
                continue
            given = _BranchFeeds(model, name, number, feeds, threads)
            if not any(True for _ in given):
                left |= dict.fromkeys(layers, not_taken(name, SIDES[number]))
                continue
            inner, why = quantize(body.clone(), given)
            ops[name].set_function(number, inner)
            left |= why
    return left


class _BranchFeeds:
    """A fresh pass over what a branch is fed whenever NNCF asks, in its parameters' order."""

    def __init__(
        self, model: Any, name: str, number: int, feeds: Iterable[Any], threads: int
    ) -> None:
        import openvino as ov

        copy = model.clone()
        (op,) = (o for o in copy.get_ordered_ops() if o.get_friendly_name() == name)
        self._number, self._feeds = number, feeds
        parts = sorted(op.get_input_descriptions(number), key=lambda d: d.body_parameter_index)
        wanted = [op.input_value(0), *(op.input_value(part.input_index) for part in parts)]
        above = ov.Model(wanted, copy.get_parameters())
        self._compiled = compiled_f32(above, threads)

    def __iter__(self) -> Iterator[list[Any]]:
        for feeds in self._feeds:
            results = self._compiled(feeds).to_tuple()
            if bool(np.ravel(results[0])[0]) == (self._number == 0):
                yield [np.array(values) for values in results[1:]]
