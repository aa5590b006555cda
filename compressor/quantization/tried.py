"""What a search built and timed, kept in its step's checkpoint: a killed one goes on where it was.

An attempt is known by its assignment; all else that it depends on is in the key of the step, whose
checkpoint this is. Scores are not kept here: the store has them by the artifact's digest.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from compressor.record import write_atomic
from compressor.store import key_of
from runtimes.errors import BadArtifact, Unsupported
from runtimes.host import facts
from runtimes.types import Artifact

Times = dict[tuple[str, str], float]  # (group, option) → share of the float model's time


class Tried:
    """Builds and timings by assignment; each is there whole or not at all.

    Args:
        folder: survives a kill; made where it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def artifact(self, assign: Mapping[str, str], make: Callable[[str], Artifact]) -> Artifact:
        """What `make` (given a name for its folders) builds of an assignment, built once.

        Raises `Unsupported` again where a step refused it; any other failure is tried anew.
        """
        key = key_of(assign)
        place, refused = self.folder / key, self.folder / f"{key}.refused"
        if refused.is_file():
            raise Unsupported(refused.read_text(encoding="utf-8"), [], where="quantize_mixed")
        if found := _whole(place):
            return found
        try:
            made = make(key[:16])
        except Unsupported as error:
            write_atomic(refused, error.what.encode())
            raise
        self.folder.mkdir(exist_ok=True)
        shutil.copytree(made.root, place.with_suffix(".new"), dirs_exist_ok=True)
        place.with_suffix(".new").replace(place)
        return Artifact.load(place)

    def timing(
        self, assign: Mapping[str, str], measure: Callable[[], tuple[float, Times]]
    ) -> tuple[float, Times]:
        """Float time over an assignment's, and times by group and option, measured once.

        Those of another kind of processor do not count.
        """
        path = self.folder / (key_of({"assign": assign, "isa": facts()["isa"]}) + ".json")
        if path.is_file():
            kept = json.loads(path.read_text(encoding="utf-8"))
            return kept["gain"], {(group, option): time for group, option, time in kept["times"]}
        gain, times = measure()
        rows = [[*key, time] for key, time in times.items()]
        write_atomic(path, json.dumps({"gain": gain, "times": rows}).encode())
        return gain, times


def _whole(place: Path) -> Artifact | None:
    """The artifact in a folder, or None; one that is damaged is removed."""
    if not place.is_dir():
        return None
    try:
        found = Artifact.load(place)
        found.verify()
    except BadArtifact:
        shutil.rmtree(place)
        return None
    return found
