"""The rules and results of a gate."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from fnmatch import fnmatchcase


class Verdict(str, Enum):
    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"
    ERROR = "ERROR"


EXIT_CODES = {Verdict.PASS: 0, Verdict.FAIL: 1, Verdict.ERROR: 2, Verdict.INCONCLUSIVE: 3}


@dataclass(frozen=True)
class Rules:
    """`thresholds` are (case pattern, worst tolerated change as a fraction); the first match counts."""

    metric: str = "throughput"
    threshold: float = 0.05
    thresholds: tuple[tuple[str, float], ...] = ()
    allow_new: bool = False
    allow_removed: bool = False
    allow_other_host: bool = False
    allow_single_launch: bool = False

    def threshold_of(self, case: str) -> float:
        return next((value for pattern, value in self.thresholds if matches(pattern, case)), self.threshold)


def matches(pattern: str, case: str) -> bool:
    return fnmatchcase(case, pattern) or pattern in case


@dataclass(frozen=True)
class GateVerdict:
    """`change` is relative, worse is positive: time, memory, or the inverse of throughput."""

    case: str
    verdict: Verdict
    reason: str
    change: float | None = None
    p_value: float | None = None
    launches: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class GateResult:
    """`notes` are differences between the runs that do not prevent a comparison."""

    rules: Rules
    verdicts: list[GateVerdict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> Verdict:
        """The worst: an error hides everything, a failure hides doubt."""
        found = {entry.verdict for entry in self.verdicts}
        for verdict in (Verdict.ERROR, Verdict.FAIL, Verdict.INCONCLUSIVE):
            if verdict in found:
                return verdict
        return Verdict.PASS if found else Verdict.ERROR

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.verdict]

    def add_error(self, case: str, reason: str) -> None:
        self.verdicts.append(GateVerdict(case, Verdict.ERROR, reason))

    def add_notes(self, notes: Sequence[str]) -> None:
        self.notes.extend(note for note in notes if note not in self.notes)
