"""Sampling that chooses the same tokens under every layout.

Noise is a hash of (seed, request, position, vocabulary id): it does not depend on rank, batch row or call order. The
vocabulary may be sharded: then each shard offers its best (score, id), and the lowest id wins a tie. Only top-k and
top-p need all logits in one place. Filters have transformers' meaning and order: repetition penalty, temperature,
top-k, top-p.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gpt_parallel.engine.comm.collectives import Collectives
from gpt_parallel.schema.architecture import Architecture
from gpt_parallel.schema.run import Request, SamplingSpec

_MASK = 0xFFFFFFFF
_INFINITY = float("inf")


class SampledTokens(NamedTuple):
    """Chosen tokens [B]; when recording, their log-probability and the scale of the step's logits, [B] too.

    `finite_check` [B] is NaN or infinite if this shard's logits contain NaN or inf. Unless recording, -inf may pass.
    """

    tokens: Tensor
    finite_check: Tensor
    logprobs: Tensor | None = None
    scales: Tensor | None = None

    def clone(self) -> "SampledTokens":
        return self._replace(**{name: value.clone() for name, value in self._asdict().items() if value is not None})


@dataclass
class RowState:
    """The sampling state of a batch's rows: noise keys and prompt lengths, both [B], and seen ids [B, V + 1].

    The last column of `seen` is for ids outside this shard. Fields that the settings do not need are None.
    """

    keys: Tensor | None
    lengths: Tensor | None
    seen: Tensor | None

    def clone(self) -> "RowState":
        return RowState(*(None if value is None else value.clone() for value in (self.keys, self.lengths, self.seen)))

    def copy_(self, other: "RowState") -> None:
        for name, value in vars(self).items():
            if value is not None:
                value.copy_(getattr(other, name))


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
        self._is_whole = self._working == self._whole
        self._ids = torch.arange(self._working.start, self._working.stop, device=device)
        self._device = device

    def start(self, requests: tuple[Request, ...]) -> RowState:
        """State for a batch whose prompts have been read."""
        state = RowState(None, None, None)
        if not self._sampling.greedy:
            ids = torch.tensor([request.request_id for request in requests], device=self._device)
            state.keys = _mix(ids + _mix(torch.tensor(self._sampling.seed & _MASK, device=self._device)))
            state.lengths = torch.tensor([len(request.prompt_ids) for request in requests], device=self._device)
        if self._sampling.repetition_penalty != 1:
            num_columns = len(self._working) + 1
            state.seen = torch.zeros(len(requests), num_columns, dtype=torch.bool, device=self._device)
            for row, request in enumerate(requests):
                self._mark(state.seen[row : row + 1], torch.tensor([request.prompt_ids], device=self._device))
        return state

    def _mark(self, seen: Tensor, tokens: Tensor) -> None:
        """Mark tokens [B, N] as seen in their rows, without values from the host, which graphs cannot capture."""
        columns = tokens - self._working.start
        is_outside = (columns < 0) | (columns >= len(self._working))
        seen.scatter_(1, columns.masked_fill(is_outside, len(self._working)), True)

    def choose(self, logits: Tensor, state: RowState, step: int | Tensor, *, record: bool = False) -> SampledTokens:
        """Choose new token number `step` from logits [B, local vocabulary]; the same tokens on every shard."""
        own = logits
        if self._sampling.filters:
            logits = self._gather_vocabulary(logits)
        scores = self._scores(logits, state)
        if self._sampling.filters:
            scores = scores.masked_fill(scores < _threshold(scores, self._sampling, 0.0), -_INFINITY)
        scores = self._add_noise(scores, state, step)
        choice = self._best(scores, logits, own, record)
        if state.seen is not None:
            self._mark(state.seen, choice.tokens[:, None])
        return choice

    def _add_noise(self, scores: Tensor, state: RowState, step: int | Tensor) -> Tensor:
        if state.keys is None or state.lengths is None:
            return scores
        return scores + gumbel_noise(state.keys, state.lengths + step, self._ids)

    def _scores(self, logits: Tensor, state: RowState) -> Tensor:
        """Logits after repetition penalty and temperature."""
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

    def _best(self, scores: Tensor, logits: Tensor, own_logits: Tensor, record: bool) -> SampledTokens:
        """The best id over all shards; ties go to the lowest."""
        best, index = scores.max(dim=1)
        # The best score is at hand, but with filters it is that of all shards.
        own = own_logits.sum(1) if record or self._sampling.filters else best
        if self._is_whole and not record:
            return SampledTokens(index, own)
        columns = [best, self._ids[index].float()]  # float32 holds ids up to 2**24 exactly
        if record:
            columns += [logits.gather(1, index[:, None])[:, 0], logits.logsumexp(1)]
            columns += [logits.amax(1), logits.abs().amax(1), logits.sum(1) if self._sampling.filters else own]
        offers = torch.stack(columns, dim=1)
        # With filters every shard has worked on the whole vocabulary and offers the same.
        offers = offers[None] if self._sampling.filters else self._collectives.gather(offers)  # [tp, B, columns]
        winner = offers[:, :, 0].argmax(dim=0)
        chosen = offers.gather(0, winner[None, :, None].expand(1, *offers.shape[1:]))[0]
        tokens = chosen[:, 1].long()
        if not record:
            return SampledTokens(tokens, own)
        highest, largest = offers[:, :, 4].amax(0), offers[:, :, 5].amax(0)
        scales = _scale(highest, largest, offers[:, :, 6].sum(0) / len(self._whole))
        return SampledTokens(tokens, own, chosen[:, 2] - offers[:, :, 3].logsumexp(0), scales)

    def judge(self, logits: Tensor, request: Request, tokens: Tensor, tolerance: float) -> "Judgement":
        """Score another run's tokens [N] teacher-forced; this rank holds the whole vocabulary.

        Logits [N, V] are those before each of `tokens`. `tolerance` is relative to the scores' scale. The other run's
        filter threshold may differ by that much, so tokens may lie that far outside it, and only scores that far
        inside it count as the best.
        """
        state = self.start((request,))
        margins, scales = [], []
        for index, token in enumerate(tokens):
            scores = self._scores(logits[index : index + 1], state)
            scale = scale_of(scores)[0]
            slack = float(tolerance * scale)
            # Two scores off by half of it in opposite directions change a probability by a quarter of it.
            mass = min(slack / 4, 0.25)
            noise = self._add_noise(torch.zeros_like(scores), state, index)
            surely = possibly = torch.full_like(scores, -_INFINITY)[:, :1]
            if self._sampling.filters:
                surely = _highest_excluded(scores, self._sampling, -mass) + slack
                possibly = _threshold(scores, _widened(self._sampling, scores, slack), mass) - slack
            best = (scores + noise).masked_fill(scores < surely, -_INFINITY).amax()
            own = scores[0, token]
            margin = best - (own + noise[0, token]) if own >= possibly[0, 0] else torch.full_like(own, _INFINITY)
            margins.append(margin.clamp_min(0.0))
            scales.append(scale)
            if state.seen is not None:
                self._mark(state.seen, token[None, None])
        logprobs = logits.log_softmax(1).gather(1, tokens[:, None])[:, 0]
        return Judgement(torch.stack(margins), torch.stack(scales), logprobs, scale_of(logits))


class Judgement(NamedTuple):
    """Per token, all [N]: the margin below the best score (infinite where filters exclude the token), the scores'
    scale, the log-probability and the logits' scale.
    """

    margins: Tensor
    scales: Tensor
    logprobs: Tensor
    logit_scales: Tensor


def scale_of(logits: Tensor) -> Tensor:
    """The scale of logits [B, V], against which their errors are measured: [B]."""
    return _scale(logits.amax(1), logits.abs().amax(1), logits.mean(1))


def _scale(highest: Tensor, largest: Tensor, mean: Tensor) -> Tensor:
    """Highest − mean + largest |logit| / 3: layers' errors grow with the spread, an offset adds rounding only."""
    return (highest - mean + largest / 3).clamp_min(1e-6)


def _threshold(scores: Tensor, sampling: SamplingSpec, slack: float) -> Tensor:
    """The lowest score [B, 1] that top-k and top-p keep; `slack` widens (or narrows) top-p's probability."""
    threshold = torch.full_like(scores[:, :1], -_INFINITY)
    if 0 < sampling.top_k < scores.shape[1]:
        threshold = scores.topk(sampling.top_k, dim=1).values[:, -1:]
    if sampling.top_p < 1:
        kept = scores.masked_fill(scores < threshold, -_INFINITY)
        ordered, _ = kept.sort(dim=1, descending=True)
        # On CUDA the order of a single row's cumulative sum varies; float64 keeps that from changing tokens.
        probabilities = ordered.softmax(dim=1, dtype=torch.float64 if ordered.is_cuda else None)
        inside = probabilities.cumsum(dim=1) - probabilities < sampling.top_p + slack
        last = (inside.sum(dim=1, keepdim=True) - 1).clamp_min(0)
        threshold = torch.maximum(threshold, ordered.gather(1, last))
    return threshold


def _widened(sampling: SamplingSpec, scores: Tensor, slack: float) -> SamplingSpec:
    """Scores with a top-k that also keeps scores slightly below [1, V], since ties differ between runs."""
    if not 0 < sampling.top_k < scores.shape[1]:
        return sampling
    last = scores.topk(sampling.top_k, dim=1).values[:, -1:]
    return sampling.model_copy(update={"top_k": int((scores >= last - slack).sum())})


def _highest_excluded(scores: Tensor, sampling: SamplingSpec, slack: float) -> Tensor:
    """The highest score [B, 1] that the filters exclude, or would exclude if it were slightly lower."""
    excluded = scores.masked_fill(scores >= _threshold(scores, sampling, slack), -_INFINITY).amax(1, keepdim=True)
    if 0 < sampling.top_k < scores.shape[1]:
        excluded = torch.maximum(excluded, scores.topk(sampling.top_k + 1, dim=1).values[:, -1:])
    return excluded


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
