"""The one error of this package; its exit code says who must act.

2  usage: a flag, a file or folder that is not there
4  this machine: no driver, no TensorRT, a version or GPU that the bundle was not made for
5  the parser, the builder or the engine gave up, memory or the time limit ran out
7  damaged files (digests, schema, a plan), or numbers other than the reference's
"""

from __future__ import annotations

from typing import Any, Dict, Mapping

USAGE, UNSUPPORTED, FAILED, BAD, BUG = 2, 4, 5, 7, 70


class TrtError(Exception):
    """What went wrong, as `where: what`, `expected …, got …`, `fix: …`."""

    def __init__(
        self,
        what: str,
        exit_code: int,
        *,
        where: str = "",
        expected: str = "",
        got: str = "",
        fix: str = "",
    ) -> None:
        self.what, self.exit_code, self.where = what, exit_code, where
        self.expected, self.got, self.fix = expected, got, fix
        super().__init__(self.text())

    def text(self) -> str:
        """The message as a person reads it, one to three lines."""
        lines = [self.where + ": " + self.what if self.where else self.what]
        pair = ["expected " + self.expected] if self.expected else []
        pair += ["got " + self.got] if self.got else []
        if pair:
            lines.append("  " + ", ".join(pair))
        if self.fix:
            lines.append("  fix: " + self.fix)
        return "\n".join(lines)

    def sentence(self) -> str:
        """What, expected and got on one line, for results."""
        pair = [f"expected {self.expected}"] if self.expected else []
        pair += [f"got {self.got}"] if self.got else []
        return self.what + (f" ({', '.join(pair)})" if pair else "")

    def to_json(self) -> Dict[str, Any]:
        """The error as plain JSON, for the process that started this one."""
        return dict(vars(self))

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> TrtError:
        """The inverse of `to_json`."""
        return TrtError(**dict(data))
