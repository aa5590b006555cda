"""Where a compressed model first leaves the original: tensors of both, compared in their order.

Both models get their inner tensors as extra outputs. Names change where layers are fused, lowered
or given another input, so only tensors that exist in both under one name are compared; how many
these are is part of the answer. What the engine's own integer kernels add to that cannot be seen
from inside; the outputs of the untouched artifact, run by the engine as it ships, show it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compressor.quantization.calibration import batches
from compressor.result import Divergence, TensorGap
from exporters.base import Samples
from runtimes.base import Feeds, load_runtime
from runtimes.errors import Unsupported, UsageError
from runtimes.types import Artifact

SAMPLES = 32
THRESHOLD_DB = 20.0
EXACT_DB = 200.0  # beyond float's own precision
# From exact to 8 bits is no divergence: what a tensor loses counts from here.
_USUAL_DB = 45.0
_LARGEST = 2_000_000_000  # a session is opened from memory
_AT_ONCE = 64  # tensors fetched in one pass, so that memory does not grow with depth
_BARE = "/WithoutBiases"
_SKIPPED = frozenset({"Constant", "Parameter", "Result", "Convert", "FakeQuantize", "ShapeOf"})

Run = Callable[[Sequence[str], Feeds], Mapping[str, Any]]


@dataclass(frozen=True)
class Tapped:
    """A model whose inner tensors can be asked for.

    Attributes:
        tensors: name → the layer that makes it and that layer's op, in topological order.
        reads: name → the tensors it is computed from.
        shown: the names that may be compared.
        run: outputs for some of the names.
    """

    tensors: Mapping[str, tuple[str, str]]
    reads: Mapping[str, tuple[str, ...]]
    shown: frozenset[str]
    run: Run


def divergence(
    original: Artifact,
    candidate: Artifact,
    data: Samples,
    *,
    runtime: str = "onnxruntime",
    samples: int = SAMPLES,
    threshold_db: float = THRESHOLD_DB,
    threads: int = 1,
) -> Divergence:
    """The first tensor of `candidate` below `threshold_db`, and the largest drop on the way.

    Args:
        original: float artifact of the same target, or an ONNX one.
        candidate: the compressed artifact.
        data: both are run on its first samples.
        runtime: the engine; ONNX files are opened by either.
        samples: how many.
        threshold_db: SQNR under which a tensor counts as diverged.
        threads: of the engine.

    Raises:
        Unsupported: the formats differ, or no tensor exists in both.
    """
    open_model = _openvino if runtime == "openvino" else _onnx
    readable = {".onnx", ".xml"} if runtime == "openvino" else {".onnx"}
    for artifact in (original, candidate):
        if artifact.path.suffix not in readable:
            raise UsageError(
                f"{runtime} has no way to look inside it",
                where=str(artifact.root),
                expected=" or ".join(sorted(readable)),
                got=artifact.entry,
                fix="name the target that it was built for",
            )
    first, second = open_model(original, threads), open_model(candidate, threads)
    common = [name for name in first.tensors if name in first.shown & second.shown]
    feeds = list(batches(data, candidate.inputs, samples, candidate.facts.get("bounds")))
    ratios = _ratios(first.run, second.run, common, feeds)
    if not ratios:
        raise Unsupported("no tensor has the same name in both", [], where=str(candidate.root))
    below = [name for name in ratios if ratios[name] < threshold_db]
    before = _before(first, ratios)
    largest = max(ratios, key=lambda name: min(before[name], _USUAL_DB) - ratios[name])
    fell = min(before[largest], _USUAL_DB) > ratios[largest]

    def gap(name: str) -> TensorGap:
        return TensorGap(name, *first.tensors[name], _rounded(ratios[name]), _rounded(before[name]))

    return Divergence(
        compared=len(ratios),
        tensors=len(first.shown),
        samples=sum(len(next(iter(f.values()))) for f in feeds),
        threshold_db=threshold_db,
        first=gap(below[0]) if below else None,
        largest=gap(largest) if fell else None,
        outputs_db=_rounded(_as_shipped(original, candidate, feeds, runtime, threads)),
        tapped_db=_rounded(min((ratios[o.name] for o in original.outputs if o.name in ratios),
                               default=EXACT_DB)),
    )  # fmt: skip


def _rounded(value: float) -> float:
    return round(float(np.clip(value, -EXACT_DB, EXACT_DB)), 2)


def _as_shipped(
    original: Artifact, candidate: Artifact, feeds: Sequence[Feeds], runtime: str, threads: int
) -> float:
    """SQNR of the worst output when the engine runs both files untouched."""
    engine = load_runtime(runtime)
    with (
        engine.open_session(original, threads=threads) as a,
        engine.open_session(candidate, threads=threads) as b,
    ):
        names = [spec.name for spec in original.outputs]
        found = _ratios(lambda _, f: a.run(f), lambda _, f: b.run(f), names, feeds)
    return min(found.values(), default=EXACT_DB)


def _ratios(
    first: Run, second: Run, names: Sequence[str], feeds: Sequence[Feeds]
) -> dict[str, float]:
    """Signal to noise in dB of every tensor that is floating and of one shape in both."""
    found: dict[str, float] = {}
    for start in range(0, len(names), _AT_ONCE):
        some = names[start : start + _AT_ONCE]
        power = dict.fromkeys(some, (0.0, 0.0))
        for batch in feeds:
            want, got = first(some, batch), second(some, batch)
            for name in [n for n in some if n in power]:
                made = _powers(want[name], got[name])
                if made is None:
                    del power[name]
                else:
                    power[name] = (power[name][0] + made[0], power[name][1] + made[1])
        found.update((name, _decibels(*power[name])) for name in some if name in power)
    return found


def _powers(want: Any, got: Any) -> tuple[float, float] | None:
    """Sums of squares of the tensor and of the difference; None where they cannot be compared."""
    want, got = np.asarray(want), np.asarray(got)
    if want.shape != got.shape or want.dtype.kind != "f" or got.dtype.kind != "f":
        return None
    want, got = want.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(want)  # masks of minus infinity are the same in both
    gap = np.where(finite, got - np.where(finite, want, 0.0), 0.0)
    return float((np.where(finite, want, 0.0) ** 2).sum()), float((gap**2).sum())


def _decibels(signal: float, noise: float) -> float:
    if not np.isfinite(noise):
        return -EXACT_DB
    if noise <= 0:
        return EXACT_DB
    if signal <= 0:
        return EXACT_DB if noise < 1e-12 else -EXACT_DB
    return float(np.clip(10 * np.log10(signal / noise), -EXACT_DB, EXACT_DB))


def _before(model: Tapped, ratios: Mapping[str, float]) -> dict[str, float]:
    """Tensor → SQNR of the worst of what it is computed from, seen through what is not compared."""
    known: dict[str, float] = {}
    found: dict[str, float] = {}
    for name in model.tensors:
        above = min((known.get(r, EXACT_DB) for r in model.reads[name]), default=EXACT_DB)
        found[name] = above
        known[name] = ratios.get(name, above)
    return found


# ── ONNX ─────────────────────────────────────────────────────────────────────────────────────────


def _onnx(artifact: Artifact, threads: int) -> Tapped:
    import onnx

    from exporters._check import onnx_session
    from exporters._onnx_graph import load_model, reads

    if artifact.size_bytes > _LARGEST:
        raise Unsupported("models above 2 GB are not compared", [], where=str(artifact.root))
    model = load_model(artifact.path)
    names: dict[str, tuple[str, str]] = {}
    inputs: dict[str, tuple[str, ...]] = {}
    for node in model.graph.node:
        for name in filter(None, node.output):
            inputs[name] = tuple(reads(node))
            names[name] = (node.name or name, node.op_type)
    _through_pairs(model.graph.node, names)
    own = {value.name for value in model.graph.output}

    def run(wanted: Sequence[str], feeds: Feeds) -> Mapping[str, Any]:
        key = tuple(wanted)
        if key not in sessions:
            sessions.clear()
            copy = onnx.ModelProto()
            copy.CopyFrom(model)
            more = [n for n in wanted if n not in own]
            copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in more)
            sessions[key] = onnx_session(copy.SerializeToString(), threads, optimize=False)
        return dict(zip(wanted, sessions[key].run(list(wanted), dict(feeds)), strict=True))

    sessions: dict[tuple[str, ...], Any] = {}
    return Tapped(names, inputs, frozenset(names), run)


def _through_pairs(nodes: Iterable[Any], names: dict[str, tuple[str, str]]) -> None:
    """A tensor that leaves a DequantizeLinear was made by the layer before the pair."""
    makers = {name: node for node in nodes for name in node.output}
    for name, maker in makers.items():
        node = maker
        while node is not None and node.op_type in {"DequantizeLinear", "QuantizeLinear"}:
            node = makers.get(node.input[0])
        if node is not None and node is not maker and name in names:
            names[name] = (node.name or node.output[0], node.op_type)


# ── OpenVINO ─────────────────────────────────────────────────────────────────────────────────────


def _openvino(artifact: Artifact, threads: int) -> Tapped:
    from compressor.quantization.openvino_ir import compiled_f32, read_ir

    model = read_ir(artifact.path)
    names: dict[str, tuple[str, str]] = {}
    inputs: dict[str, tuple[str, ...]] = {}
    shown = set()
    for op in model.get_ordered_ops():
        name, kind = op.get_friendly_name(), op.get_type_name()
        inputs[name] = tuple(v.get_node().get_friendly_name() for v in op.input_values())
        names[name] = (name.removesuffix(_BARE), kind)
        if kind not in _SKIPPED and op.output(0).get_element_type().is_real():
            shown.add(name)
    # A layer and its bias are two nodes: corrections of what rounding lost go into the bias.
    for name in [n for n in names if n.endswith(_BARE) and n.removesuffix(_BARE) in names]:
        shown.discard(name)
        names[name.removesuffix(_BARE)] = names[name]
    # An output is known by the model's own name for it, whatever layer makes it.
    own = [spec.name for spec in artifact.outputs]
    for name, result in zip(own, model.get_results(), strict=True):
        maker = result.input_value(0).get_node().get_friendly_name()
        shown.discard(maker)
        names[name], inputs[name] = names[maker], inputs[maker] if name == maker else (maker,)
        shown.add(name)
    kept: dict[tuple[str, ...], Any] = {}

    def run(wanted: Sequence[str], feeds: Feeds) -> Mapping[str, Any]:
        key = tuple(wanted)
        inner = [name for name in wanted if name not in own]
        if key not in kept:
            kept.clear()
            clone = model.clone()
            ops = {op.get_friendly_name(): op for op in clone.get_ordered_ops()}
            clone.add_outputs([ops[name].output(0) for name in inner])
            kept[key] = compiled_f32(clone, threads)
        values = kept[key](dict(feeds)).to_tuple()
        found = dict(zip([*own, *inner], values, strict=True))
        return {name: np.array(found[name]) for name in wanted}

    return Tapped(names, inputs, frozenset(shown), run)
