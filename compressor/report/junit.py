"""A run as JUnit XML: one suite a target, one case a gate."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Literal

from compressor.report import show
from compressor.result import Check, RunRecord, TargetResult

OnInconclusive = Literal["fail", "warn"]


def junit(record: RunRecord, *, on_inconclusive: OnInconclusive | None = None) -> str:
    """The run as JUnit XML, with a newline at its end.

    A failed gate is a `<failure>`, one that could not be judged is `<skipped>`, an error of the
    target is an `<error>`. An inconclusive gate is a `<failure>` (`"fail"`) or `<skipped>`
    (`"warn"`); None: what the run itself did, whose exit code is 0 where it only warned.
    """
    root = ET.Element(
        "testsuites", name=_xml(record.reference.source), time=f"{record.seconds:.3f}"
    )
    for target in record.targets:
        policy = on_inconclusive or ("fail" if target.exit_code else "warn")
        root.append(_suite(record, target, policy))
    for key in ("tests", "failures", "errors", "skipped"):
        root.set(key, str(sum(int(suite.get(key, "0")) for suite in root)))
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _suite(record: RunRecord, target: TargetResult, on_inconclusive: OnInconclusive) -> ET.Element:
    seconds = sum(step.seconds for step in record.steps if step.target == target.name)
    suite = ET.Element("testsuite", name=_xml(target.name), time=f"{seconds:.3f}")
    suite.set("timestamp", _xml(record.started_utc.rstrip("Z")))
    properties = ET.SubElement(suite, "properties")
    for name, value in _properties(record, target):
        ET.SubElement(properties, "property", name=_xml(name), value=_xml(value))
    chosen = show.subject(target)
    checks = [] if chosen is None or target.failure is not None else chosen.checks
    for check in checks:
        suite.append(_case(record, target, check, on_inconclusive))
    if target.state not in {check.state for check in checks} or target.failure is not None:
        suite.append(_outcome(record, target, on_inconclusive))
    cases = suite.findall("testcase")
    suite.set("tests", str(len(cases)))
    for key, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(key, str(sum(case.find(tag) is not None for case in cases)))
    return suite


def _case(
    record: RunRecord, target: TargetResult, check: Check, on_inconclusive: OnInconclusive
) -> ET.Element:
    case = _new_case(record, target, check.gate)
    text = check.text
    if check.interval is not None:
        text += f" (interval {check.interval[0]:.6g} to {check.interval[1]:.6g})"
    if check.needed is not None:
        text += f" (needed: {check.needed} samples)"
    _mark(case, check.state, text, on_inconclusive)
    return case


def _outcome(
    record: RunRecord, target: TargetResult, on_inconclusive: OnInconclusive
) -> ET.Element:
    """The target's own verdict, where no gate says it."""
    case = _new_case(record, target, "verdict")
    if target.failure is not None:
        error = ET.SubElement(case, "error", type=_xml(target.failure.kind))
        error.set(
            "message",
            _xml(target.failure.message.splitlines()[0] if target.failure.message else ""),
        )
        error.text = _xml(target.failure.message)
    else:
        _mark(case, target.state, target.reason, on_inconclusive)
    return case


def _new_case(record: RunRecord, target: TargetResult, name: str) -> ET.Element:
    classname = f"{record.reference.source}.{target.name}"
    return ET.Element("testcase", classname=_xml(classname), name=_xml(name), time="0")


def _mark(case: ET.Element, state: str, text: str, on_inconclusive: OnInconclusive) -> None:
    if state == "pass":
        ET.SubElement(case, "system-out").text = _xml(text)
    elif state == "fail" or (state == "inconclusive" and on_inconclusive == "fail"):
        shown = text if state == "fail" else f"inconclusive: {text}"
        failure = ET.SubElement(case, "failure", type=state, message=_xml(shown))
        failure.text = _xml(shown)
    else:
        word = state.replace("_", " ")
        ET.SubElement(case, "skipped", message=_xml(f"{word}: {text}"))


def _properties(record: RunRecord, target: TargetResult) -> list[tuple[str, str]]:
    found = [("exit_code", str(target.exit_code)), ("shipped", target.shipped or "nothing")]
    found += [("device", target.device), ("runtime", target.runtime)]
    found += [(f"version {name}", version) for name, version in target.versions.items()]
    chosen = show.subject(target)
    if chosen is not None:
        found += [("candidate", chosen.name), ("size_bytes", str(chosen.size_bytes))]
        found += [("digest", chosen.digest)]
        for timing in chosen.timings:
            value = show.ratio(timing.speedup, timing.speedup_interval)
            found.append((f"speedup batch {timing.batch}", value))
    found += [(f"host {name}", str(value)) for name, value in record.host.items()]
    return found


def _xml(text: str) -> str:
    """`text` with what XML 1.0 cannot hold (control characters, lone surrogates) as U+FFFD."""

    def allowed(c: str) -> bool:
        return c in "\t\n\r" or " " <= c <= "\ud7ff" or "\ue000" <= c <= "\ufffd" or c > "\uffff"

    return "".join(c if allowed(c) else "\ufffd" for c in text)
