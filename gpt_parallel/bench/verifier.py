"""Proves cases: makes a single-device reference once per workload, has it judged once, and holds runs against it."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from gpt_parallel.base.redaction import redact
from gpt_parallel.bench import verdicts
from gpt_parallel.bench.runner import Runner, fault_note
from gpt_parallel.bench.verification import Records, prove, records_of, tokens_of, verify
from gpt_parallel.launch.failure import LaunchError
from gpt_parallel.schema.result import RankReport, TokenScore, Verification
from gpt_parallel.schema.run import JobKind, RequestTokens, RunSpec

ENGINE = "engine"
_MAX_TRIES = 2


class VerificationError(RuntimeError):
    """A run whose tokens are not those of the single-device reference, or which has no reference that holds."""

    def __init__(self, spec: RunSpec, verification: Verification, what: str = "") -> None:
        self.verification = verification
        what = what or "mismatch with the single-device reference, timings are not valid"
        shown = "\n".join(f"  {problem}" for problem in verification.problems[:8])
        more = len(verification.problems) - 8
        super().__init__(
            redact(
                f"{spec.name}: {what}{fault_note(spec.execution.fault)}\n{shown}"
                + (f"\n  … and {more} more" if more > 0 else "")
            )
        )


class _Reference(NamedTuple):
    """What one device generates, and what the judge has against it."""

    records: Records
    problems: tuple[str, ...]


class Verifier:
    """Holds runs against what one device generates, once `judge` has proved that."""

    def __init__(self, runner: Runner, judge: str) -> None:
        self._runner = runner
        self._kind = JobKind.SCORE if judge == ENGINE else JobKind.JUDGE
        self._records: dict[str, Records] = {}
        self._references: dict[str, _Reference] = {}
        self._failures: dict[str, list[LaunchError]] = {}

    @property
    def judge(self) -> str:
        """Who proves references. Raises SpecError where transformers is to, and is not installed."""
        return ENGINE if self._kind == JobKind.SCORE else verdicts.judge_name()

    def reference(self, spec: RunSpec) -> Records:
        """What one device generates for this work, made and judged at the first need, and so before any timed round.

        If that failed it is tried again when it is needed next, for a machine may have been busy; then no more.
        Raises LaunchError, and VerificationError if the judge refutes it.
        """
        judge, key = self.judge, spec.single_device().model_dump_json()
        failures = self._failures.setdefault(key, [])
        if key not in self._references:
            if len(failures) == _MAX_TRIES:
                raise LaunchError(str(failures[-1]))
            try:
                if key not in self._records:
                    self._records[key] = records_of(self._runner.generate_alone(spec))
                records = self._records[key]
                self._references[key] = _Reference(records, tuple(self._disproof(spec, records)))
            except LaunchError as error:
                failures.append(error)
                raise
        made = self._references[key]
        if made.problems:
            verification = Verification(status="mismatch", judge=judge, problems=made.problems)
            what = f"its single-device reference is not what {judge} computes, so nothing can be verified by it"
            raise VerificationError(spec, verification, what)
        return made.records

    def _disproof(self, spec: RunSpec, records: Records) -> list[str]:
        if self._kind == JobKind.SCORE:
            return []
        digest = verdicts.digest_of(spec, records)
        if verdicts.is_kept(digest):
            return []
        problems = prove(records, self._score(spec, tokens_of(records)), spec.execution.dtype)
        if not problems:
            verdicts.keep(digest)
        return problems

    def _score(self, spec: RunSpec, tokens: Sequence[RequestTokens]) -> Sequence[TokenScore]:
        return self._runner.score(spec, tokens, self._kind)

    def verify(self, spec: RunSpec, ranks: Sequence[RankReport]) -> Verification:
        """The verdict on a run. Raises VerificationError on a mismatch, LaunchError if the judge could not be asked."""
        score = partial(self._score, spec)
        return _passed(spec, verify(ranks, self.reference(spec), spec.execution.dtype, score, self.judge))


def _passed(spec: RunSpec, verification: Verification) -> Verification:
    if not verification.passed:
        raise VerificationError(spec, verification)
    return verification
