"""Scores given tokens by the logits before each of them: transformers' filters, then the noise."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gpt_parallel.judge.noise import gumbel
from gpt_parallel.schema.result import TokenScore
from gpt_parallel.schema.run import Request, SamplingSpec

_ROUNDING = 2.0**-22  # of a float32 sum and of its terms, relative
_INFINITY = float("inf")
_AT_ONCE = 64  # positions whose scores, noise and filters are in memory together


def score(
    logits: Tensor, request: Request, tokens: Sequence[int], sampling: SamplingSpec, tolerance: float
) -> TokenScore:
    """Judge `tokens` by logits [N, V], float32, of the positions before each of them.

    `tolerance` is relative to the scale of a position's scores. The run's filter threshold may differ by
    that much: tokens may lie that far outside it, and only scores that far inside it count as the best.
    """
    rows: list[_Row] = []
    for start in range(0, len(tokens), _AT_ONCE):
        rows += _score_some(logits[start : start + _AT_ONCE], request, tokens, start, sampling, tolerance)
    columns = zip(*rows, strict=True)
    return TokenScore(request_id=request.request_id, **dict(zip(_Row._fields, columns, strict=True)))


class _Row(NamedTuple):
    """A token's part of a `TokenScore`."""

    margins: float | None
    scales: float
    logprobs: float
    logit_scales: float


def _score_some(
    logits: Tensor, request: Request, tokens: Sequence[int], start: int, sampling: SamplingSpec, tolerance: float
) -> list[_Row]:
    """Score the tokens from number `start` on, one per row of logits [N, V]."""
    prompt, stop = request.prompt_ids, start + len(logits)
    prefixes = _prefixes(prompt, tokens, range(start, stop), logits.device)
    chosen = torch.tensor(tokens[start:stop], device=logits.device)[:, None]
    scores: Tensor = _processors(sampling)(prefixes, logits)  # type: ignore[arg-type]
    scales = _scale(scores)
    surely, possibly = _edges(scores, prefixes, sampling, tolerance * scales[:, None])
    totals = scores.double()
    if not sampling.greedy:
        positions = range(len(prompt) + start, len(prompt) + stop)
        totals += gumbel(sampling.seed, request.request_id, positions, logits.shape[1], logits.device)
    best = totals.masked_fill(scores < surely, -_INFINITY).amax(1)
    own = totals.gather(1, chosen)[:, 0]
    margins = (best - own - _ROUNDING * (best.abs() + own.abs())).clamp_min(0.0)
    is_possible = (scores.gather(1, chosen) >= possibly)[:, 0]
    logprobs = logits.double().log_softmax(1).gather(1, chosen)[:, 0]
    allowed = [m if fits else None for m, fits in zip(margins.tolist(), is_possible.tolist(), strict=True)]
    return list(map(_Row, allowed, scales.tolist(), logprobs.tolist(), _scale(logits).tolist()))


def _scale(values: Tensor) -> Tensor:
    """[N, V] → [N]: highest − mean + largest |value| / 3, as `TokenRecord` describes."""
    return (values.max(1).values - values.mean(1) + values.abs().max(1).values / 3).clamp(min=1e-6)


def _prefixes(prompt: Sequence[int], tokens: Sequence[int], numbers: range, device: torch.device) -> Tensor:
    """The ids before each token, one row each [N, L]; short rows are padded with the prompt's first id."""
    rows = [[*prompt, *tokens[:number]] for number in numbers]
    return torch.tensor([row + [prompt[0]] * (len(rows[-1]) - len(row)) for row in rows], device=device)


def _processors(sampling: SamplingSpec) -> LogitsProcessorList:
    """The processors for penalty and temperature, in `generate`'s order."""
    processors: list[LogitsProcessor] = []
    if sampling.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty)))
    if not sampling.greedy:
        processors.append(TemperatureLogitsWarper(float(sampling.temperature)))
    return LogitsProcessorList(processors)


def _edges(scores: Tensor, prefixes: Tensor, sampling: SamplingSpec, slack: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest scores [N, 1] that certainly, and possibly, pass top-k and top-p if scores are off by `slack` [N, 1].

    Scores above all excluded ones certainly pass; scores slightly below the last kept one possibly pass.
    """
    if sampling.greedy or (sampling.top_k == 0 and sampling.top_p >= 1):
        none = torch.full_like(slack, -_INFINITY)
        return none, none
    surely, possibly = [], []
    for index, own in enumerate(slack.flatten().tolist()):
        row, prefix = scores[index : index + 1], prefixes[index : index + 1]
        # Two scores off by half the slack in opposite directions change a probability by a quarter of it.
        mass = min(own / 4, 0.25) if sampling.top_p < 1 else 0.0
        top_k = sampling.top_k if 0 < sampling.top_k < row.shape[1] else 0
        is_out = _filter(row, prefix, top_k, sampling.top_p - mass) == -_INFINITY
        excluded = row.masked_fill(~is_out, -_INFINITY).amax(1)
        if top_k:  # ties differ between runs, so top-k may keep one more or one fewer
            last, beyond = row.topk(top_k + 1).values[0, -2:]
            excluded = torch.maximum(excluded, beyond)
            top_k = int((row >= last - own).sum())
        surely.append(excluded + own)
        kept = _filter(row, prefix, top_k, sampling.top_p + mass)
        possibly.append(kept.masked_fill(kept == -_INFINITY, _INFINITY).amin(1) - own)
    return torch.stack(surely), torch.stack(possibly)


def _filter(scores: Tensor, prefix: Tensor, top_k: int, top_p: float) -> Tensor:
    """Scores [1, V] with −inf where the filters exclude them. Top-k 0 and top-p 1 are no filters."""
    filters: list[LogitsProcessor] = []
    if top_k > 0:
        filters.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        filters.append(TopPLogitsWarper(max(top_p, 0.0)))
    kept: Tensor = LogitsProcessorList(filters)(prefix, scores)  # type: ignore[arg-type]
    return kept
