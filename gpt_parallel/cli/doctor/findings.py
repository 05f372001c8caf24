"""Doctor's finding about one topic: a sentence, its severity, and a remedy."""

from collections.abc import Sequence
from typing import Literal

from gpt_parallel.schema.frozen import Frozen

Level = Literal["ok", "note", "warning", "problem"]


class Finding(Frozen):
    """One finding. `problem`: the job cannot run. `warning`: it can run, but not as it should. Both have a remedy."""

    topic: str
    level: Level
    text: str
    remedy: str = ""


def can_run(findings: Sequence[Finding]) -> bool:
    return all(finding.level != "problem" for finding in findings)


def ok(topic: str, text: str) -> Finding:
    return Finding(topic=topic, level="ok", text=text)


def note(topic: str, text: str) -> Finding:
    return Finding(topic=topic, level="note", text=text)


def warning(topic: str, text: str, remedy: str) -> Finding:
    return Finding(topic=topic, level="warning", text=text, remedy=remedy)


def problem(topic: str, text: str, remedy: str) -> Finding:
    return Finding(topic=topic, level="problem", text=text, remedy=remedy)
