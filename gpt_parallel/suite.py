"""Runs cases: resolves settings once, launches each case and proves it against a reference made once per workload."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError

from gpt_parallel.cost import efficiency
from gpt_parallel.environment import describe_environment
from gpt_parallel.launch.devices import resolve_execution
from gpt_parallel.launch.failure import LaunchError
from gpt_parallel.launch.gpu_sampler import gpu_sampler
from gpt_parallel.launch.local import launch
from gpt_parallel.launch.watch import OnPhase
from gpt_parallel.measure import energy, figures
from gpt_parallel.models import Tokenizer, resolve_model
from gpt_parallel.prompts import Prompt, make_requests, random_prompts, read_prompts, shipped_prompts
from gpt_parallel.result import Output, RankReport, RunResult, TokenScore, Verification
from gpt_parallel.settings import Settings
from gpt_parallel.spec import (
    Job,
    JobKind,
    MeshSpec,
    ModelSpec,
    RunSpec,
    SamplingSpec,
    SpecError,
    WorkloadSpec,
)
from gpt_parallel.strategies import is_degenerate, mesh_for
from gpt_parallel.verify import TOLERANCES, Records, records_of, verify, verify_tokens

CUSTOM = "custom"


class VerificationError(RuntimeError):
    """A run whose tokens are not those of the single-device reference."""

    def __init__(self, spec: RunSpec, verification: Verification) -> None:
        self.verification = verification
        shown = "\n".join(f"  {problem}" for problem in verification.problems[:8])
        more = len(verification.problems) - 8
        super().__init__(
            f"{spec.name}: mismatch with the single-device reference, timings are not valid\n{shown}"
            + (f"\n  … and {more} more" if more > 0 else "")
        )


class Suite:
    """All cases of one set of settings. Model, prompts and references are looked up or made once and shared."""

    def __init__(self, settings: Settings, on_phase: OnPhase | None = None) -> None:
        self.settings = settings
        self._on_phase = on_phase
        self._references: dict[str, Records | LaunchError] = {}

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
        requests = make_requests(
            self._prompts,
            self.tokenizer.encode,
            num_requests=settings.num_samples,
            prompt_tokens=settings.prompt_tokens,
            max_new_tokens=settings.max_length,
        )
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
            source=self._prompt_source(),
        )

    @cached_property
    def _prompts(self) -> list[Prompt]:
        settings = self.settings
        if settings.prompts == "random":
            return random_prompts(
                settings.num_samples or 20,
                settings.prompt_tokens or 64,
                self.model.architecture.vocab_size,
                settings.seed,
            )
        return read_prompts(shipped_prompts() if settings.prompts == "builtin" else Path(settings.prompts))

    def _prompt_source(self) -> str:
        if self.settings.prompts == "random":
            return f"random ids (seed {self.settings.seed})"
        name = "shipped prompts" if self.settings.prompts == "builtin" else Path(self.settings.prompts).name
        has_text = any(prompt.prompt is not None for prompt in self._prompts)
        return f"{name}, {self.tokenizer.description if has_text else 'given token ids'}"

    def mesh(self, strategy: str, num_gpus: int) -> MeshSpec:
        if strategy != CUSTOM:
            return mesh_for(strategy, num_gpus)
        return custom_mesh(self.settings, num_gpus)

    def spec(self, strategy: str, num_gpus: int) -> RunSpec:
        """One case, resolved and checked. Raises SpecError with everything that is wrong with it."""
        mesh = self.mesh(strategy, num_gpus)
        execution = resolve_execution(self.settings, num_gpus)
        if self.settings.profile is not None:
            directory = (
                Path(self.settings.profile).absolute() / f"{strategy}-{num_gpus}gpu-batch{self.settings.batch_size}"
            )
            execution = execution.model_copy(update={"profile": str(directory)})
        try:
            return RunSpec(
                strategy=strategy,
                mesh=mesh,
                model=self.model,
                workload=self.workload,
                execution=execution,
                degenerate=is_degenerate(strategy, mesh),
            )
        except ValidationError as error:
            raise SpecError.from_validation(error) from error

    def run(self, spec: RunSpec, *, timed: bool = True) -> RunResult:
        """Launch a case and verify it; with `timed` False it has no rounds.

        Raises LaunchError if a rank fails and VerificationError on a mismatch.
        """
        if not timed:
            spec = spec.model_copy(update={"execution": spec.execution.model_copy(update={"rounds": 0})})
        reference = self._reference(spec) if self.settings.verify else None
        if spec.execution.profile is not None:
            _make_directory(Path(spec.execution.profile))
        with gpu_sampler(spec.execution, spec.num_gpus) as sampler:
            ranks = launch(Job(kind=JobKind.GENERATE, spec=spec), on_phase=self._on_phase, observer=sampler)
            gpus = sampler.telemetry(ranks)
        verification = Verification(status="skipped")
        if reference is not None:
            verification = verify(ranks, reference, spec.execution.dtype, lambda tokens: self._score(spec, tokens))
            if not verification.passed:
                raise VerificationError(spec, verification)
        result = self._result(spec, ranks, verification, {key: r.tokens for key, r in records_of(ranks).items()})
        return result.model_copy(
            update={
                "gpus": gpus,
                "energy": energy(spec, gpus, sampler.reason),
                "efficiency": efficiency(spec, ranks, result.figures),
            }
        )

    def result_of_peer(self, spec: RunSpec, rank: RankReport, tokens: Mapping[int, tuple[int, ...]]) -> RunResult:
        """What another engine made of a case's requests on one device; VerificationError on a mismatch."""
        verification = verify_tokens(
            tokens, self._reference(spec), spec.execution.dtype, lambda tokens: self._score(spec, tokens)
        )
        if not verification.passed:
            raise VerificationError(spec, verification)
        return self._result(spec, [rank], verification, tokens)

    def _result(
        self,
        spec: RunSpec,
        ranks: Sequence[RankReport],
        verification: Verification,
        tokens: Mapping[int, tuple[int, ...]],
    ) -> RunResult:
        return RunResult(
            spec=spec,
            weights_origin=spec.model.weights_origin,
            verification=verification,
            figures=figures(spec, ranks),
            environment=describe_environment(ranks),
            ranks=tuple(rank.model_copy(update={"records": ()}) for rank in ranks),
            outputs=tuple(
                Output(request_id=key, tokens=chosen, text=self.tokenizer.decode(chosen))
                for key, chosen in sorted(tokens.items())
            ),
        )

    def _reference(self, spec: RunSpec) -> Records:
        """What one device generates for this work, made at the first need; a failure is kept too, not tried again."""
        single = spec.single_device()
        key = single.model_dump_json()
        if key not in self._references:
            try:
                self._references[key] = records_of(self._launch_single(Job(kind=JobKind.GENERATE, spec=single)))
            except LaunchError as error:
                self._references[key] = error
        found = self._references[key]
        if isinstance(found, LaunchError):
            raise LaunchError(str(found), out_of_memory=found.out_of_memory)
        return found

    def _score(self, spec: RunSpec, tokens: Mapping[int, tuple[int, ...]]) -> Sequence[TokenScore]:
        tolerance = TOLERANCES[spec.execution.dtype]
        job = Job(kind=JobKind.SCORE, spec=spec.single_device(), tokens_to_score=dict(tokens), tolerance=tolerance)
        return self._launch_single(job)[0].scores

    def _launch_single(self, job: Job) -> tuple[RankReport, ...]:
        report = self._on_phase
        try:
            return launch(job, on_phase=(lambda rank, phase: report(rank, f"reference: {phase}")) if report else None)
        except LaunchError as error:
            message = f"the single-device reference run: {error}"
            raise LaunchError(message, out_of_memory=error.out_of_memory) from error


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(f"profile directory {path}: cannot be made ({error.strerror})") from error


def custom_mesh(settings: Settings, num_gpus: int | None = None) -> MeshSpec:
    """The mesh of the given degrees; one that is not given is what is left over of `num_gpus`, dp first.

    Raises SpecError if the product is not `num_gpus`.
    """
    tp, pp, dp = settings.tensor_parallel_size, settings.pipeline_parallel_size, settings.data_parallel_size
    if dp is None:
        known = (tp or 1) * (pp or 1)
        dp = num_gpus // known if num_gpus and num_gpus % known == 0 else 1
    mesh = MeshSpec(tp=tp or 1, pp=pp or 1, dp=dp)
    if num_gpus is not None and mesh.size != num_gpus:
        raise SpecError(
            f"tensor_parallel_size {mesh.tp} × pipeline_parallel_size {mesh.pp} × data_parallel_size {mesh.dp} "
            f"= {mesh.size} devices, but {num_gpus} were asked for; the product must be {num_gpus}"
        )
    return mesh
