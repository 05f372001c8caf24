"""Verifies cases: makes and judges one single-device reference per workload, and compares runs with it."""

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
    """A run's tokens differ from its single-device reference, or the reference is not correct."""

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
    """The records of one device, and the judge's problems with them."""

    records: Records
    problems: tuple[str, ...]


class Verifier:
    """Compares runs with a single-device reference that `judge` has proved."""

    def __init__(self, runner: Runner, judge: str) -> None:
        self._runner = runner
        self._kind = JobKind.SCORE if judge == ENGINE else JobKind.JUDGE
        self._records: dict[str, Records] = {}
        self._references: dict[str, _Reference] = {}
        self._failures: dict[str, list[LaunchError]] = {}

    @property
    def judge(self) -> str:
        """The name of the judge. Raises SpecError if it is transformers, which is not installed."""
        return ENGINE if self._kind == JobKind.SCORE else verdicts.judge_name()

    def reference(self, spec: RunSpec) -> Records:
        """The reference for this work, made and judged when first needed, before any timed round.

        After a failure it is tried once more when needed again, since the machine may have been busy.
        Raises LaunchError, and VerificationError if the judge disagrees.
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
        """Verify a run. Raises VerificationError on a mismatch, LaunchError if the judge's launch fails."""
        score = partial(self._score, spec)
        return _passed(spec, verify(ranks, self.reference(spec), spec.execution.dtype, score, self.judge))


def _passed(spec: RunSpec, verification: Verification) -> Verification:
    if not verification.passed:
        raise VerificationError(spec, verification)
    return verification
