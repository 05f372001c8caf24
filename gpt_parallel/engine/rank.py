"""One rank from its job to its report: connect, load, generate the recorded pass, warm up, run timed rounds."""

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch

from gpt_parallel.engine.comm.collectives import connect
from gpt_parallel.engine.comm.transport import Rendezvous
from gpt_parallel.engine.generation.cuda_graphs import cuda_graph
from gpt_parallel.engine.generation.loop import Generator
from gpt_parallel.engine.generation.records import changed_tokens, check_own_logits, token_records, tokens_by_request
from gpt_parallel.engine.generation.sampling import Sampler
from gpt_parallel.engine.model.attention_kernel import kernels_of, noting_kernels
from gpt_parallel.engine.model.families import build
from gpt_parallel.engine.model.interface import DecoderPart, allocate_cache, num_bytes
from gpt_parallel.engine.model.kv_cache import Step
from gpt_parallel.engine.model.linear import choose_kernel
from gpt_parallel.engine.model.weights import load
from gpt_parallel.engine.pipe import StatusPipe
from gpt_parallel.engine.timing.breakdown import break_down
from gpt_parallel.engine.timing.peaks import measure_peaks
from gpt_parallel.engine.timing.profiling import profile_pass
from gpt_parallel.engine.timing.stopwatch import Stopwatch, consume
from gpt_parallel.engine.timing.telemetry import CpuMeter, peak_memory, read_telemetry
from gpt_parallel.layout.batches import Batch, deal_lanes
from gpt_parallel.layout.mesh import Mesh
from gpt_parallel.layout.part import Part, kv_copies, part_of
from gpt_parallel.schema.result import (
    Diagnostics,
    Generated,
    Holding,
    RankPlace,
    RankReport,
    RoundReport,
    TokenRecord,
    TokenScore,
)
from gpt_parallel.schema.run import Request, RequestTokens, RunSpec
from gpt_parallel.schema.telemetry import Breakdown, PeakRates, RankTelemetry


class Rank:
    """A rank's part of the model, connected to its peers and loaded."""

    def __init__(self, spec: RunSpec, rank: int, local_rank: int, rendezvous: Rendezvous, pipe: StatusPipe) -> None:
        self._spec, self._pipe = spec, pipe
        self._phase_seconds: dict[str, float] = {}
        self._mesh = Mesh(spec.mesh, rank)
        self._device = device_of(spec, local_rank)
        torch.set_num_threads(spec.execution.cores_per_rank)
        with self._phase("connect"):
            self._collectives = connect(self._mesh, spec.execution, self._device, rendezvous)
        with self._phase("load weights"):
            self._model = self._load()
        self._sampler = Sampler(
            spec.workload.sampling,
            spec.model.architecture,
            self._model.part.vocabulary,
            self._collectives,
            spec.mesh.tp,
            self._device,
        )

    def _load(self) -> DecoderPart:
        spec = self._spec
        dtype = getattr(torch, spec.execution.dtype)
        reduce = self._collectives.all_reduce if self._collectives.reduces else None
        model = build(spec.model.architecture, part_of(spec, self._mesh), dtype, self._device, reduce)
        load(model, spec.model)
        self._parameter_bytes = num_bytes(model.parameters())
        whole = Part.whole(spec.model.architecture).num_weights(spec.model.architecture)  # the same choice on all ranks
        if choose_kernel(spec.execution.linear, whole * dtype.itemsize, dtype, self._device) == "packed":
            model.pack()
        return model

    def generator(self, lanes: Sequence[Sequence[Batch]]) -> Generator:
        """The generator of this rank's batches, eager or with captured steps as the execution says."""
        graphs = self._spec.execution.decode == "graph"
        capture = cuda_graph(torch.cuda.graph_pool_handle()) if graphs else None
        return Generator(self._model, self._mesh, self._collectives, self._sampler, lanes, capture)

    def generate(self) -> RankReport:
        """Run the recorded pass, the warm-up passes and the timed rounds, then what else is enabled."""
        execution = self._spec.execution
        lanes = deal_lanes(self._spec.workload, self._mesh)
        generator = self.generator(lanes)
        stopwatch = Stopwatch(self._device)
        with self._phase("generate for verification"), noting_kernels() as kernels:
            self._collectives.barrier()
            self._collectives.reset_counts()
            _, _, events = consume(generator.run(record=True), stopwatch)
            records = token_records(events)
        with self._phase("warm up"):
            for _ in range(execution.warmup - 1):
                self._collectives.barrier()
                consume(generator.run(), stopwatch)
        meter = CpuMeter()
        watch: AbstractContextManager[None] = meter if execution.telemetry else nullcontext()
        rounds = [self._round(index, generator, stopwatch, records, watch) for index in range(execution.rounds)]
        is_speaker = self._mesh.is_last_stage and self._mesh.shard == 0
        generated = Generated(
            rounds=tuple(rounds),
            records=tuple(records) if is_speaker else (),
            attention=kernels_of(kernels),
            collectives=self._collectives.counts(),
        )
        holding = self._holding(generator.cache_bytes)
        # Read before anything else needs memory.
        peak, telemetry = peak_memory(self._device), self._read_telemetry(meter) if rounds else None
        self._profile(generator)
        del generator  # captured graphs must go before the communicators they call
        if execution.decode == "graph":
            gc.collect()  # a generator and its captured steps refer to each other
        breakdown = self._break_down(lanes, stopwatch)
        diagnostics = Diagnostics(
            peak_memory_bytes=peak,
            telemetry=telemetry,
            breakdown=breakdown,
            peak_rates=self._measure_peaks() if rounds and execution.telemetry else None,
        )
        place = self._finish()
        return RankReport(place=place, holding=holding, generated=generated, diagnostics=self._with_phases(diagnostics))

    def _holding(self, cache_bytes: int | None = None) -> Holding:
        part = self._model.part
        return Holding(
            layers=(part.layers.start, part.layers.stop),
            num_heads=len(part.heads),
            num_kv_heads=len(part.kv_heads),
            kv_copies=kv_copies(self._spec.model.architecture, self._spec.mesh.tp, part),
            parameter_bytes=self._parameter_bytes,
            kv_cache_bytes=cache_bytes,
            linear=self._model.kernel,
        )

    def _read_telemetry(self, meter: CpuMeter) -> RankTelemetry | None:
        execution = self._spec.execution
        if not execution.telemetry:
            return None
        with self._phase("read telemetry"):
            return read_telemetry(meter, execution.cores_per_rank, self._device)

    def _round(
        self,
        index: int,
        generator: Generator,
        stopwatch: Stopwatch,
        records: Sequence[TokenRecord],
        watch: AbstractContextManager[None],
    ) -> RoundReport:
        with self._phase(f"round {index + 1} of {self._spec.execution.rounds}", key="rounds"), _no_garbage_collection():
            self._collectives.barrier()
            self._collectives.reset_counts()
            with watch:
                seconds, timelines, events = consume(generator.run(), stopwatch)
        check_own_logits(events)
        changed = changed_tokens(records, tokens_by_request(events))
        return RoundReport(seconds=seconds, timelines=tuple(timelines), changed=changed)

    def _profile(self, generator: Generator) -> None:
        directory = self._spec.execution.profile
        if directory is not None:
            with self._phase("profile"):
                self._collectives.barrier()
                self._collectives.reset_counts()
                profile_pass(lambda: list(generator.run()), Path(directory), self._mesh.rank, self._device)

    def _break_down(self, lanes: Sequence[Sequence[Batch]], stopwatch: Stopwatch) -> Breakdown | None:
        """Break down a pass of a separate generator without captured steps, since replayed steps have no sections."""
        if not self._spec.execution.breakdown:
            return None
        generator = Generator(self._model, self._mesh, self._collectives, self._sampler, lanes)
        with self._phase("break down"), _no_garbage_collection():
            list(generator.run())
            self._collectives.barrier()
            self._collectives.reset_counts()
            transport = self._collectives.transport
            return break_down(lambda: list(generator.run()), stopwatch, self._model, self._sampler, transport)

    def _measure_peaks(self) -> PeakRates:
        """Measure the device's peaks last, since the model is freed for the memory this needs."""
        size, dtype = self._parameter_bytes, self._model.dtype
        oversubscribed = self._spec.execution.oversubscribed
        with self._phase("measure peaks"):
            del self._model
            return measure_peaks(size, dtype, self._device, self._collectives.barrier, oversubscribed=oversubscribed)

    def score(self, tokens: Sequence[RequestTokens], tolerance: float) -> RankReport:
        """Score given tokens teacher-forced: one pass over prompt and tokens per request."""
        requests = {request.request_id: request for request in self._spec.workload.requests}
        with self._phase("score"):
            scores = [self._score_one(requests[own.request_id], own.tokens, tolerance) for own in tokens]
        holding, diagnostics = self._holding(), Diagnostics(peak_memory_bytes=peak_memory(self._device))
        place = self._finish()
        return RankReport(
            place=place, holding=holding, scored=tuple(scores), diagnostics=self._with_phases(diagnostics)
        )

    def _score_one(self, request: Request, chosen: tuple[int, ...], tolerance: float) -> TokenScore:
        ids = torch.tensor([[*request.prompt_ids, *chosen]], device=self._device)[:, :-1]
        length = ids.shape[1]
        cache = allocate_cache(self._model, 1, length)
        step = Step(decode=False, num_rows=1, window=length)
        x = self._model.blocks(self._model.embed(ids, step), cache, step)
        logits = self._model.head(x[len(request.prompt_ids) - 1 :])
        given = torch.tensor(chosen, device=self._device)
        judgement = self._sampler.judge(logits, request, given, tolerance)
        margins, scales, logprobs, logit_scales = (values.tolist() for values in judgement)
        return TokenScore(
            request_id=request.request_id,
            margins=tuple(None if margin == float("inf") else margin for margin in margins),
            scales=tuple(scales),
            logprobs=tuple(logprobs),
            logit_scales=tuple(logit_scales),
        )

    def _finish(self) -> RankPlace:
        """Synchronise and close the connections. Returns the rank's place."""
        with self._phase("finish"):
            self._collectives.barrier()
            self._collectives.close()
        return place_of(self._mesh, self._device)

    def _with_phases(self, diagnostics: Diagnostics) -> Diagnostics:
        return diagnostics.model_copy(update={"phase_seconds": self._phase_seconds})

    @contextmanager
    def _phase(self, name: str, key: str | None = None) -> Iterator[None]:
        self._pipe.enter(name)
        begin = time.monotonic()
        yield
        key = key or name
        self._phase_seconds[key] = self._phase_seconds.get(key, 0.0) + time.monotonic() - begin


def place_of(mesh: Mesh, device: torch.device) -> RankPlace:
    """The place of a rank in the mesh, and its device."""
    return RankPlace(
        rank=mesh.rank,
        stage=mesh.stage,
        replica=mesh.replica,
        shard=mesh.shard,
        device_name=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        num_threads=torch.get_num_threads(),
        torch_version=torch.__version__,
    )


def device_of(spec: RunSpec, local_rank: int) -> torch.device:
    if spec.execution.device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RuntimeError("this torch build sees no CUDA device; install a CUDA build of torch or use device 'cpu'")
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
