"""The drop-in promise: an artifact takes the source's place in the user's own code.

Names, order, dtypes, named free dimensions and metadata are the source's. Every exporter and every
quantization pass ends with `require_drop_in`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from runtimes.errors import BuildFailed
from runtimes.types import Artifact, TensorSpec


def drop_in_differences(
    source: Artifact, artifact: Artifact, fixed: Mapping[str, int] | None = None
) -> list[str]:
    """Every way in which `artifact` is no drop-in for `source`; empty where it is one.

    `fixed` names free dimensions that the user asked to make static, with their size. Specs are
    compared as recorded, and for ONNX files also as the file itself declares them.
    """
    found = _spec_differences(source, artifact.inputs, artifact.outputs, fixed or {}, "")
    want, got = source.facts.get("metadata") or {}, artifact.facts.get("metadata") or {}
    found += _metadata_differences(want, got, "")
    if artifact.path.suffix == ".onnx":
        found += _file_differences(source, artifact, fixed or {})
    return found


def require_drop_in(
    source: Artifact, artifact: Artifact, fixed: Mapping[str, int] | None = None
) -> Artifact:
    """`artifact` itself; raises `BuildFailed` listing the differences where there are any."""
    found = drop_in_differences(source, artifact, fixed)
    if found:
        raise BuildFailed(
            "the result is no drop-in for its source: " + "; ".join(found), where=artifact.format
        )
    return artifact


def _file_differences(source: Artifact, artifact: Artifact, fixed: Mapping[str, int]) -> list[str]:
    import onnx

    from exporters._onnx_graph import specs

    model = onnx.load(str(artifact.path), load_external_data=False)
    inputs, outputs = specs(model)
    found = _spec_differences(source, inputs, outputs, fixed, "in the file, ")
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    return found + _metadata_differences(
        source.facts.get("metadata") or {}, metadata, "in the file, "
    )


def _spec_differences(
    source: Artifact,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    fixed: Mapping[str, int],
    prefix: str,
) -> list[str]:
    found = []
    pairs = (("input", source.inputs, inputs), ("output", source.outputs, outputs))
    for kind, wanted, given in pairs:
        want, got = [s.name for s in wanted], [s.name for s in given]
        if want != got:
            found.append(f"{prefix}{kind} names {got} instead of {want}")
            continue
        for one, other in zip(wanted, given, strict=True):
            found += [f"{prefix}{kind} {text}" for text in _one_difference(one, other, fixed)]
    return found


def _one_difference(want: TensorSpec, got: TensorSpec, fixed: Mapping[str, int]) -> list[str]:
    found = []
    if want.dtype != got.dtype:
        found.append(f"{want.name} is {got.dtype} instead of {want.dtype}")
    shape = tuple(fixed.get(d, d) if isinstance(d, str) else d for d in want.shape)
    if not _same_shape(shape, got.shape, bool(fixed)):
        found.append(f"{want.name} has shape {list(got.shape)} instead of {list(shape)}")
    return found


def _same_shape(want: Sequence[int | str], got: Sequence[int | str], may_narrow: bool) -> bool:
    if len(want) != len(got):
        return False
    # With some inputs made static, a free output dimension may have become a number too.
    return all(
        w == g or (may_narrow and isinstance(w, str) and isinstance(g, int))
        for w, g in zip(want, got, strict=True)
    )


def _metadata_differences(
    want: Mapping[str, str], got: Mapping[str, str], prefix: str
) -> list[str]:
    lost = [key for key in want if want[key] != got.get(key)]
    return [f"{prefix}metadata {', '.join(sorted(lost))} lost or changed"] if lost else []
