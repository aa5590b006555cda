"""Models with recurrent state, one step a call: sequences come in, the state is fed back.

A recipe names the state as `model.state: {h_in: h_out}`. Data sets then hold whole sequences: every
other input has an axis of steps behind its batch axis ([n, steps, …]), and outputs are stacked the
same way. State starts at zeros, or at what the data gives: an array of the state input's own name,
one initial state a sample (its batch axis in front; for states without one, n in front of all).
Scoring feeds each model its own state; what calibrates or is timed sees single steps, in random
order, with the states that the original model has there.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from exporters.base import Samples
from runtimes.base import Feeds, Outputs, engine_of, load_runtime
from runtimes.errors import UsageError
from runtimes.types import Artifact, TensorSpec, canonical

Run = Callable[[Feeds], Outputs]
Array = np.ndarray[Any, Any]
MOST_STEPS = 4096  # single steps kept of a data set of sequences
MOST_RUNS = 8192  # steps run to find the states at those
LEAST_STEPS = 64  # of each sequence, where there are more sequences than MOST_RUNS allows
STATE_BYTES = 256 << 20  # of states held in memory
_BATCH = 32


def check_state(
    pairs: Mapping[str, str],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    where: str = "model.state",
) -> None:
    """Raise `UsageError` unless each pair names an input and an output of one shape and dtype."""
    ins, outs = {s.name: s for s in inputs}, {s.name: s for s in outputs}
    for source, result in pairs.items():
        first = _named(source, ins, "input", f"{where}.{source}")
        second = _named(result, outs, "output", f"{where}.{source}")
        if first.dtype != second.dtype or not _fits(first.shape, second.shape):
            raise UsageError(
                "the state goes in and comes out in different forms",
                where=f"{where}.{source}",
                expected=str(first),
                got=str(second),
                fix="pair each state input with the output that holds its next value",
            )
    if repeated := [o for o in pairs.values() if list(pairs.values()).count(o) > 1]:
        raise UsageError(f"output {repeated[0]!r} is named twice", where=where)
    driven = [spec for spec in inputs if spec.name not in pairs]
    if pairs and not driven:
        raise UsageError("every input is state: nothing drives the model", where=where)
    batch = driven[0].shape[0] if driven and driven[0].shape else None
    if pairs and (batch is None or (isinstance(batch, int) and batch != 1)):
        raise UsageError(
            f"input {driven[0].name!r} has no batch axis that sequences can run along",
            where=where,
            expected="a first axis that is free, or 1",
            got=str(driven[0]),
            fix="export the model with a free batch axis",
        )


def _named(name: str, known: Mapping[str, TensorSpec], what: str, where: str) -> TensorSpec:
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, 1, cutoff=0.4)
    raise UsageError(
        f"no {what} {name!r}",
        where=where,
        expected="one of " + ", ".join(known),
        fix=f"did you mean {near[0]!r}?" if near else "",
    )


def _fits(first: Sequence[int | str], second: Sequence[int | str]) -> bool:
    """Equal but for free dimensions, which a cache that grows has under two names."""
    return len(first) == len(second) and all(
        a == b or isinstance(a, str) or isinstance(b, str)
        for a, b in zip(first, second, strict=True)
    )


@dataclass(frozen=True)
class RecurrentState:
    """The recurrent state of one model.

    Attributes:
        pairs: input → the output that is its next value.
        inputs: all of the model's inputs.
    """

    pairs: Mapping[str, str]
    inputs: tuple[TensorSpec, ...]

    @staticmethod
    def of(artifact: Artifact) -> RecurrentState | None:
        """The state `facts["state"]` names; None where there is none."""
        pairs = artifact.facts.get("state") or {}
        return RecurrentState(dict(pairs), artifact.inputs) if pairs else None

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """The state inputs."""
        return tuple(spec for spec in self.inputs if spec.name in self.pairs)

    @property
    def driven(self) -> tuple[TensorSpec, ...]:
        """The other inputs, which the data holds."""
        return tuple(spec for spec in self.inputs if spec.name not in self.pairs)

    @property
    def alone(self) -> bool:
        """A state has no batch axis that can be told, so samples run one by one."""
        return any(self.batch_axis(spec) is None for spec in self.specs)

    def batch_axis(self, spec: TensorSpec) -> int | None:
        """The axis of a state that is as long as the batch, if it has the batch's own name."""
        first = next((s.shape[0] for s in self.driven if s.shape), None)
        return spec.shape.index(first) if isinstance(first, str) and first in spec.shape else None

    @property
    def grows(self) -> bool:
        """A state gets longer with every step: it has a free dimension that nothing else has."""
        known = {dim for spec in self.driven for dim in spec.shape}
        free = {dim for spec in self.specs for dim in spec.shape if isinstance(dim, str)}
        return bool(free - known)

    def sequence_inputs(self, given: Sequence[str] = ()) -> tuple[TensorSpec, ...]:
        """What a data set holds: driven inputs with an axis of steps, and initial states `given`.

        Args:
            given: names of arrays that are there; those of state inputs count.
        """
        taken = {d for spec in self.inputs for d in spec.shape}
        axis = "steps" if "steps" not in taken else "steps of the sequence"
        made = [
            TensorSpec(s.name, s.dtype, (*s.shape[:1], axis, *s.shape[1:])) for s in self.driven
        ]
        for spec in self.specs:
            if spec.name in given:
                at = self.batch_axis(spec)
                rest = spec.shape if at is None else (*spec.shape[:at], *spec.shape[at + 1 :])
                made.append(TensorSpec(spec.name, spec.dtype, ("initial", *rest)))
        return tuple(made)

    def first(self, feeds: Feeds) -> dict[str, Array]:
        """The state before the first step of sequences `feeds`: theirs, or zeros.

        A free dimension that no other input has, such as the length of a cache, starts at 0.
        """
        sizes = {
            dim: feeds[spec.name].shape[i if i == 0 else i + 1]
            for spec in self.driven
            for i, dim in enumerate(spec.shape)
            if isinstance(dim, str)
        }
        made = {}
        for spec in self.specs:
            if spec.name in feeds:
                made[spec.name] = self._given(spec, feeds[spec.name])
                continue
            shape = [sizes.get(d, 0) if isinstance(d, str) else d for d in spec.shape]
            made[spec.name] = np.zeros(shape, spec.dtype)
        return made

    def _given(self, spec: TensorSpec, array: Array) -> Array:
        at = self.batch_axis(spec)
        if at is not None:
            return np.ascontiguousarray(np.moveaxis(array, 0, at))
        if len(array) != 1:
            raise UsageError(
                "initial states of several samples, and the state has no batch axis",
                where=spec.name,
                fix="score with batch 1",
            )
        return np.asarray(array[0])

    def step(self, feeds: Feeds, at: int, state: Mapping[str, Array]) -> dict[str, Array]:
        """The feed of one step of sequences `feeds`."""
        made = {spec.name: np.ascontiguousarray(feeds[spec.name][:, at]) for spec in self.driven}
        return {**made, **state}

    def next(self, outputs: Outputs) -> dict[str, Array]:
        """The state after a step."""
        return {source: outputs[result] for source, result in self.pairs.items()}

    def shown(self, outputs: Outputs) -> dict[str, Array]:
        """The outputs that are no state; all of them where nothing else comes out."""
        rest = {k: v for k, v in outputs.items() if k not in self.pairs.values()}
        return rest or dict(outputs)

    def join(self, parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
        """Feeds of single samples as one batch."""
        if len(parts) == 1:
            return dict(parts[0])
        axes = {spec.name: self.batch_axis(spec) or 0 for spec in self.specs}
        return {
            name: np.concatenate([part[name] for part in parts], axis=axes.get(name, 0))
            for name in parts[0]
        }

    def row(self, state: Mapping[str, Array], index: int) -> dict[str, Array]:
        """The state of one sample of a batch, its batch axis kept."""
        made = {}
        for spec in self.specs:
            array, at = state[spec.name], self.batch_axis(spec)
            one = array if at is None else np.take(array, [index], axis=at)
            made[spec.name] = np.array(one)
        return made


def steps_of(feeds: Feeds, state: RecurrentState) -> int:
    """How many steps the sequences of a feed have."""
    return int(feeds[state.driven[0].name].shape[1])


def over_sequences(run: Run, state: RecurrentState) -> Run:
    """`run`, which takes single steps, as one that takes sequences and feeds the state back.

    Outputs are stacked behind their first axis, [batch, steps, …].
    """

    def sequences(feeds: Feeds) -> Outputs:
        now = state.first(feeds)
        found: dict[str, list[Array]] = {}
        for at in range(steps_of(feeds, state)):
            outputs = run(state.step(feeds, at, now))
            now = state.next(outputs)
            for name, array in state.shown(outputs).items():
                found.setdefault(name, []).append(np.atleast_1d(array))
        return {name: np.stack(arrays, axis=1) for name, arrays in found.items()}

    return sequences


class Steps:
    """Single steps of sequences with the original model's state at each, in random order.

    Meets `exporters.base.Samples`, so what calibrates or times needs to know nothing of state.

    Attributes:
        original: the model whose states these are, the original as ONNX in a run; set before
            anything but the first step is read.
    """

    labels = None

    def __init__(self, sequences: Samples, state: RecurrentState, seed: int = 0) -> None:
        self.whole, self.state, self.inputs = sequences, state, state.inputs
        self.original: Artifact | None = None
        self.places, shapes = self._places(seed)
        self.ragged = state.alone or _grows(state) or len(shapes) > 1
        self._states: dict[tuple[int, int], dict[str, Array]] = {}
        about = canonical([dict(state.pairs), seed, len(self.places)])
        digest = sequences.fingerprint.encode() + about
        self.fingerprint = hashlib.sha256(digest).hexdigest()
        where = getattr(sequences, "description", "sequences")
        self.description = f"{where}: {len(self):,} single steps"

    def _places(self, seed: int) -> tuple[list[tuple[int, int]], set[Any]]:
        """(sequence, step) of each sample: the very first step, then others as drawn.

        Long data is cut: first the sequences, down to `LEAST_STEPS`, then their number.
        """
        longest = max(LEAST_STEPS, MOST_RUNS // len(self.whole))
        found: list[tuple[int, int]] = []
        shapes = set()
        first = self.whole.feeds([0])
        size = sum(array.nbytes for array in self.state.first(first).values())
        for i in range(len(self.whole)):
            feeds = self.whole.feeds([i]) if self.whole.ragged else first
            steps = min(longest, steps_of(feeds, self.state))
            if len(found) + steps > MOST_RUNS and found:
                break
            found += [(i, at) for at in range(steps)]
            driven = [feeds[spec.name].shape for spec in self.state.driven]
            shapes.add(tuple((*shape[:1], *shape[2:]) for shape in driven))
        rest = np.random.default_rng(seed).permutation(len(found) - 1) + 1
        most = max(1, min(MOST_STEPS, STATE_BYTES // max(1, size)))
        return [found[0], *(found[j] for j in rest)][:most], shapes

    def __len__(self) -> int:
        return len(self.places)

    def feeds(self, indices: Sequence[int]) -> dict[str, Array]:
        """The named steps as one batch, by input name."""
        return self.state.join([self._one(*self.places[i]) for i in indices])

    def batches(
        self, size: int, indices: Sequence[int] | None = None
    ) -> Iterator[tuple[list[int], dict[str, Array]]]:
        """Batches of (indices, feeds), in order; the last one may be smaller."""
        order = list(range(len(self)) if indices is None else indices)
        size = 1 if self.ragged else max(1, size)
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            yield chosen, self.feeds(chosen)

    def _one(self, sequence: int, at: int) -> dict[str, Array]:
        feeds = self.whole.feeds([sequence])
        if at == 0:
            return self.state.step(feeds, 0, self.state.first(feeds))
        if not self._states:
            self._run_original()
        return self.state.step(feeds, at, self._states[sequence, at])

    def _run_original(self) -> None:
        """Run the original through the sequences and keep the states at the chosen steps."""
        assert self.original is not None, "the original model is not there yet"
        wanted = set(self.places)
        sequences = sorted({i for i, _ in wanted})
        size = 1 if self.state.alone or self.whole.ragged else _BATCH
        with load_runtime(engine_of(self.original)).open_session(self.original) as session:
            for start in range(0, len(sequences), size):
                self._keep(session.run, sequences[start : start + size], wanted)

    def _keep(self, run: Run, chosen: list[int], wanted: set[tuple[int, int]]) -> None:
        feeds = self.whole.feeds(chosen)
        now = self.state.first(feeds)
        last = max(at for i, at in wanted if i in chosen)
        for at in range(last):
            now = self.state.next(run(self.state.step(feeds, at, now)))
            for row, i in enumerate(chosen):
                if (i, at + 1) in wanted:
                    self._states[i, at + 1] = self.state.row(now, row)


def _grows(state: RecurrentState) -> bool:
    """Whether a state has a free dimension of its own, such as the length of a cache."""
    known = {d for spec in state.driven for d in spec.shape}
    return any(isinstance(d, str) and d not in known for s in state.specs for d in s.shape)
