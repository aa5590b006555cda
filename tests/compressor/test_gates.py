"""The grammar of gates: what it reads, what it refuses and how it says so."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.gates import KINDS, Gate, check_gates, default_gates, parse_gate
from runtimes.errors import UsageError


@pytest.mark.parametrize(
    ("text", "metric", "limit", "batch"),
    [
        ("accuracy_drop<=1%", "accuracy_drop", 0.01, None),
        ("accuracy_drop <= 0.25", "accuracy_drop", 0.25, None),
        ("relative_drop<=0.5%", "relative_drop", 0.005, None),
        ("size_reduction>=75%", "size_reduction", 0.75, None),
        ("size_reduction≥0.9", "size_reduction", 0.9, None),
        ("speedup>=1.0", "speedup", 1.0, None),
        ("speedup@16>=3.5x", "speedup", 3.5, 16),
        ("p50<=5ms", "p50", 5.0, None),
        ("p50 ≤ 800 us", "p50", 0.8, None),
        ("p99@1<=0.009s", "p99", 9.0, 1),
        ("memory<=200MB", "memory", 200e6, None),
        ("size<=3MB", "size", 3e6, None),
        ("size<=3MiB", "size", 3 * 2**20, None),
        ("size<=300kB", "size", 300e3, None),
        ("agreement>=99%", "agreement", 0.99, None),
        ("sqnr>=20dB", "sqnr", 20.0, None),
        ("luts<=20000", "luts", 20000.0, None),
        ("latency_ns<=150", "latency_ns", 150.0, None),
        ("fmax_mhz>=50", "fmax_mhz", 50.0, None),
    ],
)
def test_reads(text: str, metric: str, limit: float, batch: int | None) -> None:
    gate = parse_gate(text)
    assert (gate.metric, gate.batch) == (metric, batch)
    assert gate.limit == pytest.approx(limit, rel=1e-12)
    assert gate.op in gate.text


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("acuracy_drop<=1%", ["unknown name 'acuracy_drop'", "did you mean 'accuracy_drop'?"]),
        ("latency<=5ms", ["unknown name", "one of accuracy_drop"]),
        ("accuracy_drop>=1%", ["bounded from above", "expected <=, got >="]),
        ("speedup<=2", ["bounded from below", "speedup>=1.5"]),
        ("speedup>2", ["bounded from below", "got >"]),
        ("size_reduction>=75", ["is a ratio", "write 75% if per cent is meant"]),
        ("relative_drop<=1", ["is a ratio", "write 1%"]),
        ("size_reduction>=150%", ["is a ratio", "at most 100%"]),
        ("p50<=5", ["without a unit", "p50<=5ms"]),
        ("size<=3", ["without a unit", "size<=3MB"]),
        ("p50<=5MB", ["no unit 'MB'", "ms"]),
        ("speedup>=120%", ["no unit '%'"]),
        ("speedup@fast>=2", ["not a batch size", "@fast"]),
        ("speedup@0>=2", ["not a batch size"]),
        ("size@3<=3MB", ["does not depend on the batch size"]),
        ("p50<=1.2.3ms", ["not a limit"]),
        ("p50<=-1ms", ["not a limit"]),
        ("fast enough", ["cannot read the gate", "speedup@16>=3.5"]),
        ("", ["cannot read the gate"]),
    ],
)
def test_refuses_and_says_why(text: str, fragments: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        parse_gate(text)
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_mapping_form() -> None:
    gate = parse_gate({"gate": "size<=3MB", "of": "package"})
    assert gate.of == "package"
    assert str(gate) == "size<=3MB of the package"
    assert parse_gate({"gate": "accuracy_drop<=1%", "point_estimate": "allow"}).point_estimate


@pytest.mark.parametrize(
    ("spec", "fragment"),
    [
        ({"gate": "size<=3MB", "off": "package"}, "did you mean 'of'?"),
        ({"gate": "size<=3MB", "of": "disk"}, "model or package"),
        ({"gate": "p50<=3ms", "of": "package"}, "only a size"),
        ({"gate": "accuracy_drop<=1%", "point_estimate": True}, "allow or refuse"),
        ({"limit": 3}, "not a gate"),
        (7, "not a gate"),
    ],
)
def test_mapping_form_refuses(spec: object, fragment: str) -> None:
    with pytest.raises(UsageError, match=fragment.replace("?", r"\?")):
        parse_gate(spec)  # type: ignore[arg-type]


def _units(name: str) -> list[str]:
    kinds = {"metric": ["", "%"], "ratio": ["%"], "times": ["", "x"], "ms": ["us", "ms", "s"]}
    kinds |= {"bytes": ["B", "kB", "MB", "KiB", "MiB"], "db": ["", "dB"], "count": [""]}
    return (kinds | {"ns": ["", "ns"], "mhz": ["", "MHz"]})[KINDS[name].unit]


@st.composite
def gates(draw: st.DrawFn) -> str | dict[str, str]:
    name = draw(st.sampled_from(sorted(KINDS)))
    number = draw(st.decimals(0, 99, places=3))
    batch = f"@{draw(st.integers(1, 512))}" if KINDS[name].batched and draw(st.booleans()) else ""
    text = f"{name}{batch} {KINDS[name].op} {number}{draw(st.sampled_from(_units(name)))}"
    if name.startswith("size") and draw(st.booleans()):
        return {"gate": text, "of": "package"}
    return {"gate": text, "point_estimate": "allow"} if draw(st.booleans()) else text


@given(gates())
def test_round_trip(spec: str | dict[str, str]) -> None:
    gate = parse_gate(spec)
    assert parse_gate(gate.to_json()) == gate
    assert parse_gate(gate.text).limit == gate.limit


@given(st.text(max_size=30))
def test_any_text_is_a_gate_or_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):  # anything else is a bug
        assert isinstance(parse_gate(text), Gate)


def test_limits_that_do_not_fit_the_metric() -> None:
    check_gates([parse_gate("accuracy_drop<=1%"), parse_gate("speedup>=2")], "top1", True)
    check_gates([parse_gate("accuracy_drop<=1.5")], "mae", False)
    with pytest.raises(UsageError, match="write accuracy_drop<=1%"):
        check_gates([parse_gate("accuracy_drop<=1")], "top1", True)
    with pytest.raises(UsageError, match="relative_drop<=1%"):
        check_gates([parse_gate("accuracy_drop<=1%")], "mae", False)


def test_defaults_are_never_worse() -> None:
    found = {gate.metric: gate.limit for gate in default_gates()}
    assert found == {"relative_drop": 0.01, "size_reduction": 0.0, "speedup": 0.97}
