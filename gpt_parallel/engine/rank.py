"""One rank from its job to its report: connect, load, generate once for the record, warm up, time."""

import gc
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import isfinite
from pathlib import Path

import torch

from gpt_parallel.engine.collectives import connect
from gpt_parallel.engine.decode_graph import cuda_graph
from gpt_parallel.engine.events import EventPipe
from gpt_parallel.engine.generate import Event, Generator, deal_lanes
from gpt_parallel.engine.gpt2 import GPT2, Part
from gpt_parallel.engine.kv_cache import KVCache, Step
from gpt_parallel.engine.linear import choose_kernel
from gpt_parallel.engine.mesh import Mesh
from gpt_parallel.engine.pipeline_parallel import head_cost, head_passes, stage_layers
from gpt_parallel.engine.sampling import Choice, Sampler
from gpt_parallel.engine.tensor_parallel import Shard, shard_of
from gpt_parallel.engine.timeline import Stopwatch, consume
from gpt_parallel.engine.weights import load
from gpt_parallel.result import RankReport, RoundReport, TokenRecord, TokenScore
from gpt_parallel.spec import Job, JobKind, Request, RunSpec


class Rank:
    """A rank's part of the model, connected to its peers and loaded."""

    def __init__(self, spec: RunSpec, rank: int, local_rank: int, store_path: str, pipe: EventPipe) -> None:
        self._spec, self._pipe = spec, pipe
        self._phase_seconds: dict[str, float] = {}
        self._mesh = Mesh(spec.mesh, rank)
        self._device = _device(spec, local_rank)
        torch.set_num_threads(spec.execution.cores_per_rank)
        with self._phase("connect"):
            self._collectives = connect(self._mesh, spec.execution, self._device, store_path)
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

    def _load(self) -> GPT2:
        spec, mesh = self._spec, self._mesh
        shape = spec.model.architecture
        shard: Shard = shard_of(shape, mesh.sizes.tp, mesh.shard)
        head = head_cost(shape) * head_passes(spec.workload, spec.execution)
        part = Part(
            layers=stage_layers(shape, mesh.sizes.pp, head)[mesh.stage],
            num_heads=len(shard.heads),
            num_mlp_columns=len(shard.mlp_columns),
            vocabulary=shard.vocabulary,
            has_embedding=mesh.is_first_stage,
            has_head=mesh.is_last_stage,
        )
        dtype = getattr(torch, spec.execution.dtype)
        reduce = self._collectives.all_reduce if self._collectives.reduces else None
        model = GPT2(shape, part, dtype, self._device, reduce)
        load(model, spec.model, shard)
        if choose_kernel(spec.execution.linear, model.parameter_bytes, dtype, self._device) == "packed":
            model.pack()
        return model

    def generate(self) -> RankReport:
        """The recorded pass, the warm-up passes and the timed rounds."""
        execution = self._spec.execution
        lanes = deal_lanes(self._spec.workload, self._mesh)
        capture = cuda_graph(torch.cuda.graph_pool_handle()) if execution.decode == "graph" else None
        generator = Generator(self._model, self._mesh, self._collectives, self._sampler, lanes, capture)
        stopwatch = Stopwatch(self._device)
        with self._phase("generate for verification"):
            self._collectives.barrier()
            self._collectives.reset_counts()
            _, _, events = consume(generator.run(record=True), stopwatch)
            records = _records(events)
        with self._phase("warm up"):
            for _ in range(execution.warmup - 1):
                self._collectives.barrier()
                consume(generator.run(), stopwatch)
        rounds = [self._round(index, generator, stopwatch, records) for index in range(execution.rounds)]
        is_speaker = self._mesh.is_last_stage and self._mesh.shard == 0
        cache_bytes = generator.cache_bytes
        del generator  # captured graphs must go before the communicators they call
        return self._report(rounds=rounds, records=records if is_speaker else [], cache_bytes=cache_bytes)

    def _round(
        self, index: int, generator: Generator, stopwatch: Stopwatch, records: Sequence[TokenRecord]
    ) -> RoundReport:
        with self._phase(f"round {index + 1} of {self._spec.execution.rounds}", key="rounds"), _no_garbage_collection():
            self._collectives.barrier()
            self._collectives.reset_counts()
            seconds, timelines, events = consume(generator.run(), stopwatch)
        tokens = _tokens_by_request(events)
        changed = tuple(record.request_id for record in records if tokens[record.request_id] != record.tokens)
        return RoundReport(seconds=seconds, timelines=tuple(timelines), changed_requests=changed)

    def score(self, tokens: dict[int, tuple[int, ...]], tolerance: float) -> RankReport:
        """Teacher-forced: read prompt and given tokens in one pass and judge every given token."""
        requests = {request.request_id: request for request in self._spec.workload.requests}
        with self._phase("score"):
            scores = [self._score_one(requests[key], chosen, tolerance) for key, chosen in tokens.items()]
        return self._report(scores=scores)

    def _score_one(self, request: Request, chosen: tuple[int, ...], tolerance: float) -> TokenScore:
        shape, part = self._model.shape, self._model.part
        ids = torch.tensor([[*request.prompt_ids, *chosen]], device=self._device)[:, :-1]
        length = ids.shape[1]
        cache = KVCache(len(part.layers), 1, part.num_heads, length, shape.head_size, self._model.dtype, self._device)
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

    def _report(
        self,
        rounds: Sequence[RoundReport] = (),
        records: Sequence[TokenRecord] = (),
        scores: Sequence[TokenScore] = (),
        cache_bytes: int = 0,
    ) -> RankReport:
        part, mesh = self._model.part, self._mesh
        collectives = self._collectives.counts()
        with self._phase("finish"):
            self._collectives.barrier()
            self._collectives.close()
        return RankReport(
            rank=mesh.rank,
            stage=mesh.stage,
            replica=mesh.replica,
            shard=mesh.shard,
            layers=(part.layers.start, part.layers.stop),
            num_heads=part.num_heads,
            parameter_bytes=self._model.parameter_bytes,
            linear=self._model.kernel,
            kv_cache_bytes=cache_bytes,
            collectives=collectives,
            rounds=tuple(rounds),
            records=tuple(records),
            scores=tuple(scores),
            peak_memory_bytes=_peak_memory(self._device),
            phase_seconds=self._phase_seconds,
            device_name=torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "CPU",
            num_threads=torch.get_num_threads(),
            torch_version=torch.__version__,
        )

    @contextmanager
    def _phase(self, name: str, key: str | None = None) -> Iterator[None]:
        self._pipe.enter(name)
        begin = time.monotonic()
        yield
        key = key or name
        self._phase_seconds[key] = self._phase_seconds.get(key, 0.0) + time.monotonic() - begin


def run_job(job: Job, rank: int, local_rank: int, store_path: str, pipe: EventPipe) -> RankReport:
    """What a rank process does."""
    with torch.inference_mode():
        this = Rank(job.spec, rank, local_rank, store_path, pipe)
        if job.kind == JobKind.GENERATE:
            return this.generate()
        return this.score(job.tokens_to_score, job.tolerance)


def _device(spec: RunSpec, local_rank: int) -> torch.device:
    if spec.execution.device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RuntimeError("this torch build sees no CUDA device; install a CUDA build of torch or use device 'cpu'")
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def _peak_memory(device: torch.device) -> int:
    """Peak bytes: allocated by torch on a GPU, resident in this process on a CPU (torch itself included)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":
        # Not ru_maxrss: a process inherits its parent's.
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _by_batch(events: Sequence[Event]) -> Iterator[tuple[tuple[Request, ...], list[Choice]]]:
    choices: dict[str, list[Choice]] = {}
    requests = {}
    for event in events:
        assert event.choice is not None
        requests[event.batch.batch_id] = event.batch.requests
        choices.setdefault(event.batch.batch_id, []).append(event.choice)
    for name, chosen in choices.items():
        yield requests[name], chosen


def _tokens_by_request(events: Sequence[Event]) -> dict[int, tuple[int, ...]]:
    tokens = {}
    for requests, choices in _by_batch(events):
        table = torch.stack([choice.tokens for choice in choices], dim=1).tolist()  # [B, steps]
        for request, row in zip(requests, table, strict=True):
            tokens[request.request_id] = tuple(row[: request.max_new_tokens])
    return tokens


def _check_finite(request: Request, logprobs: Sequence[float], scales: Sequence[float]) -> None:
    for position, (logprob, scale) in enumerate(zip(logprobs, scales, strict=True)):
        if not (isfinite(logprob) and isfinite(scale)):
            raise ArithmeticError(
                f"request {request.request_id}, new token {position}: the logits are not finite "
                "(NaN or infinite weights, or numbers too large for the number type)"
            )


def _records(events: Sequence[Event]) -> list[TokenRecord]:
    tokens = _tokens_by_request(events)
    records = []
    for requests, choices in _by_batch(events):
        logprobs = torch.stack([c.logprobs for c in choices if c.logprobs is not None], dim=1).tolist()
        scales = torch.stack([c.scales for c in choices if c.scales is not None], dim=1).tolist()
        for request, logprob, scale in zip(requests, logprobs, scales, strict=True):
            count = request.max_new_tokens
            _check_finite(request, logprob[:count], scale[:count])
            records.append(
                TokenRecord(
                    request_id=request.request_id,
                    tokens=tokens[request.request_id],
                    logprobs=tuple(logprob[:count]),
                    logit_scales=tuple(scale[:count]),
                )
            )
    return records
