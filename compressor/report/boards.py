"""What boards told of a target's bundles: the same rows for every report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from compressor.board_result import BoardResult, BoardTiming
from compressor.report import show
from compressor.result import Candidate, TargetResult

HEAD = ["Board", "Came to", "Batch", "GPU compute p50, p99", "H2D, D2H", "Enqueue", "Energy", "By"]


def rows(target: TargetResult) -> list[list[str]]:
    """Cells under `HEAD`: a row for every timing, or one where there was none."""
    made = []
    for candidate, board in _all(target):
        timings: Sequence[BoardTiming | None] = board.timing or [None]
        made += [[*_who(candidate, board), *_times(timing)] for timing in timings]
    return made


def sentences(target: TargetResult) -> list[str]:
    """One on each board: where it was, how far it came, what its layers compute in."""
    return [_sentence(candidate, board) for candidate, board in _all(target)]


def name(board: BoardResult) -> str:
    """The board in words: a Jetson's model or the GPU's name, and the power mode if it has one."""
    device, mode = board.device, board.device.get("power_mode")
    model = device.get("model") if device.get("integrated") else None
    return str(model or device.get("name", "a board")) + (f" ({mode})" if mode else "")


def _all(target: TargetResult) -> Iterator[tuple[Candidate, BoardResult]]:
    return ((candidate, board) for candidate in target.candidates for board in candidate.boards)


def _who(candidate: Candidate, board: BoardResult) -> list[str]:
    return [f"{name(board)}, {candidate.name}", board.status]


def _times(timing: BoardTiming | None) -> list[str]:
    if timing is None:
        return ["—"] * 6
    return [
        str(timing.batch),
        f"{show.ms(timing.p50_ms)}, {show.ms(timing.p99_ms)}",
        f"{show.ms(timing.h2d_ms)}, {show.ms(timing.d2h_ms)}",
        show.ms(timing.enqueue_ms),
        "—"
        if timing.energy_mj is None
        else f"{timing.energy_mj:.3g} mJ ({timing.power.get('of')})",
        f"{timing.source}, {'a' if timing.graph else 'no'} CUDA graph, n = {timing.samples:,}",
    ]


def _sentence(candidate: Candidate, board: BoardResult) -> str:
    versions = ", ".join(f"{key} {value}" for key, value in board.versions.items() if value)
    kinds = ("int8", "float8", "float16", "float32")
    counted = [f"{board.layers[kind]} in {kind}" for kind in kinds if board.layers.get(kind)]
    fell = [str(layer) for layer in board.layers.get("fell_back") or []]
    parts = [
        f"{candidate.name} on {name(board)}: {board.reason or board.status}",
        versions,
        f"layers: {', '.join(counted)}" if counted else "",
        f"asked for INT8 and run in float: {', '.join(fell[:3])}"
        + (f" and {len(fell) - 3} more" if len(fell) > 3 else "")
        if fell
        else "",
    ]
    return "; ".join(part for part in parts if part)
