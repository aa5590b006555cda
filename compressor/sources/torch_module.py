"""A torch model → the first artifact: build it, load its weights, run it to know its outputs."""

from __future__ import annotations

import copy
import difflib
import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.sources.torch_probe import declared_inputs, in_call_order, probe
from exporters._onnx_dims import fix_specs, fixed_sizes
from runtimes.errors import MissingTool, UsageError
from runtimes.types import Artifact, TensorSpec

if TYPE_CHECKING:
    from torch import nn

_PREFIXES = ("module.", "_orig_mod.")
_NESTED = ("state_dict", "model_state_dict", "model", "net", "weights")


def need_torch(where: str) -> None:
    """Raise `MissingTool` where torch is not installed."""
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise MissingTool(
            "torch is not installed", where=where, fix="pip install edge-compressor[torch]"
        )


def build_module(
    factory: Callable[[], Any], weights: Path | None, where: str
) -> tuple[nn.Module, list[str]]:
    """The user's module in eval mode with its weights, and notes for the user.

    The factory runs from a fixed seed, so that a module without weights is the same every time.
    """
    import torch

    from compressor.modules import build

    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = build(factory, where)
    if weights is None:
        return module, ["no weights were given: the factory's own are used"]
    state, notes = read_state(weights)
    _load_state(module, state, weights)
    return module.eval(), notes


def read_state(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The state dict in a safetensors or torch file, and notes on what was unwrapped.

    Nothing is unpickled but tensors. Raises `UsageError` for any other content.
    """
    from compressor.sources.kinds import missing_file

    if not path.is_file():
        raise missing_file(path, "weights")
    state = _read_safetensors(path) if _is_safetensors(path) else _read_checkpoint(path)
    notes = []
    for key in _NESTED:
        inner = state.get(key) if isinstance(state, Mapping) else None
        if isinstance(inner, Mapping):
            state = inner
            notes.append(f"{path.name}: the weights were read from its entry {key!r}")
    tensors = _only_tensors(state, path)
    for prefix in _PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): t for name, t in tensors.items()}
            notes.append(f"{path.name}: the prefix {prefix!r} was stripped from all names")
    return tensors, notes


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(10)[8:10] == b'{"' or path.suffix == ".safetensors"


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise UsageError(
            f"the weights are truncated or damaged: {error}", where=str(path), fix="copy them again"
        ) from error


def _read_checkpoint(path: Path) -> Any:
    import pickle
    import zipfile

    import torch

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("constants.pkl") for name in archive.namelist()):
                raise UsageError(
                    "these weights are a TorchScript archive",
                    where=str(path),
                    fix="save them alone: "
                    "torch.save(torch.jit.load(path).state_dict(), 'weights.pt')",
                )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "WeightsUnpickler" not in str(error) and "GLOBAL" not in str(error):
            raise _damaged(path, error) from error
        raise UsageError(
            "the checkpoint holds pickled Python objects; reading it would run code from the file",
            where=str(path),
            got=_culprit(str(error)),
            fix="save the weights alone: torch.save(model.state_dict(), 'weights.pt')",
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> UsageError:
    first = str(error).strip().splitlines() or [type(error).__name__]
    return UsageError(
        f"no torch checkpoint, or a damaged one: {first[0][:200]}",
        where=str(path),
        expected="safetensors, or torch.save(model.state_dict())",
        fix="copy or save it again",
    )


def _culprit(message: str) -> str:
    import re

    found = re.search(r"GLOBAL ([\w.]+)", message)
    return found.group(1) if found else ""


def _only_tensors(state: Any, path: Path) -> dict[str, Any]:
    import torch

    if not isinstance(state, Mapping):
        raise UsageError(
            "the file holds no state dict",
            where=str(path),
            got=type(state).__name__,
            fix="torch.save(model.state_dict(), 'weights.pt')",
        )
    tensors = {str(k): v for k, v in state.items() if isinstance(v, torch.Tensor)}
    if not tensors or len(tensors) < len(state):
        odd = [str(k) for k, v in state.items() if not isinstance(v, torch.Tensor)]
        raise UsageError(
            "the file holds more than weights" if tensors else "the file holds no weights",
            where=str(path),
            got="entries " + ", ".join(odd[:5]),
            fix="torch.save(model.state_dict(), 'weights.pt')",
        )
    return tensors


def _load_state(module: nn.Module, state: Mapping[str, Any], path: Path) -> None:
    have = module.state_dict()
    missing, extra = sorted(set(have) - set(state)), sorted(set(state) - set(have))
    if missing or extra:
        parts = [f"missing {_few(missing)}"] if missing else []
        parts += [f"unexpected {_few(extra)}"] if extra else []
        close = difflib.get_close_matches(missing[0], extra, n=1) if missing else []
        fix = "use the factory these weights were trained with"
        fix += f" ({close[0]} in the file looks like {missing[0]})" if close else ""
        raise UsageError(
            "the weights do not fit the module: " + "; ".join(parts), where=str(path), fix=fix
        )
    for name, value in state.items():
        if tuple(value.shape) != tuple(have[name].shape):
            raise UsageError(
                "the weights do not fit the module",
                where=f"{path}, {name}",
                expected=str(list(have[name].shape)),
                got=str(list(value.shape)),
                fix="call the factory with the sizes the weights were trained with",
            )
    module.load_state_dict(state)


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more


def open_module(
    module: nn.Module,
    root: Path,
    *,
    inputs: Mapping[str, Any],
    outputs: Sequence[str] | None,
    shapes: Mapping[str, Mapping[str, Any]],
    factory: str | None,
    notes: Sequence[str],
) -> Artifact:
    """Write `module` into `root` as a `module` artifact; it is run to learn what it returns.

    Raises `UsageError` where the inputs are not known, the module fails on them, or a free
    dimension cannot vary.
    """
    from compressor.modules import write_module

    where = factory or type(module).__name__
    specs = in_call_order(module, declared_inputs(inputs, where), where)
    specs = fix_specs(specs, fixed_sizes(shapes))
    found, dims = probe(module, specs, outputs, shapes, where)
    facts = {"dims": dims, "metadata": {}, "notes": list(notes)}
    return write_module(root, module, specs, found, factory=factory, facts=facts)


def open_exported(
    path: Path,
    root: Path,
    *,
    inputs: Mapping[str, Any],
    outputs: Sequence[str] | None,
    shapes: Mapping[str, Mapping[str, Any]],
) -> Artifact:
    """Copy a `.pt2` into `root` as an `exported` artifact; it is checked before it is loaded."""
    from compressor.sources.exported import exported_specs, load_exported

    program = load_exported(path)
    specs, found = exported_specs(program, inputs, outputs, str(path))
    sizes = fixed_sizes(shapes)
    _, dims = probe(program, specs, [s.name for s in found], shapes, str(path), vary=False)
    shutil.copyfile(path, root / "model.pt2")
    parameters = sum(int(p.numel()) for p in program.parameters())
    facts = {"dims": dims, "metadata": {}, "notes": [], "parameters": parameters}
    ins: tuple[TensorSpec, ...] = fix_specs(specs, sizes)
    return Artifact.write(root, "exported", "model.pt2", ins, fix_specs(found, sizes), facts)


def module_identity(module: nn.Module) -> dict[str, Any]:
    """Structure and weights of an `nn.Module` that was handed in, as digests."""
    import torch

    from compressor.modules import fingerprint

    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if isinstance(value, torch.Tensor):
            flat = value.detach().cpu().contiguous().reshape(-1)
            digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
            digest.update(flat.view(torch.uint8).numpy().tobytes())
    settings = hashlib.sha256(repr(module).encode()).hexdigest()
    return {
        "kind": "nn.Module",
        "fingerprint": fingerprint(module),
        "settings": settings,
        "weights": digest.hexdigest(),
    }


def private_copy(module: nn.Module) -> nn.Module:
    """A deep copy in eval mode on the CPU: the caller's module is never touched."""
    try:
        return copy.deepcopy(module).cpu().eval()
    except (TypeError, RuntimeError) as error:
        raise UsageError(
            f"the module cannot be copied: {str(error).splitlines()[0][:200]}",
            where=type(module).__name__,
            fix="name the function that builds it: model: {source: 'package.module:function'}",
        ) from error
