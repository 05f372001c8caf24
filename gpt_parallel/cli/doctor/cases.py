"""Judges which cases of a job can run on a machine, and why others cannot: too few GPUs, wrong sizes, no memory."""

from typing import Literal

from gpt_parallel.base.errors import SpecError
from gpt_parallel.bench.suite import Suite
from gpt_parallel.cli.doctor.facts import Facts
from gpt_parallel.inputs.cases import PlannedCase, cases_of
from gpt_parallel.inputs.execution import reason_to_skip
from gpt_parallel.inputs.settings import Settings
from gpt_parallel.layout.cost import gib, rank_bytes
from gpt_parallel.schema.frozen import Frozen
from gpt_parallel.schema.run import RunSpec


class Feasibility(Frozen):
    """Whether a case can run. A case skipped for lack of GPUs is not a fault; a case that would fail is."""

    strategy: str
    num_gpus: int
    batch_size: int | None = None
    outcome: Literal["runs", "skipped", "fails"]
    reason: str = ""

    @property
    def name(self) -> str:
        return PlannedCase(self.strategy, self.num_gpus, self.batch_size).id


def judge_cases(settings: Settings, facts: Facts) -> list[Feasibility]:
    """A verdict for every case of the job that `settings` describe. Raises SpecError if there are no cases."""
    suite = Suite(_on_this_disk(settings))
    return [_judge(case, suite, facts) for case in cases_of(settings)]


def _on_this_disk(settings: Settings) -> Settings:
    """The same job without downloads: random weights, of the same sizes, replace those that are not on this disk."""
    weights = "auto" if settings.weights == "checkpoint" else settings.weights
    return settings.model_copy(update={"offline": True, "weights": weights})


def _judge(case: PlannedCase, suite: Suite, facts: Facts) -> Feasibility:
    def verdict(outcome: Literal["runs", "skipped", "fails"], reason: str | None = None) -> Feasibility:
        return Feasibility(**case._asdict(), outcome=outcome, reason=reason or "")

    if reason := reason_to_skip(suite.settings, case.num_gpus):
        return verdict("skipped", reason)
    try:
        spec = suite.spec(*case)
    except SpecError as error:
        return verdict("fails", "; ".join(error.problems))
    reason = _reason_too_large(spec, facts)
    if reason is None and suite.settings.verify:
        reason = _reason_too_large(spec.single_device(), facts)
        reason = f"its single-device reference {reason} (--no-verify skips it)" if reason else None
    return verdict("fails" if reason else "runs", reason)


def _reason_too_large(spec: RunSpec, facts: Facts) -> str | None:
    needed, size = rank_bytes(spec), spec.mesh.size
    if spec.execution.device == "cpu":
        available, where = facts.available_bytes, "of memory"
        needed *= size
    else:
        gpus = facts.visible_gpus
        available, where = min((gpu.free_bytes for gpu in gpus), default=0), "on each GPU"
        needed *= -(-size // max(1, len(gpus)))
    if needed <= available:
        return None
    return f"needs about {gib(needed)} {where}, {gib(available)} are free"
