"""`table.md` from results.json."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]
GOAL_SHARE, GOAL_DROP = 0.95, 0.01
PEERS = {"nncf": "NNCF", "onnxruntime": "ONNX Runtime"}


def table(results: Row) -> str:
    """The whole file."""
    models = dict(sorted(results["models"].items()))
    versions = results["versions"]
    parts = [
        "# Models of the zoo through TensorRT-RTX's compiler",
        "",
        "Written by `python -m benchmarks.tensorrt.run`, from results.json. TensorRT-RTX",
        f"{versions['tensorrt-rtx-cu13-libs']} compiled every file for SM 86 and 89 on a machine",
        "without a GPU, so this says what is legal and what computes in INT8; nothing here was run",
        "on a GPU or timed, and no engine for Orin or Thor was built. Scores are ONNX Runtime's on",
        "the same file, on evaluation data. Layers are Conv, ConvTranspose, Gemm and MatMul with a",
        "constant weight; the share is of their multiplications. Seconds are of processor time.",
        "",
        _reached(models),
        "",
        (
            "| model | layers in INT8 | share | score: float → INT8 | loss | compiled in | plan | "
            "model.onnx | NNCF's default | ONNX Runtime's default |"
        ),
        "|---|---|---|---|---|---|---|---|---|---|",
        *(_line(name, model) for name, model in models.items()),
        "",
        "## Layers that are not in INT8",
        "",
        *(_left(models) or ["None."]),
        "",
        "## What the checker warned of",
        "",
        *(_warned(models) or ["Nothing."]),
    ]
    return "\n".join(parts) + "\n"


def _reached(models: Row) -> str:
    judged = {n: m["ours"] for n, m in models.items()}
    scored = [n for n, o in judged.items() if _drop(o) is not None]
    shares = [n for n, o in judged.items() if (o.get("int8_mac_share") or 0) >= GOAL_SHARE]
    kept = [n for n in scored if _drop(judged[n]) <= GOAL_DROP]
    wins = [n for n, m in models.items() if all(_int8(m["ours"]) >= _int8(m[p]) for p in PEERS)]
    refused = {
        title: sum(bool(m[p].get("refused") or m[p].get("failed")) for m in models.values())
        for p, title in PEERS.items()
    }
    wrong = sum(
        bool(m["nncf"].get("unsigned_pairs")) and not m["nncf"].get("refused")
        for m in models.values()
    )
    return (
        f"Of {len(models)} models, {sum(not o['refused'] for o in judged.values())} of ours "
        f"compile; {len(shares)} have at least {GOAL_SHARE:.0%} of their multiplications in INT8, "
        f"{len(kept)} of the {len(scored)} that have a metric lose at most {GOAL_DROP:.0%} of it, "
        f"and on {len(wins)} no peer's default has more layers in INT8. Of NNCF's defaults "
        f"{refused['NNCF']} fail or are refused, and {wrong} compile with UINT8 integers read as "
        f"INT8, so that they compute other numbers; of ONNX Runtime's {refused['ONNX Runtime']} "
        "are refused."
    )


def _drop(ours: Row) -> Any:
    return ours.get("relative_drop")


def _int8(row: Row) -> int:
    """Layers in INT8, whatever numbers they compute."""
    return 0 if row.get("failed") or row["refused"] else int(row["int8"])


def _line(name: str, model: Row) -> str:
    ours = model["ours"]
    drop, base, score = _drop(ours), model["float"], ours["score"]
    scores = f" {_number(base)} → {_number(score)}" if base is not None else ""
    cells = [
        name,
        f"{ours['int8']} of {ours['layers']}",
        _percent(ours.get("int8_mac_share")),
        model["metric"].rpartition(":")[2] + scores,
        f"{ours['sqnr_db']:.0f} dB" if drop is None else f"{drop:.2%}",
        f"{ours['seconds']:.1f} s" if not ours["refused"] else "refused",
        _kilobytes(ours.get("plan_bytes")),
        f"{_kilobytes(ours['bytes'])} of {_kilobytes(model['float_bytes'])}",
        *(_peer(model[peer]) for peer in PEERS),
    ]
    return "| " + " | ".join(cells) + " |"


def _peer(row: Row) -> str:
    if "failed" in row:
        return f"not quantized: {row['failed'][:80]}"
    if row["refused"]:
        return "refused: " + _short(row["refused"].split("refused it: ", 1)[-1])
    text = f"{row['int8']} of {row['layers']}"
    if row["unsigned_pairs"]:
        text += f", but {row['unsigned_pairs']} UINT8 pairs are read as INT8: other numbers"
    return text


def _short(refusal: str) -> str:
    node = refusal.split(": ", 1)[0]
    known = {"has type Int32": "an INT32 bias", "Non-zero zero point": "a zero point other than 0"}
    return next((f"{why} ({node})" for said, why in known.items() if said in refusal), refusal[:90])


def _left(models: Row) -> list[str]:
    return [
        f"- {name}: {row['node']} ({row['op']}, {row['mac_share']:.2%}) in "
        f"{row['got'] or 'nothing that could be told'}"
        + (f": {row['reason']}" if row["reason"] else "")
        for name, model in models.items()
        for row in model["ours"].get("not_int8", [])
    ] + [
        f"- {name}: the recurrent layers, {share:.2%} of all multiplications, which TensorRT has "
        "in float only; they are not among the layers above"
        for name, model in models.items()
        if (share := model["ours"].get("recurrent_mac_share"))
    ]


def _warned(models: Row) -> list[str]:
    return [f"- {name}: {text}" for name, m in models.items() for text in m["ours"]["warnings"]]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _kilobytes(size: int | None) -> str:
    return "–" if size is None else f"{size / 1000:,.0f} kB"
