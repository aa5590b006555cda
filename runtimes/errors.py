"""Every error a user can see, sorted by who must act; each carries its exit code.

CompressError            70  a bug, unless a subclass says otherwise
├── GateFailed            1  a gate failed (only `raise_for_verdict` raises it)
├── UsageError            2  recipe, flag or data
├── Inconclusive          3  not enough samples (only `raise_for_verdict` raises it)
├── MissingTool           4  an extra or a vendor tool is not installed
├── RuntimeUnavailable    4  the engine cannot run on this machine
├── Unsupported           4  the model holds something this step or target refuses
├── BuildFailed           5  a converter or compiler gave up
├── BoardError            6  a board could not be reached or died
└── BadArtifact           7  digest, version or numeric mismatch
"""

from __future__ import annotations

from typing import Sequence


class CompressError(Exception):
    """Base of all our errors: `where: what`, `expected …, got …`, `fix: …`."""

    exit_code = 70

    def __init__(
        self, what: str, *, where: str = "", expected: str = "", got: str = "", fix: str = ""
    ) -> None:
        self.what, self.where = what, where
        self.expected, self.got, self.fix = expected, got, fix
        super().__init__(self.text())

    def text(self) -> str:
        """The message as a person reads it, one to three lines."""
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        pair = [("expected " + self.expected) if self.expected else ""]
        pair.append(("got " + self.got) if self.got else "")
        if any(pair):
            lines.append("  " + ", ".join(part for part in pair if part))
        if self.fix:
            lines.append("  fix: " + self.fix)
        return "\n".join(lines)


class GateFailed(CompressError):
    """A gate of the verdict failed."""

    exit_code = 1


class UsageError(CompressError):
    """What the user handed in (recipe, flag, path, data) is not right."""

    exit_code = 2


class Inconclusive(CompressError):
    """The measurement cannot decide a gate; the message says how much data would."""

    exit_code = 3


class MissingTool(CompressError):
    """A package or vendor tool is not installed; `fix` names the pip extra."""

    exit_code = 4


class RuntimeUnavailable(CompressError):
    """The engine is installed but cannot run on this machine (no GPU, no driver, …)."""

    exit_code = 4


class Refusal:
    """One reason why a step will not take a model: where, why, and what to change."""

    __slots__ = ("fix", "where", "why")

    def __init__(self, where: str, why: str, fix: str = "") -> None:
        self.where, self.why, self.fix = where, why, fix

    def __repr__(self) -> str:
        return f"Refusal({self.where!r}, {self.why!r}, {self.fix!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Refusal) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))


class Unsupported(CompressError):
    """The model holds something this step or target refuses; `refusals` lists each place."""

    exit_code = 4

    def __init__(self, what: str, refusals: Sequence[Refusal] = (), *, where: str = "") -> None:
        self.refusals = tuple(refusals)
        shown = [f"{r.where}: {r.why}" for r in self.refusals[:8]]
        if len(self.refusals) > 8:
            shown.append(f"… and {len(self.refusals) - 8} more")
        fixes = list(dict.fromkeys(r.fix for r in self.refusals if r.fix))
        super().__init__("\n  ".join([what, *shown]), where=where, fix="; ".join(fixes[:3]))


class BuildFailed(CompressError):
    """A converter or compiler failed; the message ends with its last lines."""

    exit_code = 5


class BoardError(CompressError):
    """A board could not be reached, or the process on it died."""

    exit_code = 6


class BadArtifact(CompressError):
    """An artifact or package is damaged, of another version, or gives other numbers."""

    exit_code = 7
