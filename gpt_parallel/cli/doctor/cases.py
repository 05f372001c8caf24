"""Which cases of the main job can run on a machine, and why others cannot: too few GPUs, wrong sizes, no memory."""

from typing import Literal

from gpt_parallel.base.errors import SpecError
from gpt_parallel.bench.suite import Suite
from gpt_parallel.cli.doctor.facts import Facts
from gpt_parallel.inputs.execution import CUSTOM, custom_mesh, device_counts, reason_to_skip
from gpt_parallel.inputs.settings import Settings
from gpt_parallel.layout.cost import gib, rank_bytes
from gpt_parallel.layout.strategies import cases
from gpt_parallel.schema.frozen import Frozen
from gpt_parallel.schema.run import RunSpec


class Feasibility(Frozen):
    """Whether a case can run. A case that is skipped for want of GPUs is no fault; one that would fail is."""

    strategy: str
    num_gpus: int
    outcome: Literal["runs", "skipped", "fails"]
    reason: str = ""


def judge_cases(settings: Settings, facts: Facts) -> list[Feasibility]:
    """A verdict for every case of the job that `settings` describe. Raises SpecError where there are no cases."""
    suite = Suite(_on_this_disk(settings))
    if settings.has_custom_mesh:
        counts = settings.device_counts or (None,)
        rows = [(CUSTOM, custom_mesh(settings, count).size) for count in counts]
    else:
        rows = cases(device_counts(settings), settings.strategies)
    return [_judge(strategy, count, suite, facts) for strategy, count in rows]


def _on_this_disk(settings: Settings) -> Settings:
    """The same job without fetching anything: where weights are not here yet, random ones have the same sizes."""
    weights = "auto" if settings.weights == "checkpoint" else settings.weights
    return settings.model_copy(update={"offline": True, "weights": weights})


def _judge(strategy: str, num_gpus: int, suite: Suite, facts: Facts) -> Feasibility:
    if reason := reason_to_skip(suite.settings, num_gpus):
        return Feasibility(strategy=strategy, num_gpus=num_gpus, outcome="skipped", reason=reason)
    try:
        spec = suite.spec(strategy, num_gpus)
    except SpecError as error:
        return Feasibility(strategy=strategy, num_gpus=num_gpus, outcome="fails", reason="; ".join(error.problems))
    reason = _why_too_large(spec, facts)
    if reason is None and suite.settings.verify:
        reason = _why_too_large(spec.single_device(), facts)
        reason = f"its single-device reference {reason} (--no-verify does without)" if reason else None
    outcome: Literal["runs", "fails"] = "fails" if reason else "runs"
    return Feasibility(strategy=strategy, num_gpus=num_gpus, outcome=outcome, reason=reason or "")


def _why_too_large(spec: RunSpec, facts: Facts) -> str | None:
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
