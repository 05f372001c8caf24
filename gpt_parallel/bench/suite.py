"""Runs cases: resolves settings once, launches each case and verifies it with one reference per workload."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gpt_parallel.base.atomic_files import write_atomically
from gpt_parallel.base.errors import SpecError, why_no_directory
from gpt_parallel.base.escaping import slug
from gpt_parallel.base.redaction import redact, redact_log, redact_tree
from gpt_parallel.bench.efficiency import efficiency
from gpt_parallel.bench.environment import describe_environment
from gpt_parallel.bench.figures import energy, figures
from gpt_parallel.bench.runner import Runner, fault_note
from gpt_parallel.bench.verification import records_of
from gpt_parallel.bench.verifier import VerificationError, Verifier
from gpt_parallel.inputs.execution import resolve_execution
from gpt_parallel.inputs.meshes import chosen_mesh
from gpt_parallel.inputs.models import resolve_model
from gpt_parallel.inputs.prompt_files.read import PromptFile, read_prompt_file, read_prompts
from gpt_parallel.inputs.prompts import (
    Prompt,
    check_requests,
    make_requests,
    random_prompts,
    shipped_prompts,
)
from gpt_parallel.inputs.request_lengths import fit_new_tokens
from gpt_parallel.inputs.settings import Settings
from gpt_parallel.inputs.tokenizer import Tokenizer
from gpt_parallel.launch.watch import OnPhase
from gpt_parallel.layout.strategies import is_degenerate
from gpt_parallel.schema.fault import FaultSpec
from gpt_parallel.schema.model import ModelSpec
from gpt_parallel.schema.result import FAULT_INJECTED, Diagnostics, Output, RankReport, RunResult, Verification
from gpt_parallel.schema.run import MeshSpec, RunSpec, SamplingSpec, WorkloadSpec


class InjectedFaultError(VerificationError):
    """A run with an injected fault finished; its `result` has no figures."""

    def __init__(self, result: RunResult) -> None:
        self.verification, self.result = result.verification, result
        told = fault_note(result.spec.execution.fault)
        RuntimeError.__init__(self, f"{result.spec.name}: the run succeeded, but its measurements do not count{told}")


class Suite:
    """All cases of one set of settings, which share model, prompts and references.

    A `fault` is injected into cases, not into references.
    """

    def __init__(self, settings: Settings, on_phase: OnPhase | None = None, fault: FaultSpec | None = None) -> None:
        redact_log()
        self.settings = settings
        self._fault = fault
        self.notes: list[str] = []
        """What the user should know of the prompts, such as keys without effect; known with the workload."""
        self.runner = Runner(settings, on_phase)
        self.verifier = Verifier(self.runner, settings.judge)

    @cached_property
    def model(self) -> ModelSpec:
        settings = self.settings
        return resolve_model(settings.model, settings.weights, settings.weights_seed, offline=settings.offline)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.model)

    @cached_property
    def workload(self) -> WorkloadSpec:
        settings = self.settings
        file, prompts = self._prompts
        places = file.places if file else []
        requests = make_requests(
            prompts,
            self.tokenizer.encode,
            num_requests=settings.num_samples,
            prompt_tokens=settings.prompt_tokens,
            max_new_tokens=settings.max_length,
            places=places,
            encode_chat=self.tokenizer.encode_chat,
        )
        cut = None
        if settings.max_length is not None:  # a limit for all requests; a prompt's own max_length is never changed
            requests, cut = fit_new_tokens(requests, self.model.architecture.max_positions)
            self.notes += [cut] if cut else []
        check_requests(requests, places, self.model.name, self.model.architecture)
        return WorkloadSpec(
            requests=requests,
            batch_size=settings.batch_size,
            sampling=SamplingSpec(
                temperature=settings.temperature,
                top_k=settings.top_k,
                top_p=settings.top_p,
                repetition_penalty=settings.repetition_penalty,
                seed=settings.seed,
            ),
            source="; ".join(filter(None, (self._prompt_source(), cut))),
        )

    @cached_property
    def _prompts(self) -> tuple[PromptFile | None, list[Prompt]]:
        """The user's file, if there is one, and the prompts."""
        settings = self.settings
        if settings.prompts == "random":
            count, length = settings.num_samples or 20, settings.prompt_tokens or 64
            return None, random_prompts(count, length, self.model.architecture.vocab_size, settings.seed)
        if settings.prompts == "builtin":
            return None, read_prompts(shipped_prompts())
        file = read_prompt_file(Path(settings.prompts))
        self.notes += [file.note_on_ignored] if file.note_on_ignored else []
        return file, file.prompts

    def _prompt_source(self) -> str:
        if self.settings.prompts == "random":
            return f"random ids (seed {self.settings.seed})"
        file, prompts = self._prompts
        name = "shipped prompts" if file is None else file.name(self.tokenizer.encode_chat is not None)
        has_text = any(prompt.prompt is not None for prompt in prompts)
        return f"{name}, {self.tokenizer.description if has_text else 'given token ids'}"

    def mesh(self, strategy: str, num_gpus: int) -> MeshSpec:
        return chosen_mesh(self.settings, strategy, num_gpus)

    def spec(self, strategy: str, num_gpus: int, batch_size: int | None = None) -> RunSpec:
        """One case, resolved and checked; without `batch_size` it has that of the settings.

        Raises SpecError with everything that is wrong with it.
        """
        batch_size = batch_size or self.settings.batch_size
        mesh = self.mesh(strategy, num_gpus)
        execution = resolve_execution(self.settings, num_gpus).model_copy(update={"fault": self._fault})
        _ = self.runner.external  # fail now if the launcher's address cannot be used
        if self.settings.profile is not None:
            name = slug(f"{strategy}-{num_gpus}gpu-batch{batch_size}")
            directory = Path(self.settings.profile).absolute() / name
            execution = execution.model_copy(update={"profile": str(directory)})
        try:
            return RunSpec(
                strategy=strategy,
                mesh=mesh,
                model=self.model,
                workload=self.workload.model_copy(update={"batch_size": batch_size}),
                execution=execution,
                degenerate=is_degenerate(strategy, mesh),
            )
        except ValidationError as error:
            raise SpecError.from_validation(error) from error

    def run(self, spec: RunSpec, *, timed: bool = True) -> RunResult:
        """Launch a case and verify it; with `timed` False it has no rounds.

        Raises LaunchError if a rank fails, VerificationError on a mismatch and InjectedFaultError after a fault.
        """
        if not timed:
            spec = spec.with_execution(rounds=0)
        if self.settings.verify:
            self.verifier.reference(spec)  # made and judged before timed rounds, beside which nothing may run
        if spec.execution.profile is not None:
            _make_directory(Path(spec.execution.profile))
        try:
            spec, ranks, gpus, no_energy = self.runner.run(spec)
        finally:
            if spec.execution.profile is not None:
                _redact_traces(Path(spec.execution.profile))
        verification = Verification(status="skipped")
        if self.settings.verify:
            verification = self.verifier.verify(spec, ranks)
        result = self._result(spec, ranks, verification)
        return result.model_copy(
            update={
                "gpus": gpus,
                "energy": energy(spec, gpus, no_energy),
                "efficiency": efficiency(spec, ranks, result.figures),
            }
        )

    def result_of_peer(self, spec: RunSpec, rank: RankReport) -> RunResult:
        """The result of another engine on one device, verified. Raises VerificationError on a mismatch."""
        return self._result(spec, [rank], self.verifier.verify(spec, [rank]))

    def _result(
        self,
        spec: RunSpec,
        ranks: Sequence[RankReport],
        verification: Verification,
    ) -> RunResult:
        is_faulty, records = spec.execution.fault is not None, records_of(ranks)
        if is_faulty:
            verification = Verification(status=FAULT_INJECTED)
            ranks = [_without_figures(rank) for rank in ranks]
        result = RunResult(
            spec=spec,
            weights_origin=spec.model.weights_origin,
            verification=verification,
            figures=figures(spec, ranks),
            environment=describe_environment(ranks),
            ranks=tuple(_without_records(rank) for rank in ranks),
            outputs=tuple(
                Output(request_id=key, tokens=record.tokens, text=self.tokenizer.decode(record.tokens))
                for key, record in sorted(records.items())
            ),
        )
        result = redact_tree(result)
        if is_faulty:
            raise InjectedFaultError(result)
        return result


def _without_figures(rank: RankReport) -> RankReport:
    diagnostics = Diagnostics(peak_memory_bytes=rank.diagnostics.peak_memory_bytes)
    return _generated(rank, rounds=()).model_copy(update={"diagnostics": diagnostics})


def _without_records(rank: RankReport) -> RankReport:
    """Remove the records, since the result's outputs have the tokens."""
    return _generated(rank, records=())


def _generated(rank: RankReport, **changes: Any) -> RankReport:
    assert rank.generated is not None
    return rank.model_copy(update={"generated": rank.generated.model_copy(update=changes)})


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(f"profile directory {path}: cannot be made ({why_no_directory(error)})") from error


def _redact_traces(directory: Path) -> None:
    """Redact the traces and rewrite them with the umask's permissions; ranks write them for their user alone.

    Incomplete files of killed ranks are removed. Traces on other machines' disks are not touched.
    """
    for path in directory.glob(".rank_*"):
        path.unlink(missing_ok=True)
    for path in directory.glob("rank_*.*"):
        write_atomically(path, redact(path.read_text(encoding="utf-8", errors="replace")))
