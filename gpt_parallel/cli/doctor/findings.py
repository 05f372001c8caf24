"""What doctor has to say about one thing: a sentence, how bad it is, and what to do about it."""

from collections.abc import Sequence
from typing import Literal

from gpt_parallel.schema.frozen import Frozen

Level = Literal["ok", "note", "warning", "problem"]


class Finding(Frozen):
    """`problem`: the main job cannot run. `warning`: it can, but not as it should. Both have a remedy."""

    topic: str
    level: Level
    text: str
    remedy: str = ""


def can_run(findings: Sequence[Finding]) -> bool:
    return all(finding.level != "problem" for finding in findings)
