"""Which nodes of a graph stay in float32 when the rest computes in half, and why.

By range first: float16 ends at 65504, and what is smaller than 6e-5 loses digits there. Then by
loss: while the outputs are further from the float32 model's than allowed, the nodes that add most
noise leave, with those that make their inputs (Micikevicius et al., "Mixed Precision Training",
2018, keep reductions in float32 for the same reasons).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from compressor.quantization.half_typed import (
    HEAVY,
    PAIRS,
    Typing,
    computes,
    emulated,
    settle,
    why_not,
)
from compressor.quantization.onnx_index import Index
from exporters._check import onnx_session, run_onnx
from runtimes.base import Feeds

LARGEST, SMALLEST = 65504.0, 2.0**-14  # of float16; below the second it has fewer digits
# Where nothing was observed, operators that reach far beyond their inputs stay in float32.
FAR = frozenset(
    {"CumSum", "Exp", "GroupNormalization", "InstanceNormalization", "LayerNormalization",
     "LogSoftmax", "Pow", "ReduceL2", "ReduceLogSumExp", "ReduceProd", "ReduceSum",
     "ReduceSumSquare", "Softmax"}
)  # fmt: skip
_SQUARING = frozenset({"GroupNormalization", "InstanceNormalization", "LayerNormalization",
                       "ReduceL2"})  # fmt: skip
ROUNDS = 8


class Observer:
    """Runs a model on the same few samples as often as needed, showing tensors inside it."""

    def __init__(self, feeds: Sequence[Feeds], threads: int) -> None:
        self.feeds, self.threads = feeds, threads

    def show(self, model: Any, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The tensors `names` and the outputs, batch by batch."""
        import onnx

        copy = type(model)()
        copy.CopyFrom(model)
        present = {value.name for value in copy.graph.output}
        for name in names:
            if name not in present:
                info = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
                copy.graph.output.append(info)
        session = onnx_session(copy.SerializeToString(), self.threads, optimize=False)
        for feeds in self.feeds:
            yield run_onnx(session, feeds)

    def peaks(self, model: Any, names: Sequence[str]) -> dict[str, float]:
        """Largest finite magnitude of each tensor."""
        found: dict[str, float] = {}
        for values in self.show(model, names):
            for name in names:
                sizes = np.abs(values[name][np.isfinite(values[name])])
                found[name] = max(found.get(name, 0.0), float(sizes.max(initial=0.0)))
        return found

    def noise(self, model: Any, changed: Any, names: Sequence[str]) -> dict[str, float]:
        """Noise over signal of each tensor of `changed`, and of the outputs; infinite where NaN."""
        power: dict[str, list[float]] = {}
        shown = zip(self.show(model, names), self.show(changed, names), strict=True)
        for want, got in shown:
            for name, value in want.items():
                if value.dtype.kind != "f" or name not in got:
                    continue
                finite = np.isfinite(value)
                error = np.where(finite, got[name].astype(np.float64) - value, 0.0)
                bad = not np.isfinite(error).all()
                parts = power.setdefault(name, [0.0, 0.0])
                parts[0] += np.inf if bad else float((error**2).sum())
                parts[1] += float((value[finite].astype(np.float64) ** 2).sum())
        return {name: noise / max(signal, 1e-30) for name, (noise, signal) in power.items()}


def by_rule(
    graph: Index, model: Any, dtype: str, user: Mapping[str, str], peaks: Mapping[str, float] | None
) -> dict[str, str]:
    """Node → why it stays in float32: the user's wish, its type, or its range."""
    typing = Typing(model, dtype)
    reasons = {}
    for node in graph.graph.node:
        if not computes(graph, node):
            continue
        why = user.get(node.name) or why_not(graph, node, typing)
        if not why and dtype == "float16":
            why = _beyond(graph, node, peaks)
        if why:
            reasons[node.name] = why
    return {**reasons, **_with_their_scales(graph, reasons)}


def _with_their_scales(graph: Index, reasons: Mapping[str, str]) -> dict[str, str]:
    """Products whose operand is dequantized in float32: a cast in between would undo their INT8."""
    found: dict[str, str] = {}
    for node in graph.graph.node:
        makers = [graph.producers.get(name) for name in node.input] if node.op_type in HEAVY else []
        for maker in makers:
            if maker is not None and maker.op_type in PAIRS and maker.name in reasons:
                found.setdefault(node.name, reasons[maker.name])
    return found


def _beyond(graph: Index, node: Any, peaks: Mapping[str, float] | None) -> str:
    """Why float16 does not hold what `node` reads and gives."""
    for name in node.input:
        if name in graph.weights and name in graph.floats and (why := _constant(graph, name)):
            return why
    if peaks is None:
        return f"{node.op_type} may leave float16's range, and no data shows it" * (
            node.op_type in FAR
        )
    tensors = [n for n in (*node.input, *node.output) if n in peaks]
    for name in tensors:
        peak = peaks[name] ** 2 if node.op_type in _SQUARING and name in node.input else peaks[name]
        if peak > LARGEST:
            return f"{name} reaches {peaks[name]:.3g}, beyond float16" + (
                " when squared" if peak != peaks[name] else ""
            )
    for name in node.output:
        if 0 < peaks.get(name, 1.0) < SMALLEST:
            return f"{name} stays below {peaks[name]:.2g}, where float16 has fewer digits"
    return ""


def _constant(graph: Index, name: str) -> str:
    import onnx

    values = np.abs(onnx.numpy_helper.to_array(graph.weights[name]).astype(np.float64))
    values = values[np.isfinite(values)]
    peak = float(values.max(initial=0.0))
    if peak > LARGEST:
        return f"the constant {name} reaches {peak:.3g}, beyond float16"
    if 0 < peak < SMALLEST:
        return f"the constant {name} is below {SMALLEST:.2g}, where float16 has fewer digits"
    return ""


def by_loss(
    model: Any,
    graph: Index,
    reasons: dict[str, str],
    dtype: str,
    least_db: float,
    observer: Observer,
) -> tuple[set[str], float]:
    """The nodes that compute in half, and the outputs' SQNR in dB; adds to `reasons` as needed."""
    every = {node.name for node in graph.graph.node if computes(graph, node)}
    outputs = [value.name for value in model.graph.output]
    for _ in range(ROUNDS):
        half = settle(graph, every - set(reasons))
        names = [n for node in graph.graph.node if node.name in half for n in node.output
                 if n in graph.floats]  # fmt: skip
        noise = observer.noise(model, emulated(model, half, dtype), names)
        reached = decibels(max((noise[name] for name in outputs if name in noise), default=0.0))
        if reached >= least_db or not half:
            return half, reached
        for name in _noisiest(graph, half, noise):
            reasons[name] = f"in {dtype} it cost most: outputs came to {reached:.0f} dB"
    half = settle(graph, every - set(reasons))
    noise = observer.noise(model, emulated(model, half, dtype), [])
    return half, decibels(max((noise[name] for name in outputs if name in noise), default=0.0))


def decibels(noise: float) -> float:
    """SQNR in dB of a ratio of noise to signal."""
    return float(-10 * np.log10(max(noise, 1e-20))) if np.isfinite(noise) else -np.inf


def _noisiest(graph: Index, half: set[str], noise: Mapping[str, float]) -> set[str]:
    """The tenth of the nodes that adds most noise to its inputs, and the makers of those."""
    added = {}
    for node in graph.graph.node:
        if node.name in half:
            after = max((noise.get(name, 0.0) for name in node.output), default=0.0)
            before = max((noise.get(name, 0.0) for name in node.input), default=0.0)
            added[node.name] = after if not np.isfinite(after) else after - before
    worst = sorted(added, key=lambda name: (-added[name], name))[: max(1, len(added) // 10)]
    chosen = set(worst)
    for node in graph.graph.node:
        if node.name in worst:
            makers = (graph.producers.get(name) for name in node.input)
            chosen |= {maker.name for maker in makers if maker is not None and maker.name in half}
    return chosen
