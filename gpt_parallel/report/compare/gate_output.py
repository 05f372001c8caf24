"""A gate's verdicts as text, GitHub annotations and JUnit XML."""

import xml.etree.ElementTree as ElementTree

from gpt_parallel.base.escaping import plain
from gpt_parallel.report.compare.verdicts import GateResult, GateVerdict, Verdict


def to_text(result: GateResult) -> str:
    """One line per case, worst first, then notes, then the summary."""
    width = max((len(entry.case) for entry in result.verdicts), default=0)
    lines = [
        f"{entry.verdict.value:<12}  {plain(entry.case):<{width}}  {_detail(entry)}" for entry in _worst_first(result)
    ]
    counts = ", ".join(
        f"{sum(entry.verdict == verdict for entry in result.verdicts)} {verdict.value}" for verdict in Verdict
    )
    notes = [f"note: {plain(note)}" for note in result.notes]
    return "\n".join([*lines, "", *notes, f"{result.verdict.value}: {counts} ({result.rules.metric})"])


def to_github(result: GateResult) -> str:
    """Workflow commands that GitHub shows as annotations."""
    kinds = {Verdict.FAIL: "error", Verdict.ERROR: "error", Verdict.INCONCLUSIVE: "warning"}
    lines = [
        f"::{kinds[entry.verdict]} title={_title(entry)}::{_escape(_detail(entry))}"
        for entry in _worst_first(result)
        if entry.verdict in kinds
    ]
    notices = [*result.notes, to_text(result).splitlines()[-1]]
    return "\n".join([*lines, *(f"::notice title=benchmark gate::{_escape(notice)}" for notice in notices)])


def to_junit(result: GateResult) -> str:
    """A JUnit file: FAIL is a failure, ERROR an error, INCONCLUSIVE a failure that says so."""
    counts = {verdict: sum(entry.verdict == verdict for entry in result.verdicts) for verdict in Verdict}
    suite = ElementTree.Element(
        "testsuite",
        name="gpt-parallel gate",
        tests=str(len(result.verdicts)),
        failures=str(counts[Verdict.FAIL] + counts[Verdict.INCONCLUSIVE]),
        errors=str(counts[Verdict.ERROR]),
    )
    for entry in result.verdicts:
        case = ElementTree.SubElement(suite, "testcase", classname="gate", name=plain(entry.case))
        if entry.verdict != Verdict.PASS:
            tag = "error" if entry.verdict == Verdict.ERROR else "failure"
            ElementTree.SubElement(case, tag, type=entry.verdict.value, message=plain(_detail(entry)))
    if result.notes:
        ElementTree.SubElement(suite, "system-out").text = "\n".join(map(plain, result.notes))
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _title(entry: GateVerdict) -> str:
    return _escape(f"{entry.verdict.value} {entry.case}").replace(":", "%3A").replace(",", "%2C")


def _worst_first(result: GateResult) -> list[GateVerdict]:
    order = [Verdict.ERROR, Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS]
    return sorted(result.verdicts, key=lambda entry: order.index(entry.verdict))


def _detail(entry: GateVerdict) -> str:
    if entry.change is None:
        return plain(entry.reason)
    direction = "worse" if entry.change > 0 else "better"
    counts = f"{entry.launches[0]} and {entry.launches[1]} launches"
    return f"{abs(entry.change):.1%} {direction} ({counts}): {plain(entry.reason)}"


def _escape(text: str) -> str:
    """GitHub's own escapes for workflow commands (actions/toolkit, core/src/command.ts)."""
    return plain(text).replace("%", "%25")
