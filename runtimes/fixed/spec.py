"""`fixed.json` and `weights.npz`: a fixed-point model, down to the last bit.

A tensor holds integers v that stand for v * 2^-fraction. Each layer computes its exact result from
its inputs' integers, and brings that into its own format: rounded (RND: half up, floor(x + 1/2);
TRN: floor), then SATurated or WRAPped. Nothing in between is rounded.

    {"schema": 1,
     "inputs":  [{"name", "shape", "dtype", "format"}],           shapes without the batch
     "layers":  [{"name", "op", "inputs", "shape", "format", ...attributes}],   in order
     "outputs": [{"name", "tensor", "shape", "dtype"}]}

    op         attributes, besides the tensors it reads (`inputs`)
    dense      weight [out, in], bias [out]
    conv       weight [out, in / groups, *kernel], bias, stride, padding (zeros), groups
    relu
    max_pool   kernel, stride, padding (never the largest)
    avg_pool   kernel, stride, multiplier, multiplier_fraction: sum * multiplier * 2^-fraction
    add        two tensors of one shape
    flatten    row by row, channels first

`conv` and pools have one or two dimensions in space, tensors [channels, *space]. A layer's name is
that of its tensor. `weight` and `bias` say how the integers `<layer>.weight` and `<layer>.bias` of
`weights.npz` are to be read: `{"bits", "fraction"}`, where a weight's fraction is one number, or
one per output channel. A bias has the fraction of its channel's products (input plus weight), and a
layer's exact result the largest of these.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence, Tuple

import numpy as np

from runtimes.errors import BadArtifact

SCHEMA = 1
SPEC, WEIGHTS = "fixed.json", "weights.npz"
OPS = ("dense", "conv", "relu", "max_pool", "avg_pool", "add", "flatten")
Array = "np.ndarray[Any, Any]"


@dataclass(frozen=True)
class Format:
    """What a tensor's integers can be: `signed` + `integer` + `fraction` bits, the sign apart.

    `integer` may be negative: then leading bits after the point are known to be zero.
    """

    signed: bool
    integer: int
    fraction: int
    rounding: str = "RND"
    overflow: str = "SAT"

    @property
    def bits(self) -> int:
        """Width of a word."""
        return int(self.signed) + self.integer + self.fraction

    @property
    def low(self) -> int:
        """The smallest integer."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def high(self) -> int:
        """The largest integer."""
        return (1 << (self.bits - int(self.signed))) - 1

    def to_json(self) -> Dict[str, Any]:
        """As in `fixed.json`."""
        return {
            "signed": self.signed,
            "integer": self.integer,
            "fraction": self.fraction,
            "rounding": self.rounding,
            "overflow": self.overflow,
        }

    def __str__(self) -> str:
        kind = "fixed" if self.signed else "ufixed"
        return f"{kind}<{self.bits},{self.integer + int(self.signed)}>"


@dataclass(frozen=True)
class Input:
    """A tensor from outside: floats, brought into `format` at the door."""

    name: str
    shape: Tuple[int, ...]
    dtype: str
    format: Format


@dataclass(frozen=True)
class Layer:
    """One layer; `attributes` are those of its op."""

    name: str
    op: str
    inputs: Tuple[str, ...]
    shape: Tuple[int, ...]
    format: Format
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Output:
    """A result: the floats that a tensor's integers stand for."""

    name: str
    tensor: str
    shape: Tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Spec:
    """A whole model. `weights` holds int64 arrays by `<layer>.weight` and `<layer>.bias`."""

    inputs: Tuple[Input, ...]
    layers: Tuple[Layer, ...]
    outputs: Tuple[Output, ...]
    weights: Mapping[str, Any]

    @property
    def formats(self) -> Dict[str, Format]:
        """Format of every tensor by name."""
        found = {one.name: one.format for one in self.inputs}
        return {**found, **{layer.name: layer.format for layer in self.layers}}

    @property
    def shapes(self) -> Dict[str, Tuple[int, ...]]:
        """Shape of every tensor by name, without the batch."""
        found = {one.name: one.shape for one in self.inputs}
        return {**found, **{layer.name: layer.shape for layer in self.layers}}

    def fractions(self, layer: Layer) -> Any:
        """Fraction bits of a layer's products, one per output channel (dense and conv)."""
        wide = np.asarray(layer.attributes["weight"]["fraction"], np.int64)
        channels = self.weights[layer.name + ".weight"].shape[0]
        return np.broadcast_to(wide + self.formats[layer.inputs[0]].fraction, (channels,))

    def exact_fraction(self, layer: Layer) -> int:
        """Fraction bits of a layer's exact result."""
        if layer.op in ("dense", "conv"):
            return int(self.fractions(layer).max())
        most = max(self.formats[name].fraction for name in layer.inputs)
        return most + int(layer.attributes.get("multiplier_fraction", 0))


def write_spec(spec: Spec, folder: Path) -> None:
    """Write `fixed.json` and `weights.npz` into `folder`, with the same bytes every time."""
    data = {
        "schema": SCHEMA,
        "inputs": [
            {"name": i.name, "shape": list(i.shape), "dtype": i.dtype, "format": i.format.to_json()}
            for i in spec.inputs
        ],
        "layers": [
            {
                "name": layer.name,
                "op": layer.op,
                "inputs": list(layer.inputs),
                "shape": list(layer.shape),
                "format": layer.format.to_json(),
                **layer.attributes,
            }
            for layer in spec.layers
        ],
        "outputs": [
            {"name": o.name, "tensor": o.tensor, "shape": list(o.shape), "dtype": o.dtype}
            for o in spec.outputs
        ],
    }
    (folder / SPEC).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    with (folder / WEIGHTS).open("wb") as stream:
        np.savez(stream, **{name: _narrow(array) for name, array in spec.weights.items()})


def _narrow(array: Any) -> Any:
    kinds = (np.int8, np.int16, np.int32, np.int64)
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    fits = (k for k in kinds if np.iinfo(k).min <= low and high <= np.iinfo(k).max)
    return array.astype(next(fits))


def read_spec(folder: Path) -> Spec:
    """The model in `folder`; `BadArtifact` where a file is missing, malformed or of another schema.

    Every shape, format and reference between tensors is checked.
    """
    path = Path(folder) / SPEC
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA:
            raise BadArtifact(
                "fixed-point model of another schema",
                where=str(path),
                expected=str(SCHEMA),
                got=str(data["schema"]),
                fix="build it again with this version",
            )
        with np.load(Path(folder) / WEIGHTS, allow_pickle=False) as file:
            weights = {name: file[name].astype(np.int64) for name in file.files}
        spec = Spec(
            tuple(_input(row) for row in data["inputs"]),
            tuple(_layer(row) for row in data["layers"]),
            tuple(Output(r["name"], r["tensor"], tuple(r["shape"]), r["dtype"])
                  for r in data["outputs"]),
            weights,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise BadArtifact(f"not a fixed-point model: {error}", where=str(folder)) from error
    except (KeyError, TypeError, ValueError) as error:
        raise BadArtifact(f"malformed {SPEC}: {error!r}", where=str(path)) from error
    if problems := faults(spec):
        raise BadArtifact("inconsistent model: " + "; ".join(problems[:5]), where=str(path))
    return spec


def _format(row: Mapping[str, Any]) -> Format:
    return Format(
        bool(row["signed"]), int(row["integer"]), int(row["fraction"]),
        str(row["rounding"]), str(row["overflow"]),
    )  # fmt: skip


def _input(row: Mapping[str, Any]) -> Input:
    return Input(row["name"], tuple(row["shape"]), row["dtype"], _format(row["format"]))


def _layer(row: Mapping[str, Any]) -> Layer:
    known = {"name", "op", "inputs", "shape", "format"}
    rest = {key: value for key, value in row.items() if key not in known}
    return Layer(
        row["name"], row["op"], tuple(row["inputs"]), tuple(row["shape"]), _format(row["format"]),
        rest,
    )  # fmt: skip


def faults(spec: Spec) -> List[str]:
    """What is inconsistent in a specification, as sentences; empty where nothing is."""
    found: List[str] = []
    seen = {one.name for one in spec.inputs}
    for layer in spec.layers:
        found += [
            f"{layer.name} reads {n}, which is not there" for n in layer.inputs if n not in seen
        ]
        if layer.name in seen:
            found.append(f"two tensors are named {layer.name}")
        if layer.op not in OPS:
            found.append(f"{layer.name} has the unknown op {layer.op}")
        elif layer.op in ("dense", "conv"):
            found += _weight_faults(spec, layer)
        seen.add(layer.name)
    found += [f"output {o.name} reads {o.tensor}, which is not there" for o in spec.outputs
              if o.tensor not in seen]  # fmt: skip
    for name, form in spec.formats.items():
        if not 0 <= form.bits <= 62:
            found.append(f"{name} has {form.bits} bits")
        if form.rounding not in ("RND", "TRN") or form.overflow not in ("SAT", "WRAP"):
            found.append(f"{name} rounds by {form.rounding} and overflows by {form.overflow}")
    return found


def _weight_faults(spec: Spec, layer: Layer) -> List[str]:
    name, told = layer.name + ".weight", layer.attributes.get("weight", {})
    if name not in spec.weights or layer.name + ".bias" not in spec.weights:
        return [f"{layer.name} has no weights in {WEIGHTS}"]
    weight, bits = spec.weights[name], int(told.get("bits", 0))
    found = []
    if weight.size and (weight.min() < -(1 << bits >> 1) or weight.max() >= max(1, 1 << bits >> 1)):
        found.append(f"{name} holds more than {bits} bits")
    if spec.weights[layer.name + ".bias"].shape != weight.shape[:1]:
        found.append(f"{layer.name}.bias is not one number per channel")
    if weight.shape[0] != layer.shape[0]:
        found.append(f"{name} has {weight.shape[0]} channels, its tensor {layer.shape[0]}")
    if np.size(told.get("fraction", 0)) not in (1, weight.shape[0]):
        found.append(f"{name} has {np.size(told['fraction'])} fractions")
    return found


def zeros(spec: Spec) -> Tuple[int, int]:
    """(zero weights, all weights), biases apart."""
    matrices: Sequence[Any] = [w for name, w in spec.weights.items() if name.endswith(".weight")]
    total = sum(int(w.size) for w in matrices)
    return total - sum(int(np.count_nonzero(w)) for w in matrices), total
