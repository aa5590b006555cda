"""torch modules between steps: weights as safetensors, structure as data, code from the user.

A `module` artifact holds `weights.safetensors` and `module.json`. The user's own factory builds
the untouched module; `load_module` then puts pairs where layers had been factorized, gives the
tensors the stored shapes and sets again what describes them (`out_channels`, or a module's own
`heads`: see `sizes`). So a pruned module is rebuilt without the pruner and without pickle, and it
trains, exports and prunes again.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor import sizes
from compressor.factorization import pairs
from runtimes.errors import BadArtifact, UsageError
from runtimes.types import Artifact, TensorSpec, canonical

if TYPE_CHECKING:
    from torch import Tensor, nn

SCHEMA = 1
WEIGHTS = "weights.safetensors"
STRUCTURE = "module.json"

# --------------------------------------------------------------------- references into user code


def import_reference(reference: str, search_path: Path | None = None) -> Callable[..., Any]:
    """The callable that `package.module:function` names.

    `search_path` (a recipe's folder) leads `sys.path` for the import alone. Raises `UsageError`
    where the form is wrong, the module is missing or fails, or the name is missing or not callable.
    """
    module_name, _, function = reference.partition(":")
    if not module_name or not function or ":" in function:
        raise UsageError(
            "not a reference", where=reference, expected="package.module:function", fix="name both"
        )
    found: Any = _import_module(reference, module_name, search_path)
    for part in function.split("."):
        if not hasattr(found, part):
            raise _no_such_name(reference, found, part)
        found = getattr(found, part)
    if not callable(found):
        raise UsageError("not callable", where=reference, got=type(found).__name__)
    return found  # type: ignore[no-any-return]


def _no_such_name(reference: str, holder: Any, name: str) -> UsageError:
    public = [n for n, v in vars(holder).items() if not n.startswith("_") and callable(v)]
    close = difflib.get_close_matches(name, public, n=1)
    fix = f"did you mean {close[0]}?" if close else ""
    file = getattr(holder, "__file__", "") or getattr(holder, "__name__", "")
    return UsageError(f"{file} has no {name}", where=reference, fix=fix)


def _import_module(reference: str, name: str, search_path: Path | None) -> Any:
    with _leading_path(search_path):
        _forget_namesake(name, search_path)
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name and (name == error.name or name.startswith(error.name + ".")):
                raise _no_such_module(reference, name, search_path) from error
            raise UsageError(
                f"importing it needs {error.name}, which is not installed", where=reference
            ) from error
        except Exception as error:
            raise UsageError(
                f"importing it raised {type(error).__name__}: {error}", where=reference
            ) from error


def _no_such_module(reference: str, name: str, search_path: Path | None) -> UsageError:
    folder = search_path or Path.cwd()
    here = [p.stem for p in folder.glob("*.py")] if folder.is_dir() else []
    close = difflib.get_close_matches(name, here, n=1)
    fix = f"did you mean {close[0]}?" if close else "put the module beside the recipe or install it"
    return UsageError(f"no module {name} (searched {folder})", where=reference, fix=fix)


@contextmanager
def _leading_path(search_path: Path | None) -> Iterator[None]:
    if search_path is None:
        yield
        return
    entry = str(Path(search_path).resolve())
    sys.path.insert(0, entry)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(entry)


def _forget_namesake(name: str, search_path: Path | None) -> None:
    """Two recipes may each have a `model.py`: drop the one imported from another folder."""
    top = name.partition(".")[0]
    loaded = sys.modules.get(top)
    if search_path is None or loaded is None or top in sys.stdlib_module_names:
        return
    folder = Path(search_path).resolve()
    file = getattr(loaded, "__file__", None)
    ours = (folder / f"{top}.py").is_file() or (folder / top).is_dir()
    if ours and file and folder not in Path(file).resolve().parents:
        for loaded_name in [n for n in sys.modules if n == top or n.startswith(top + ".")]:
            del sys.modules[loaded_name]


def frozen(module: nn.Module) -> bool:
    """Whether it has parameters and none of them is to be trained (requires_grad is False)."""
    parameters = list(module.parameters())
    return bool(parameters) and not any(p.requires_grad for p in parameters)


def build(factory: Callable[[], Any], where: str = "factory") -> nn.Module:
    """What `factory` builds, in eval mode; the global random state stays as it was.

    Raises `UsageError` where the factory raises or returns no `nn.Module`.
    """
    import torch

    with torch.random.fork_rng():
        try:
            module = factory()
        except Exception as error:
            raise UsageError(f"it raised {type(error).__name__}: {error}", where=where) from error
    if not isinstance(module, torch.nn.Module):
        raise UsageError(
            "does not return a module",
            where=where,
            expected="torch.nn.Module",
            got=type(module).__name__,
        )
    return module.eval()


# --------------------------------------------------------------------------------- structure


def skeleton(module: nn.Module) -> list[list[str]]:
    """What pruning leaves alone: (name, class) of modules, (name, dtype, rank) of tensors."""
    layers = [[name, type(layer).__qualname__] for name, layer in module.named_modules()]
    tensors = [
        [name, str(t.dtype).removeprefix("torch."), str(t.dim())]
        for name, t in _state(module).items()
    ]
    return layers + tensors


def fingerprint(module: nn.Module) -> str:
    """SHA-256 of the structure without sizes and values: pruning does not change it."""
    return hashlib.sha256(canonical(skeleton(module))).hexdigest()


def _state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict, refusing what is not a tensor."""
    import torch

    state = module.state_dict()
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise UsageError(
                "the module keeps extra state that is not a tensor", where=name,
                got=type(value).__name__, fix="register it as a buffer",
            )  # fmt: skip
    return state  # type: ignore[no-any-return]


def _shared(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Alias → name it shares its memory with (tied weights)."""
    first: dict[tuple[Any, ...], str] = {}
    aliases = {}
    for name, t in state.items():
        place = (t.untyped_storage().data_ptr(), t.storage_offset(), tuple(t.shape), t.stride())
        if t.numel() == 0:
            continue
        if place in first:
            aliases[name] = first[place]
        else:
            first[place] = name
    return aliases


# ----------------------------------------------------------------------------- write and load


def write_module(
    root: Path,
    module: nn.Module,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    *,
    factory: str | None,
    facts: Mapping[str, Any] | None = None,
) -> Artifact:
    """Write `module` as a `module` artifact into the folder `root`.

    `factory` is the reference that rebuilds the untouched module, None where the caller handed in
    an `nn.Module`. Same module, same bytes, wherever the recipe lies.
    """
    from safetensors.torch import save_file

    root.mkdir(parents=True, exist_ok=True)
    state = _state(module)
    aliases = _shared(state)
    kept = {n: t.detach().cpu().contiguous() for n, t in state.items() if n not in aliases}
    save_file(kept, root / WEIGHTS)
    structure = {
        "schema": SCHEMA,
        "factory": factory,
        "fingerprint": fingerprint(module),
        "aliases": aliases,
        "sizes": sizes.layer_sizes(module),
        "removed": dict((facts or {}).get("removed", {})),
    }
    factorized = pairs.ranks(module)
    structure |= {"factorized": factorized} if factorized else {}
    text = json.dumps(structure, indent=1, sort_keys=True, allow_nan=False)
    (root / STRUCTURE).write_text(text + "\n", encoding="utf-8")
    parameters = sum(p.numel() for p in module.parameters())
    told = {**(facts or {}), "parameters": parameters}
    told |= {"factorized": factorized} if factorized else {}
    return Artifact.write(root, "module", WEIGHTS, inputs, outputs, told)


def read_structure(root: Path) -> dict[str, Any]:
    """`module.json`, checked; raises `BadArtifact` where it is missing or malformed."""
    path = root / STRUCTURE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        wrong = data["schema"] != SCHEMA or not sizes.valid(data["sizes"])
        for key, kind in (("fingerprint", str), ("aliases", dict), ("removed", dict)):
            wrong = wrong or not isinstance(data[key], kind)
        wrong = wrong or not pairs.valid(data.get("factorized", {}))
    except FileNotFoundError as error:
        raise BadArtifact(f"not a module artifact: no {STRUCTURE}", where=str(root)) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadArtifact(f"unreadable {STRUCTURE}: {error}", where=str(root)) from error
    if wrong:
        raise BadArtifact(f"{STRUCTURE} does not hold what it must", where=str(root))
    return data  # type: ignore[no-any-return]


def load_module(
    folder: Path | str | Artifact,
    factory: Callable[[], Any] | None = None,
    search_path: Path | None = None,
) -> nn.Module:
    """The module a `module` artifact holds, in eval mode, on the CPU.

    `factory` builds the untouched module; without it the artifact's own reference is imported,
    with `search_path` (the folder of the user's code) leading `sys.path`.
    Raises `UsageError` without either, `BadArtifact` where factory and artifact do not fit.
    """
    root = folder.root if isinstance(folder, Artifact) else Path(folder)
    structure = read_structure(root)
    factory = factory or _stored_factory(root, structure, search_path)
    module = build(factory, structure["factory"] or "factory")
    pairs.rebuild(module, structure.get("factorized", {}))
    if fingerprint(module) != structure["fingerprint"]:
        raise BadArtifact(
            "the factory builds another module than the one that was stored",
            where=str(root),
            got=_first_difference(module, root, structure),
            fix="use the code the artifact was made from, or make it again",
        )
    try:
        sizes.restore(module, structure["sizes"])
    except LookupError as error:
        raise BadArtifact(
            f"the built module has no size {error.args[0]}", where=str(root)
        ) from error
    _assign(module, _read_weights(root), structure["aliases"], root)
    return module.eval()


def _stored_factory(
    root: Path, structure: Mapping[str, Any], search_path: Path | None
) -> Callable[[], Any]:
    reference = structure["factory"]
    if reference is None:
        raise UsageError(
            "the artifact names no factory (its module was handed in as an object)",
            where=str(root),
            fix="pass factory=, a callable that builds the untouched module",
        )
    return import_reference(reference, search_path)


def _first_difference(module: nn.Module, root: Path, structure: Mapping[str, Any]) -> str:
    stored = {*_read_weights(root), *structure["aliases"]}
    built = set(_state(module))
    odd = sorted(stored ^ built)
    if not odd:
        return "the same tensor names with other layer classes, dtypes or ranks"
    side = "stored, not built" if odd[0] in stored else "built, not stored"
    return f"{odd[0]} ({side}; {len(odd)} differ)"


def _read_weights(root: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(root / WEIGHTS)  # type: ignore[no-any-return]
    except (OSError, SafetensorError) as error:
        raise BadArtifact(f"unreadable {WEIGHTS}: {error}", where=str(root)) from error


def _assign(
    module: nn.Module, tensors: Mapping[str, Tensor], aliases: Mapping[str, str], root: Path
) -> None:
    """Put the stored tensors in place, whatever their shape; tied ones stay tied."""
    names = _state(module)
    odd = sorted(set(names) ^ {*tensors, *aliases})
    if odd or not set(aliases.values()) <= set(tensors):
        raise BadArtifact(f"stored and built tensors differ: {odd[:5]}", where=str(root))
    for name in names:
        if name in tensors:
            set_tensor(module, name, tensors[name])
    for alias, name in aliases.items():
        _tie(module, alias, name)


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return module.get_submodule(path), leaf


def set_tensor(module: nn.Module, name: str, value: Tensor) -> None:
    """Replace the parameter or buffer `name` of `module` by `value`, of any shape."""
    import torch

    owner, leaf = _owner(module, name)
    if leaf in owner._parameters:
        old = owner._parameters[leaf]
        asks = old is not None and old.requires_grad
        setattr(owner, leaf, torch.nn.Parameter(value, requires_grad=asks))
    else:
        owner._buffers[leaf] = value


def parameter_names(module: nn.Module) -> dict[int, list[str]]:
    """`id` of a parameter → every name that it has in `module`; tied ones have several."""
    found: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), []).append(name)
    return found


def _tie(module: nn.Module, alias: str, name: str) -> None:
    owner, leaf = _owner(module, name)
    other, other_leaf = _owner(module, alias)
    if other_leaf in other._parameters:
        setattr(other, other_leaf, getattr(owner, leaf))
    else:
        other._buffers[other_leaf] = getattr(owner, leaf)


def reference_of(artifact: Artifact) -> str | None:
    """The factory of a `module` artifact, to hand on to `write_module`."""
    factory: str | None = read_structure(artifact.root)["factory"]
    return factory
