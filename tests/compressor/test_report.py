"""The reports: complete, self-contained, and safe whatever names they are given."""

from __future__ import annotations

import dataclasses
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest

from compressor.explain import explain
from compressor.record import parse_record, record_text
from compressor.report import html, junit, markdown, terminal, write_reports
from compressor.report.markdown import MARKER
from compressor.report.show import check_text, differs
from compressor.report.view import before_after, layer_view, notices
from compressor.result import Check, Comparison, Failure, LayerRow, RunRecord, Score
from tests.run_records import candidate, checks, every_kind, record, target, timing

KINDS = every_kind()
EVIL = "<script>alert('x')</script><!-- \x1b[31m ]]> | `code` **b** \" & \u0000 \ud800 é"


def evil() -> RunRecord:
    """A record in which every text a user controls is hostile."""
    safe = EVIL.replace("\ud800", "")  # a lone surrogate cannot be written as UTF-8 at all
    layers = [LayerRow(safe, safe, "int8", "float32", 10, 10, safe)]
    gates = [Check(safe, "fail", safe, 1.0, (0.5, 1.5), 1.0)]
    best = candidate("int8-w4", 0.003, 2.9, layers=layers, notes=[safe], checks=gates)
    tried = [dataclasses.replace(best, name=safe), candidate("twin", 0.0, None)]
    one = dataclasses.replace(target(state="fail"), name=safe, shipped=safe, reason=safe)
    one = dataclasses.replace(one, device=safe, candidates=tried, versions={safe: safe})
    broken = target(name="b" + safe, failure=Failure(safe, safe, 5), candidates=[])
    made = record(
        one, broken, command=safe, recipe={safe: safe}, warnings=[safe], host={safe: safe}
    )
    return dataclasses.replace(made, reference=dataclasses.replace(made.reference, source=safe))


class Page(HTMLParser):
    """What a browser would make of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.script = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"{tag} closes something else"

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.script += data


@pytest.mark.parametrize("made", [*KINDS.values(), evil()], ids=[*KINDS, "evil"])
def test_page_is_well_formed_and_loads_nothing(made):
    page = Page(html(made))
    assert page.open == []
    scripts = [attrs for tag, attrs in page.tags if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "run-record"}]
    loading = {
        "link",
        "img",
        "iframe",
        "object",
        "embed",
        "base",
        "form",
        "video",
        "audio",
        "source",
    }
    assert not loading & {tag for tag, _ in page.tags}
    for _, attrs in page.tags:
        assert not {"src", "srcset", "action", "onload", "onerror", "style"} & set(attrs)
        assert attrs.get("href", "#").startswith("#")
    assert not re.search(r"@import|url\(|https?://", html(record()))


@pytest.mark.parametrize("made", [*KINDS.values(), evil()], ids=[*KINDS, "evil"])
def test_page_holds_its_record(made):
    assert parse_record(Page(html(made)).script) == made


@pytest.mark.parametrize("kind", KINDS)
def test_every_gate_stands_in_the_page_with_its_verdict(kind):
    text = html(KINDS[kind])
    for one in KINDS[kind].targets:
        for check in one.candidates[0].checks if one.candidates else []:
            assert check.gate.replace(">", "&gt;").replace("<", "&lt;") in text


def test_every_table_has_headers_and_every_chart_a_label():
    page = Page(html(KINDS["mixed"]))
    cells = [attrs for tag, attrs in page.tags if tag == "th"]
    assert cells
    assert all(attrs.get("scope") in ("row", "col") for attrs in cells)
    drawings = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert drawings
    assert all("aria-label" in a or a.get("aria-hidden") == "true" for a in drawings)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    named = {attrs["aria-labelledby"] for _, attrs in page.tags if "aria-labelledby" in attrs}
    assert named <= set(ids)


def test_what_could_not_be_judged_stands_before_the_targets():
    text = html(KINDS["not_judged"])
    notice = text.index("the engine does not report its memory here")
    assert notice < text.index('id="target-1"')


def test_charts_stay_small():
    drawings = re.findall(r"<svg.*?</svg>", html(record()), re.S)
    assert len(drawings) >= 9
    assert max(map(len, drawings)) < 6500


def test_long_layer_tables_are_kept_whole_up_to_a_limit():
    assert html(KINDS["long"]).count("block") >= 700


@pytest.mark.parametrize("made", [*KINDS.values(), evil()], ids=[*KINDS, "evil"])
def test_markdown_is_short_and_marked(made):
    text = markdown(made)
    assert text.startswith(MARKER)
    assert len(text.encode()) < 60_000
    assert text.count("<details>") == text.count("</details>")


def test_markdown_of_a_giant_run_is_cut_with_a_note():
    many = record(*[target(f"target{i}" * 20) for i in range(200)])
    text = markdown(many)
    assert len(text.encode()) < 60_000
    assert "did not fit: see report.html" in text


def test_markdown_tables_have_equal_columns():
    for line in markdown(evil()).splitlines():
        if line.startswith("| "):
            plain = line.replace("\\|", "")
            assert plain.count("|") == plain.count(" | ") + 2
    code = r"^(`{8})$.*?^\1$|`[^`]*`"
    assert "<script>" not in re.sub(code, "", markdown(evil()), flags=re.S | re.M)


def suites(made, **options):
    return ET.fromstring(junit(made, **options).encode())


@pytest.mark.parametrize("made", [*KINDS.values(), evil()], ids=[*KINDS, "evil"])
def test_junit_parses_and_its_counts_add_up(made):
    root = suites(made)
    assert [suite.get("name") is not None for suite in root] == [True] * len(made.targets)
    for suite in [*root]:
        cases = suite.findall("testcase")
        assert suite.get("tests") == str(len(cases))
        assert int(suite.get("failures")) == len(suite.findall("testcase/failure"))
    assert root.get("tests") == str(len(root.findall("testsuite/testcase")))


@pytest.mark.parametrize(
    ("kind", "policy", "tag"),
    [
        ("fail", "fail", "failure"),
        ("inconclusive", "fail", "failure"),
        ("inconclusive", "warn", "skipped"),
        ("not_judged", "fail", "skipped"),
        ("error", "fail", "error"),
    ],
)
def test_junit_says_what_the_verdict_says(kind, policy, tag):
    found = suites(KINDS[kind], on_inconclusive=policy)
    marks = [
        mark.tag for case in found.iter("testcase") for mark in case if mark.tag != "system-out"
    ]
    assert marks == [tag]


def test_junit_follows_the_run_where_it_only_warned():
    warned = record(dataclasses.replace(target(state="inconclusive"), exit_code=0))
    assert [mark.tag for mark in suites(warned).iter("skipped")] == ["skipped"]
    assert suites(KINDS["inconclusive"]).get("failures") == "1"


def test_junit_fails_where_only_the_target_fails():
    odd = target(state="fail", candidates=[candidate("int8", 0.0, 1.0)], reason="not smaller")
    cases = {case.get("name"): case for case in suites(record(odd)).iter("testcase")}
    assert cases["verdict"].find("failure").get("message") == "not smaller"


@pytest.mark.parametrize("made", [*KINDS.values(), evil()], ids=[*KINDS, "evil"])
def test_terminal_fits_and_is_plain(made):
    lines = terminal(made)
    assert max(map(len, lines)) <= 100
    assert all(line.isprintable() for line in lines)
    assert f"exit {made.exit_code}" in lines[-1]


def test_terminal_of_a_pass_says_everything_the_first_screen_needs():
    text = "\n".join(terminal(record()))
    for part in (
        "PASS  onnxruntime on CPU",
        "92.9 % smaller: 2.83 MB -> 202 kB",
        "drop 0.30 points (0.11 to 0.49)",
        "2.93x (2.87–2.99) as fast as the twin",
        "head.fc: kept float by the recipe",
        "all 5 passed",
        "PASS  exit 0: every gate passed",
    ):
        assert part in text


def test_every_report_says_what_the_integers_are():
    note = "INT8: weights s8 per channel, activations u8, full range"
    best = candidate("int8-w4", 0.003, 2.9, checks=checks(), state="pass", notes=[note])
    made = record(target(candidates=[best, candidate("twin", 0.0, None)]))
    said = note + " (avx512_vnni)"
    assert f"<li>{said}</li>" in html(made)
    assert said.replace("_", "\\_") in markdown(made)
    for lines in (terminal(made), explain(made)):
        assert any(line.split()[:2] == ["integers", "INT8:"] for line in lines)
        assert said in " ".join(" ".join(lines).split())
    assert "INT8:" not in " ".join([*terminal(record()), *explain(record())])


def test_terminal_of_a_failure_gives_the_reason_first():
    lines = terminal(KINDS["fail"])
    at = lines.index("FAIL  onnxruntime on CPU")
    assert (
        lines[at + 1] == "  why        size_reduction>=95%: 92.9 % smaller, the gate asks for 95 %"
    )
    assert any("closest    int8-w4, which did not pass" in line for line in lines)
    assert lines[-1].startswith("FAIL  exit 1: a gate failed")


def test_terminal_without_data_says_that_accuracy_was_not_judged():
    bare = candidate("half", 0.0, None, score=None, comparison=None, timings=[], layers=[])
    text = "\n".join(
        terminal(record(target(state="not_judged", shipped="half", candidates=[bare])))
    )
    assert "not judged: no evaluation data" in text


def test_terminal_without_labels_gives_agreement():
    score = Score("agreement", None, n=512)
    compared = Comparison(agreement=0.98, sqnr_db=21.4, n=512)
    one = candidate("int8", 0.0, 2.0, score=score, comparison=compared)
    text = "\n".join(terminal(record(target(shipped="int8", candidates=[one]))))
    assert "no labels: answers as the original on 98.0 %, SQNR 21.4 dB, n = 512" in text


def stopped() -> RunRecord:
    """int8 ships, because int8-w4 failed its size gate before it."""
    one = target(shipped="int8")
    failed = dataclasses.replace(one.candidates[0], checks=checks("fail"), state="fail")
    return record(dataclasses.replace(one, candidates=[failed, *one.candidates[1:]]))


def test_what_was_tried_first_says_what_stopped_it():
    text = "\n".join(terminal(stopped()))
    assert "not taken  int8-w4: size_reduction>=95%: 92.9 % smaller, the gate asks" in text
    assert "int8-w4 was not taken" in html(stopped())


def test_doubts_that_differ_in_numbers_alone_are_said_once():
    one = target()
    noisy = [
        dataclasses.replace(c, timings=[timing(1, 1.0, 1.0, doubts=[f"{i}.5 cores busy"])])
        for i, c in enumerate(one.candidates)
    ]
    found = notices(record(dataclasses.replace(one, candidates=noisy)))
    assert found == [("onnxruntime: int8-w4, int8, half, twin", "batch 1: 0.5 cores busy")]


def test_microseconds_have_bounds_in_microseconds():
    one = candidate("int8", 0.0, 2.0, timings=[timing(1, 0.0669, 2.0)])
    table = before_after(record(), target(shipped="int8", candidates=[one]))
    assert ("66.9 µs", "66.1–67.7") in dict(table["rows"])["Batch 1: p50"]


def test_only_layers_that_were_asked_for_can_differ():
    rows = [LayerRow("a", "Conv", "", "float32"), LayerRow("b", "Conv", "int8", "float32")]
    assert [differs(row) for row in rows] == [False, True]


def test_fused_and_half_precision_are_as_asked():
    rows = [LayerRow("a", "Relu", "int8", "fused"), LayerRow("b", "Conv", "float32", "bfloat16")]
    assert [differs(row) for row in rows] == [False, False]


def test_only_executed_layers_are_counted():
    rows = [
        LayerRow("a", "Conv", "int8", "int8", 9, 40),
        LayerRow("a.relu", "Conv", "int8", "int8"),
        LayerRow("flatten", "Reshape", "", "float32"),
        LayerRow("head", "Gemm", "float32", "float32", 4, 0, "kept float by the recipe"),
    ]
    seen = layer_view(candidate("int8", 0.0, 2.0, layers=rows))
    assert seen["summary"] == "2 layers: 1 int8, 1 float32; without a time of their own: 2 more"
    assert seen["kept"] == [("head", "kept float by the recipe", "4 B")]


def test_gate_sentences_lose_the_verdict_that_stands_beside_them():
    check = Check("g", "fail", "model has 59 kB, limit 1 kB: fail, n=4")
    assert check_text(check) == "model has 59 kB, limit 1 kB, n=4"
    several = Check("g", "fail", "batch 1: 2x: pass; batch 16: 1x: fail")
    assert check_text(several) == several.text
    doubtful = Check("g", "pass", "p99 5 ms, limit 40 ms: pass (in doubt: noisy; busy)")
    assert check_text(doubtful) == "p99 5 ms, limit 40 ms (in doubt: noisy; busy)"
    unsure = Check("g", "inconclusive", "drop 1 of 9: inconclusive", needed=1200)
    assert check_text(unsure) == "drop 1 of 9 (1,200 samples would decide it)"


def test_a_bare_record_has_reports(tmp_path):
    bare = candidate(
        "half", 0.0, None, score=None, comparison=None, timings=[], layers=[], ledger=[]
    )
    made = record(target(state="not_judged", shipped="half", candidates=[bare]), steps=[], data=[])
    write_reports(made, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["junit.xml", "report.html", "report.md"]


def test_reports_are_pure(tmp_path):
    made = KINDS["mixed"]
    before = record_text(made)
    assert html(made) == html(parse_record(before))
    assert markdown(made) == markdown(made)
    assert json.loads(record_text(made)) == json.loads(before)
