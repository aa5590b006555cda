"""ONNX's LSTM, GRU and RNN in torch; weights stand in another order of gates there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

# Position of torch's gates among ONNX's: i o f c → i f g o, and z r h → r z n.
_ORDER = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
_DEFAULT = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}


def unusual(op: str, attributes: Mapping[str, Any], inputs: int) -> str:
    """Why this recurrent node cannot be trained; empty where it can."""
    given = [text(name) for name in attributes.get("activations", ())]
    usual = list(_DEFAULT[op]) * (2 if _direction(attributes) == "bidirectional" else 1)
    if given and given != usual:
        return f"its activations are {', '.join(given)}"
    if attributes.get("layout", 0) or "clip" in attributes or attributes.get("input_forget", 0):
        return "layout, clip or input_forget is set"
    return "it has peepholes" if op == "LSTM" and inputs > 7 else ""


def text(value: Any) -> str:
    """A string attribute, which onnx gives as bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)


def _direction(attributes: Mapping[str, Any]) -> str:
    return text(attributes.get("direction", "forward"))


def _gates(tensor: Tensor, op: str) -> Tensor:
    """The gates of one direction, along the first axis, in torch's order."""
    import torch

    order = _ORDER[op]
    parts = tensor.chunk(len(order))
    return torch.cat([parts[i] for i in order])


def _parameters(op: str, weight: Tensor, recurrent: Tensor, bias: Tensor | None) -> list[Tensor]:
    import torch

    made = []
    for d in range(weight.shape[0]):
        rows = weight.shape[1]
        both = torch.zeros(2 * rows) if bias is None else bias[d]
        made += [_gates(weight[d], op), _gates(recurrent[d], op)]
        made += [_gates(both[:rows], op), _gates(both[rows:], op)]
    return made


def _run(op: str) -> Callable[..., tuple[Tensor, ...]]:
    def run(
        a: Mapping[str, Any],
        x: Tensor,
        weight: Tensor,
        recurrent: Tensor,
        bias: Tensor | None = None,
        lengths: Tensor | None = None,
        hidden: Tensor | None = None,
        cell: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        import torch

        if lengths is not None and bool((lengths != x.shape[0]).any()):
            raise NotImplementedError(f"{op} with sequences of different lengths")
        directions, size = weight.shape[0], recurrent.shape[-1]
        zeros = torch.zeros(directions, x.shape[1], size)
        state = zeros if hidden is None else hidden
        reverse = _direction(a) == "reverse"
        x = x.flip(0) if reverse else x
        if op == "GRU" and not a.get("linear_before_reset", 0):
            y, last = _old_gru(x, weight, recurrent, bias, state)
            more: tuple[Tensor, ...] = ()
        else:
            flat = _parameters(op, weight, recurrent, bias)
            tail = (flat, True, 1, 0.0, False, directions == 2, False)
            if op == "LSTM":
                y, last, c = torch.lstm(x, (state, zeros if cell is None else cell), *tail)
                more = (c,)
            else:
                y, last = (torch.gru if op == "GRU" else torch.rnn_tanh)(x, state, *tail)
                more = ()
        y = y.flip(0) if reverse else y
        steps = y.reshape(*y.shape[:2], directions, size).transpose(1, 2)
        return (steps, last, *more)

    return run


def _old_gru(
    x: Tensor, weight: Tensor, recurrent: Tensor, bias: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The GRU that resets the state before it is multiplied (`linear_before_reset` = 0)."""
    import torch

    outs, lasts = [], []
    for d in range(weight.shape[0]):
        size = recurrent.shape[-1]
        both = torch.zeros(6 * size) if bias is None else bias[d]
        given = x @ weight[d].t() + both[: 3 * size]
        again, h, steps = both[3 * size :], state[d], []
        for t in range(len(x)) if d == 0 else reversed(range(len(x))):
            z, r, n = given[t].chunk(3, 1)
            wz, wr, wn = recurrent[d].chunk(3)
            bz, br, bn = again.chunk(3)
            z = torch.sigmoid(z + h @ wz.t() + bz)
            r = torch.sigmoid(r + h @ wr.t() + br)
            n = torch.tanh(n + (r * h) @ wn.t() + bn)
            h = (1 - z) * n + z * h
            steps.append(h)
        outs.append(torch.stack(steps if d == 0 else steps[::-1]))
        lasts.append(h)
    return torch.cat(outs, 2), torch.stack(lasts)


RECURRENT: dict[str, Callable[..., Any]] = {op: _run(op) for op in _ORDER}
