"""Choosing tokens, the same ones under every layout.

Noise is a hash of (seed, request, position, vocabulary id): it does not depend on rank, batch row or call order. The
vocabulary may be sharded: then each shard offers its best (score, id) and the lowest id wins a tie. Only top-k and
top-p need all logits in one place. Filters have transformers' meaning and order: repetition penalty, temperature,
top-k, top-p.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gpt_parallel.engine.collectives import Collectives
from gpt_parallel.spec import Architecture, Request, SamplingSpec

_MASK = 0xFFFFFFFF
_INFINITY = float("inf")


class Choice(NamedTuple):
    """Chosen tokens [B]; when recording, their log-probability and the largest |logit| [B] too."""

    tokens: Tensor
    logprobs: Tensor | None = None
    scales: Tensor | None = None


@dataclass
class RowState:
    """What sampling remembers of a batch's rows: noise keys [B] and which ids were seen [B, vocabulary + 1].

    The last column of `seen` takes the ids that lie outside this shard. None where the settings do not need it.
    """

    keys: Tensor | None
    seen: Tensor | None


class Sampler:
    """Samples from a (sharded) vocabulary."""

    def __init__(
        self,
        sampling: SamplingSpec,
        shape: Architecture,
        vocabulary: range,
        collectives: Collectives,
        tp_size: int,
        device: torch.device,
    ) -> None:
        self._sampling = sampling
        self._collectives = collectives
        self._whole = range(shape.vocab_size)
        self._local = vocabulary
        self._widest = -(-shape.vocab_size // tp_size)
        # With filters the logits are gathered first, and every shard works on the whole vocabulary.
        self._working = self._whole if sampling.filters else vocabulary
        self._ids = torch.arange(self._working.start, self._working.stop, device=device)
        self._device = device

    def start(self, requests: tuple[Request, ...]) -> RowState:
        """State for a batch whose prompts have been read."""
        keys = seen = None
        if not self._sampling.greedy:
            ids = torch.tensor([request.request_id for request in requests], device=self._device)
            keys = _mix(ids + _mix(torch.tensor(self._sampling.seed & _MASK, device=self._device)))
        if self._sampling.repetition_penalty != 1:
            seen = torch.zeros(len(requests), len(self._working) + 1, dtype=torch.bool, device=self._device)
            state = RowState(keys, seen)
            for row, request in enumerate(requests):
                self._mark(state, row, torch.tensor(request.prompt_ids, device=self._device))
        return RowState(keys, seen)

    def _mark(self, state: RowState, row: int | Tensor, tokens: Tensor) -> None:
        if state.seen is not None:
            inside = (tokens >= self._working.start) & (tokens < self._working.stop)
            columns = torch.where(inside, tokens - self._working.start, len(self._working))
            state.seen[row, columns] = True

    def choose(self, logits: Tensor, state: RowState, positions: Tensor, *, record: bool = False) -> Choice:
        """logits [B, local vocabulary] of the token at `positions` [B] → chosen tokens, the same on every shard."""
        if self._sampling.filters:
            logits = self._gather_vocabulary(logits)
        scores = self._scores(logits, state)
        if self._sampling.filters:
            scores = scores.masked_fill(scores < _threshold(scores, self._sampling, 0.0), -_INFINITY)
        if state.keys is not None:
            scores = scores + gumbel_noise(state.keys, positions, self._ids)
        choice = self._best(scores, logits, record)
        self._mark(state, torch.arange(len(logits), device=self._device), choice.tokens)
        return choice

    def _scores(self, logits: Tensor, state: RowState) -> Tensor:
        """Repetition penalty and temperature."""
        scores = logits
        if state.seen is not None:
            penalty = self._sampling.repetition_penalty
            penalised = torch.where(scores < 0, scores * penalty, scores / penalty)
            scores = torch.where(state.seen[:, :-1], penalised, scores)
        return scores if self._sampling.greedy else scores / self._sampling.temperature

    def _gather_vocabulary(self, logits: Tensor) -> Tensor:
        """[B, local] → [B, whole vocabulary]; the narrower shards are padded for the transport."""
        padded = torch.nn.functional.pad(logits, (0, self._widest - logits.shape[1]))
        parts = self._collectives.gather(padded)
        sizes = [len(self._whole) // len(parts) + (i < len(self._whole) % len(parts)) for i in range(len(parts))]
        return torch.cat([part[:, :size] for part, size in zip(parts, sizes, strict=True)], dim=1)

    def _best(self, scores: Tensor, logits: Tensor, record: bool) -> Choice:
        """The best id over all shards; ties go to the lowest."""
        best, index = scores.max(dim=1)
        columns = [best, self._ids[index].float()]  # float32 holds ids up to 2**24 exactly
        if record:
            columns += [logits.gather(1, index[:, None])[:, 0], logits.logsumexp(1), logits.abs().amax(1)]
        offers = torch.stack(columns, dim=1)
        # With filters every shard has worked on the whole vocabulary and offers the same.
        offers = offers[None] if self._sampling.filters else self._collectives.gather(offers)  # [tp, B, columns]
        winner = offers[:, :, 0].argmax(dim=0)
        chosen = offers.gather(0, winner[None, :, None].expand(1, *offers.shape[1:]))[0]
        tokens = chosen[:, 1].long()
        if not record:
            return Choice(tokens)
        return Choice(tokens, chosen[:, 2] - offers[:, :, 3].logsumexp(0), offers[:, :, 4].amax(0))

    def margins(self, logits: Tensor, request: Request, tokens: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
        """How far each given token's score lies below the best one, teacher-forced, and the scores' scale; both [N].

        logits [N, whole vocabulary] are those before each of `tokens` [N]. `tolerance` is relative to the scale. A
        filter's edge may lie elsewhere in the run that chose the tokens, so they may lie that much outside it, and only
        scores that much inside it count as the best. Infinite where a token lies outside even so.
        """
        state = self.start((request,))
        margins, scales = [], []
        for index, token in enumerate(tokens):
            scores = self._scores(logits[index : index + 1], state)
            scale = scores.abs().amax().clamp_min(1.0)
            slack = float(tolerance * scale)
            noise = torch.zeros_like(scores)
            if state.keys is not None:
                position = torch.tensor([len(request.prompt_ids) + index], device=scores.device)
                noise = gumbel_noise(state.keys, position, self._ids)
            surely = possibly = torch.full_like(scores, -_INFINITY)[:, :1]
            if self._sampling.filters:
                surely = torch.minimum(_threshold(scores, self._sampling, -slack) + slack, scores.amax())
                possibly = _threshold(scores, self._sampling, slack) - slack
            best = (scores + noise).masked_fill(scores < surely, -_INFINITY).amax()
            own = scores[0, token]
            margin = best - (own + noise[0, token]) if own >= possibly[0, 0] else torch.full_like(own, _INFINITY)
            margins.append(margin.clamp_min(0.0))
            scales.append(scale)
            self._mark(state, torch.zeros(1, dtype=torch.long, device=scores.device), token[None])
        return torch.stack(margins), torch.stack(scales)


def _threshold(scores: Tensor, sampling: SamplingSpec, slack: float) -> Tensor:
    """[B, 1]: the lowest score that top-k and top-p let through; `slack` widens (or narrows) top-p's probability."""
    threshold = torch.full_like(scores[:, :1], -_INFINITY)
    if 0 < sampling.top_k < scores.shape[1]:
        threshold = scores.topk(sampling.top_k, dim=1).values[:, -1:]
    if sampling.top_p < 1:
        kept = scores.masked_fill(scores < threshold, -_INFINITY)
        ordered, _ = kept.sort(dim=1, descending=True)
        before = ordered.softmax(dim=1).cumsum(dim=1) - ordered.softmax(dim=1)
        inside = before < sampling.top_p + slack
        inside[:, 0] = True
        last = inside.sum(dim=1, keepdim=True) - 1
        threshold = torch.maximum(threshold, ordered.gather(1, last))
    return threshold


def gumbel_noise(keys: Tensor, positions: Tensor, ids: Tensor) -> Tensor:
    """Standard Gumbel noise [B, V] for rows with `keys` [B] at `positions` [B] and vocabulary `ids` [V].

    argmax(log p + Gumbel) is a sample of p (Gumbel-max trick: Gumbel 1954; Maddison, Tarlow and Minka 2014).
    """
    first = _mix(keys + _mix(positions))[:, None]
    second = _mix(first ^ 0x5BD1E995)
    bits = _mix(_mix(ids[None, :] * 0x9E3779B1 + first & _MASK) ^ second)
    uniform = ((bits >> 9).float() + 0.5) * 2.0**-23  # 23 bits: never rounds to 0 or 1
    return -torch.log(-torch.log(uniform))


def _mix(x: Tensor) -> Tensor:
    """A 32-bit finaliser on int64 tensors (constants: Chris Wellons, "Prospecting for Hash Functions", 2018)."""
    x = x & _MASK
    x = (x ^ (x >> 16)) * 0x7FEB352D & _MASK
    x = (x ^ (x >> 15)) * 0x846CA68B & _MASK
    return x ^ (x >> 16)
