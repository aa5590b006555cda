"""Remove whole channels, so that the model is physically smaller, and say what is left.

Which channels go together is read off a torch module (torch-pruning's dependency graph, proved by
running; attention heads and the embedding's width too) or off an ONNX graph itself; which go is a
matter of saliency, how many from where of the allocation, how many in all of `keep`: counted, or
as time measured on the target. A module's batch-norm statistics are re-estimated on
data afterwards; `recover` then trains what is left. An ONNX graph is repaired without training:
least squares on unlabelled data, layer by layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from compressor.pruning.budget import LATENCY, check_widths, parse_budget
from compressor.pruning.plan import Kind, Scope
from compressor.pruning.source import patterned
from compressor.pruning.source import refusals as source_refusals
from compressor.pruning.source import tools as source_tools
from exporters.base import Context, Env, Refusal
from runtimes.errors import Unsupported
from runtimes.types import Artifact

REV = 5
ACCEPTS = frozenset({"module", "onnx"})
PRODUCES = "same"
NEEDS: frozenset[str] = frozenset()
USES = frozenset({"training", "calibration"})
_MODULE_TOOLS = ("torch", "torch-pruning", "safetensors")


@dataclass(frozen=True)
class Options:
    """What stays and how it is chosen.

    Attributes:
        keep: what stays, exactly one of `macs`, `params`, `bytes` or `latency`: a fraction of the
            model given to this step ("40%" or 0.4) or an absolute number (30000000 or "30M"; "2ms"
            of latency, one call at the smallest batch).
        on: the target that `latency` is measured on, in a shared list: as its float model. In a
            target's own list, models are timed as the rest of that list makes them.
        saliency: `taylor` (at the channels' gates) and `hessian` (of the weights, Optimal Brain
            Damage) expand a module's own outputs; `reconstruction` is what the outputs of an ONNX
            graph lose once the remaining weights make up for the channel; all need data, no labels.
            `l2` and `lamp` look at weights alone; `random` is a control. `auto` is taylor or
            reconstruction where there is data, else l2.
        scope: `global` ranks the channels of all layers together; `uniform` keeps about the same
            fraction of every layer; `auto` is uniform for l2 and random, else global.
        floor: the least fraction of its channels that any layer keeps.
        multiple: widths are rounded to it; 0 means the targets' own, or what timing shows to be
            enough.
        samples: how many samples saliency is estimated on; batch norms see four times as many.
            An ONNX graph is repaired on these too.
        repair: re-solve the remaining weights of an ONNX graph on data; a module has `recover`.
    """

    keep: Mapping[str, Any] = field(default_factory=lambda: {"macs": "50%"})
    on: str = field(default="", metadata={"target": True})
    saliency: Kind = "auto"
    scope: Scope = "auto"
    floor: float = 0.15
    multiple: int = 0
    samples: int = 1024
    repair: bool = True

    def __post_init__(self) -> None:
        parse_budget(self.keep)
        check_widths(self, "prune_channels")


def tools() -> dict[str, str]:
    """Versions of what reads, runs and writes the models."""
    return source_tools(_MODULE_TOOLS)


def refusals(source: Artifact, options: Options, context: Context) -> list[Refusal]:
    """Sources that hold no channels to remove, options for other sources, what is not installed.

    Layers are looked at in `run`, once the model is there.
    """
    found = source_refusals(source, "channels of {} cannot be removed", _MODULE_TOOLS)
    found += _misfits(source, options)
    if not (options.on or context.target or _counted(options)):
        why = "latency is measured on a target, and a shared list has none"
        found.append(
            Refusal("keep.latency", why, "set `on: <target>`, or move the step into one's")
        )
    return found


def _counted(options: Options) -> bool:
    return LATENCY not in options.keep


def _misfits(source: Artifact, options: Options) -> list[Refusal]:
    """Options that are for the other kind of source."""
    kind, found = options.saliency, []
    if source.format == "module" and kind == "reconstruction":
        fix = "use taylor, which has the module's gradients"
        found.append(Refusal("saliency", "reconstruction is for ONNX graphs", fix))
    if source.format == "onnx" and kind in ("taylor", "hessian"):
        why = f"{kind} needs gradients, which an ONNX graph has none of"
        found.append(Refusal("saliency", why, "use reconstruction, or give the torch module"))
    return found


def run(source: Artifact, options: Options, env: Env) -> Artifact:
    """Prune the module or graph in `source` to the budget.

    Raises `Unsupported` naming every layer and reason where nothing can be removed, the module
    cannot be traced, its weights have a pattern, or an option is for another kind of source;
    `UsageError` where the budget cannot be met or a `keep` matches nothing.
    """
    if found := patterned(source, "put prune_channels before prune_pattern"):
        raise Unsupported("its zeros would be lost", found, where="prune_channels")
    if found := _misfits(source, options):
        raise Unsupported("options are for another source", found, where="prune_channels")
    if source.format == "onnx":
        from compressor.pruning.onnx_pass import run_onnx

        return run_onnx(source, options, env)
    from compressor.pruning.module_pass import run_module

    return run_module(source, options, env)
