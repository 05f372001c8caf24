"""Launches jobs locally or with an external launcher, while devices are claimed and GPUs are sampled."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import NamedTuple

from gpt_parallel.bench.verification import TOLERANCES
from gpt_parallel.inputs.settings import Settings
from gpt_parallel.launch.claims import Claimed, claim_devices
from gpt_parallel.launch.cluster.external import External
from gpt_parallel.launch.failure import LaunchError
from gpt_parallel.launch.gpu_memory import check_gpu_memory
from gpt_parallel.launch.gpu_sampler import gpu_sampler
from gpt_parallel.launch.local import launch
from gpt_parallel.launch.watch import Observer, OnPhase
from gpt_parallel.schema.fault import FaultSpec
from gpt_parallel.schema.result import RankReport, TokenScore
from gpt_parallel.schema.run import Job, JobKind, RequestTokens, RunSpec
from gpt_parallel.schema.telemetry import GpuTelemetry

_SINGLE = {
    "reference": "the single-device reference run",
    "judge": "the judge's pass by transformers (judge 'engine' skips it)",
}


class Run(NamedTuple):
    """The result of a case's launch. `spec` is updated with what ranks found; `no_energy` explains missing energy."""

    spec: RunSpec
    ranks: tuple[RankReport, ...]
    gpus: tuple[GpuTelemetry, ...]
    no_energy: str


class Runner:
    """The launches of a suite. Single-device jobs run on this machine, even if a launcher starts the cases."""

    def __init__(self, settings: Settings, on_phase: OnPhase | None) -> None:
        self._settings = settings
        self.on_phase: OnPhase = on_phase or (lambda rank, phase: None)

    @cached_property
    def external(self) -> External | None:
        """The user's launcher. Raises SpecError if it is missing or its address cannot be used."""
        settings = self._settings
        return External.from_text(settings.launcher, settings.launcher_address) if settings.launcher else None

    def run(self, spec: RunSpec) -> Run:
        """Launch a case. Raises LaunchError, and SpecError if its devices are busy and the settings say not to wait."""
        job, elsewhere = Job(kind=JobKind.GENERATE, spec=spec), self.external is not None
        with (
            _fault_noted(spec.execution.fault),
            gpu_sampler(spec.execution, spec.num_gpus, elsewhere=elsewhere) as sampler,
        ):
            if self.external is not None:
                ranks = self._launch_by(self.external, job)
            else:
                ranks = self._launch(job, self.on_phase, sampler)
            gpus = sampler.telemetry(ranks)
        if any(rank.place.oversubscribed for rank in ranks):
            spec = spec.with_execution(oversubscribed=True)
        return Run(spec, ranks, gpus, sampler.reason)

    def generate_alone(self, spec: RunSpec) -> tuple[RankReport, ...]:
        """Run the recorded pass of `spec`'s work on one device."""
        return self._launch_single(Job(kind=JobKind.GENERATE, spec=spec.single_device()), "reference")

    def score(self, spec: RunSpec, tokens: Sequence[RequestTokens], kind: JobKind) -> Sequence[TokenScore]:
        """Score each of `tokens` on one device with the engine (`kind` SCORE) or with transformers (JUDGE)."""
        tolerance = TOLERANCES[spec.execution.dtype]
        job = Job(kind=kind, spec=spec.single_device(), tokens_to_score=tuple(tokens), tolerance=tolerance)
        return self._launch_single(job, "judge" if kind == JobKind.JUDGE else "reference")[0].scored or ()

    def _launch_single(self, job: Job, name: str) -> tuple[RankReport, ...]:
        try:
            return self._launch(job, lambda rank, phase: self.on_phase(rank, f"{name}: {phase}"))
        except LaunchError as error:
            raise LaunchError(f"{_SINGLE[name]}: {error}") from error

    def _launch(self, job: Job, on_phase: OnPhase, observer: Observer | None = None) -> tuple[RankReport, ...]:
        with self._claimed(job.spec, on_phase) as claimed:
            check_gpu_memory(job)
            return _mark_shared(launch(job, on_phase=on_phase, observer=observer, cores=claimed.cores), claimed)

    def _launch_by(self, external: External, job: Job) -> tuple[RankReport, ...]:
        """Launch externally. Devices are claimed only if all ranks are local; a launcher chooses remote ones itself."""
        if not external.is_local:
            return external.launch(job, on_phase=self.on_phase)
        with self._claimed(job.spec, self.on_phase) as claimed:
            return _mark_shared(external.launch(job, on_phase=self.on_phase, cores=claimed.cores), claimed)

    def _claimed(self, spec: RunSpec, on_phase: OnPhase) -> AbstractContextManager[Claimed]:
        when_busy = self._settings.when_busy
        return claim_devices(spec.execution, spec.num_gpus, when_busy, lambda text: on_phase(0, text))


def _mark_shared(ranks: tuple[RankReport, ...], claimed: Claimed) -> tuple[RankReport, ...]:
    return tuple(rank.placed(shared=claimed.are_shared) for rank in ranks)


def fault_note(fault: FaultSpec | None) -> str:
    """The note about an injected fault in messages."""
    return "" if fault is None else f" (fault injected: {fault})"


@contextmanager
def _fault_noted(fault: FaultSpec | None) -> Iterator[None]:
    """Add the note about an injected fault to the first line of a failed launch."""
    try:
        yield
    except LaunchError as error:
        if fault is None:
            raise
        head, end, rest = str(error).partition("\n")
        raise LaunchError(head + fault_note(fault) + end + rest) from error
