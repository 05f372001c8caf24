"""The judge's process: one teacher-forced forward pass over every request's prompt and tokens, without a cache.

One pass verifies a whole generation, since each token must be the best one given the tokens before it.
"""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gpt_parallel.engine.pipe import StatusPipe
from gpt_parallel.judge.model import load_model
from gpt_parallel.judge.scoring import score
from gpt_parallel.schema.result import RankPlace, RankReport, TokenScore
from gpt_parallel.schema.run import Job, Request

_TOKENS_PER_PASS = 4096


def judge(job: Job, pipe: StatusPipe) -> RankReport:
    """Score each of `job.tokens_to_score` with transformers, in their order."""
    execution = job.spec.execution
    torch.set_num_threads(execution.cores_per_rank)
    torch.set_float32_matmul_precision("highest")
    device = torch.device(execution.device)
    pipe.enter("load weights")
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        model = load_model(job.spec.model, execution.dtype, device)
        pipe.enter("judge")
        scores = tuple(_scores(job, model, device))
    return RankReport(place=RankPlace(torch_version=torch.__version__), scored=scores)


def _scores(job: Job, model: Any, device: torch.device) -> Iterator[TokenScore]:
    requests = {request.request_id: request for request in job.spec.workload.requests}
    sequences = [_Sequence(requests[given.request_id], given.tokens) for given in job.tokens_to_score]
    for batch in _batches(sequences):
        for sequence, logits in zip(batch, _logits(model, batch, device), strict=True):
            yield score(logits, *sequence, job.spec.workload.sampling, job.tolerance)


class _Sequence(NamedTuple):
    request: Request
    tokens: tuple[int, ...]

    @property
    def read(self) -> list[int]:
        """All tokens but the last, which is not an input."""
        return [*self.request.prompt_ids, *self.tokens][:-1]


def _batches(sequences: Sequence[_Sequence]) -> Iterator[list[_Sequence]]:
    """Batches of neighbouring sequences with a few thousand tokens each, padding included."""
    batch: list[_Sequence] = []
    for sequence in sequences:
        longest = max(len(other.read) for other in [*batch, sequence])
        if batch and longest * (len(batch) + 1) > _TOKENS_PER_PASS:
            yield batch
            batch = []
        batch.append(sequence)
    if batch:
        yield batch


def _logits(model: Any, batch: Sequence[_Sequence], device: torch.device) -> Iterator[Tensor]:
    """For each sequence, the logits [N, V] before its new tokens. Rows are padded on the right, unseen."""
    rows = [sequence.read for sequence in batch]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
    hidden = model.base_model(ids, use_cache=False).last_hidden_state
    for sequence, row, states in zip(batch, rows, hidden, strict=True):
        yield model.get_output_embeddings()(states[len(sequence.request.prompt_ids) - 1 : len(row)])
