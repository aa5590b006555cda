"""Weights of an ONNX graph in 8 or 4 bits, in the form engines fold (see `quantize_weights`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from compressor.quantization.calibration import batches, calibrate
from compressor.quantization.keep import kept
from compressor.quantization.onnx_find import Weight, find_weights, hoist_weights
from compressor.quantization.onnx_index import Index, index
from compressor.quantization.onnx_pass import require_smaller, scheme_of
from compressor.quantization.onnx_static import correct_biases, mean_axes, named_nodes
from compressor.quantization.onnx_storage_write import (
    StorageWriter,
    blockable,
    computable,
    dequantized,
)
from compressor.quantization.onnx_weights import noise_share, quantize_int4, quantize_int8
from compressor.quantization.reconstruction import round_with
from compressor.quantization.storage import (
    Rounded,
    Tensor,
    asked_bits,
    asked_block,
    assigned,
    check_widths,
    halves,
    keep_in_8_bits,
    unknown_names,
)
from exporters._drop_in import require_drop_in
from exporters._onnx_graph import OPSET, load_model, opset_of, save_model
from exporters._onnx_opset import upgrade_opset
from exporters.base import Context, Env
from runtimes.errors import Refusal
from runtimes.types import Artifact

__all__ = ["Weight", "find_weights", "refusals", "run", "storage_note"]

COMPUTED_BLOCK = 32
_EXPLICIT_BLOCKS = (128, 64, 32, 16)  # the largest that divides; NVIDIA's quantizer takes the first
# Rounds weights to 4 bits: by tensor name, the integers with their noise.
# The last argument holds the size of blocks for those that have scales by block.
Rounding = Callable[[Any, Index, Sequence[Weight], Mapping[str, int]], Mapping[str, Rounded]]


def refusals(source: Artifact, options: Any, context: Context) -> list[Refusal]:
    """Reasons why an ONNX artifact's weights cannot be stored in `options.bits`."""
    check_widths(options.assign, "quantize_weights")
    model = load_model(source.path)
    stay = set(kept(named_nodes(model, nested=True), context.keep))
    hoist_weights(model, options.least)
    weights = _chosen(index(model), options, stay)
    if beside_floats(options, context):
        return _without_matrices(index(model), weights, options)
    if not weights:
        kind = "float weight" if options.bits == 8 else "float or INT8 weight"
        why = f"no {kind} of {options.least} values or more outside what `keep` names"
        return [Refusal("model", why, "ship it as it is")]
    four = any(_bits(weight, options) == 4 for weight in weights)
    if four and opset_of(upgrade_opset(model)[0]) < OPSET:
        why = (
            f"operator set {opset_of(model)} has no INT4 and the model cannot be raised to {OPSET}"
        )
        return [Refusal("model", why, f"export with operator set {OPSET}, or use bits: 8")]
    return []


def beside_floats(options: Any, context: Context) -> bool:
    """Are integers asked for that the engine multiplies with floats, as TensorRT does INT4?"""
    return options.form == "computed" and scheme_of(context).explicit


def _without_matrices(graph: Index, weights: Sequence[Weight], options: Any) -> list[Refusal]:
    """Why TensorRT would multiply with no INT4 weight of these."""
    if options.bits != 4 and not options.assign:
        why = "TensorRT multiplies floats with integers of 4 bits, and 8 are asked for"
        return [Refusal("bits", why, "bits: 4, or quantize_static for INT8")]
    if any(_explicit_block(weight, graph, options) for weight in weights):
        return []
    why = "no MatMul or Gemm has a matrix whose columns divide into blocks"
    return [Refusal("model", why, "blocks of 16 at least; or quantize_static for INT8")]


def _explicit_block(weight: Weight, graph: Index, options: Any) -> int:
    """Columns that share a scale where TensorRT multiplies with the weight; 0: it cannot."""
    asked = asked_block(options, weight_names(weight))
    found = (asked,) if asked else _EXPLICIT_BLOCKS
    columns = weight.values.size // weight.values.shape[weight.axis]
    fits = (b for b in found if columns > b and computable(weight, graph, b))
    return next(fits, 0) if _bits(weight, options) == 4 else 0


def _bits(weight: Weight, options: Any) -> int:
    return asked_bits(options, weight_names(weight), integer=weight.dequantize is not None)


def weight_names(weight: Weight) -> list[str]:
    """The tensor's name and those of the nodes that compute with it."""
    return [weight.tensor.name, weight.node.name, *(use.node.name for use in weight.uses)]


def _chosen(graph: Index, options: Any, stay: set[str]) -> list[Weight]:
    found = find_weights(graph, options.least, stay)
    return [weight for weight in found if _bits(weight, options) != 32]


def round_to_nearest(
    model: Any, graph: Index, weights: Sequence[Weight], blocks: Mapping[str, int]
) -> dict[str, Rounded]:
    """Integers of 4 bits at the scale of least squared error; needs no data."""
    del model, graph
    return {w.tensor.name: _nearest(w, blocks.get(w.tensor.name, 0)) for w in weights}


def _nearest(weight: Weight, block: int) -> Rounded:
    values, axis = weight.values, weight.axis
    if block:
        return round_with(values, axis, None, block)
    integers, scale = quantize_int4(values, axis)
    return Rounded(integers, scale, 4, noise_share(values, integers, scale, axis))


def run(
    source: Artifact, options: Any, env: Env, rounding: Rounding = round_to_nearest
) -> Artifact:
    """Store the weights, correct biases where data is given, and write the model.

    `rounding` makes 4 bits of weights.
    """
    model = load_model(source.path)
    stay = set(kept(named_nodes(model, nested=True), env.context.keep))
    hoist_weights(model, options.least)
    if any(_bits(w, options) == 4 for w in _chosen(index(model), options, stay)):
        model, _ = upgrade_opset(model)
    store = _Store(model, stay, options, rounding, explicit=beside_floats(options, env.context))
    data = env.data.get("calibration")
    if data is not None and options.bias_correction:
        feeds = lambda: batches(data, source.inputs, options.samples)  # noqa: E731
        store.correct(
            lambda axes: calibrate(model, [], axes, feeds, threads=env.context.threads).means
        )
    store.write()
    path = env.work / source.entry
    save_model(model, path)
    facts = {
        **source.facts,
        "storage": store.facts(),
        "notes": [*source.facts.get("notes", []), store.note(), *store.unknown()],
    }
    artifact = Artifact.write(
        env.work, source.format, source.entry, source.inputs, source.outputs, facts
    )
    require_smaller(source, artifact)
    return require_drop_in(source, artifact)


class _Store:
    """The rounding of every chosen weight, and how it is written into the graph."""

    def __init__(
        self,
        model: Any,
        stay: set[str],
        options: Any,
        rounding: Rounding,
        *,
        explicit: bool = False,
    ) -> None:
        self.model, self.options, self.explicit = model, options, explicit
        self.graph = index(model)
        found = find_weights(self.graph, options.least, stay)
        self.known = [name for weight in found for name in weight_names(weight)]
        bits = {w.tensor.name: _bits(w, options) for w in found}
        self.weights = [w for w in found if bits[w.tensor.name] != 32]
        if explicit:
            self.weights = [w for w in found if _explicit_block(w, self.graph, options)]
        four = [w for w in self.weights if bits[w.tensor.name] == 4]
        self.computed: set[str] = set()
        blocks = self._blocks()
        made = dict(rounding(model, self.graph, four, blocks)) if four else {}
        free = [w for w in four if assigned(options.assign, weight_names(w)) is None]
        noise = [Tensor(w.tensor.name, w.values.size, made[w.tensor.name].noise) for w in free]
        for name in keep_in_8_bits(noise, options.share):
            del made[name]
        if explicit:  # which multiplies floats with 4 bits alone
            self.weights = [w for w in self.weights if w.tensor.name in made]
        for weight in self.weights:
            if weight.tensor.name not in made:
                name = weight.tensor.name
                block = blocks.get(name, 0) if name in self.computed else 0
                made[name] = _wide(weight, bits[name], block)
        self.made = made

    def _blocks(self) -> dict[str, int]:
        """Size of blocks by weight, for those that have them; notes which are computed with."""
        found = {}
        for weight in self.weights:
            name, block = weight.tensor.name, asked_block(self.options, weight_names(weight))
            size = block or COMPUTED_BLOCK
            if self.explicit:
                self.computed.add(name)
                found[name] = _explicit_block(weight, self.graph, self.options)
            elif self.options.form == "computed" and computable(weight, self.graph, size):
                self.computed.add(name)
                found[name] = size
            elif blockable(weight, block):
                found[name] = block
        return found

    def correct(self, means_of: Any) -> None:
        """Correct the float biases of convolutions (and float Gemms) for the new rounding."""
        errors: dict[str, Callable[[], Any]] = {}
        for weight in self.weights:
            stored = self.made[weight.tensor.name]
            readers = [n for n in self.graph.graph.node if n.name and self._reads(n, weight)]
            error = partial(_error, weight, stored)
            errors |= {node.name: error for node in readers}
        axes = mean_axes(self.graph, errors)
        if axes:
            correct_biases(self.model, self.graph, errors, means_of(axes))

    def _reads(self, node: Any, weight: Weight) -> bool:
        name = weight.tensor.name if weight.dequantize is None else weight.dequantize.output[0]
        return node.op_type in {"Conv", "Gemm"} and node.input[1] == name

    def write(self) -> None:
        """Put the integers into the graph and drop what they replace."""
        writer = StorageWriter(self.model, self.graph, explicit=self.explicit)
        writer.write(self.weights, self.made, self.computed)

    def facts(self) -> dict[str, Any]:
        """Bits by weight, and the share of values stored in 4."""
        four = [w for w in self.weights if self.made[w.tensor.name].bits == 4]
        total = sum(w.values.size for w in self.weights)
        found = {
            "bits": {w.tensor.name: self.made[w.tensor.name].bits for w in self.weights},
            "share_4_bits": round(sum(w.values.size for w in four) / total, 4),
        }
        return {**found, "computed": sorted(self.computed)} if self.computed else found

    def note(self) -> str:
        """One sentence for the user."""
        return storage_note(
            {w.tensor.name: self.made[w.tensor.name].bits for w in self.weights},
            self.facts()["share_4_bits"],
        )

    def unknown(self) -> list[str]:
        """A sentence for each name in `assign` that nothing goes by."""
        return unknown_names(self.options, self.known)


def _error(weight: Weight, stored: Rounded) -> Any:
    return weight.values - dequantized(stored, weight.axis)


def _wide(weight: Weight, bits: int, block: int) -> Rounded:
    """In 16 bits, or in 8 (those meant for 4 that hurt most there)."""
    if bits != 16 and block:
        return round_with(weight.values, weight.axis, None, block, bits=8)
    if bits == 16:
        return halves(weight.values)
    return Rounded(*quantize_int8(weight.values, weight.axis), 8)


def storage_note(bits: dict[str, int], share: float) -> str:
    """What was stored how, in one sentence."""
    eight = [name for name, width in bits.items() if width == 8]
    half = sum(width == 16 for width in bits.values())
    tail = f"; {half} in half precision" if half else ""
    if len(eight) + half == len(bits):
        return f"{len(eight)} weights are stored in 8 bits{tail}"
    text = f"{share:.1%} of the weights are stored in 4 bits"
    if not eight:
        return text + tail
    shown = ", ".join(eight[:4]) + (f" and {len(eight) - 4} more" if len(eight) > 4 else "")
    return f"{text}; 8 bits where rounding to 4 costs most: {shown}{tail}"
