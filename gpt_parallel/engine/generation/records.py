"""Records of requests, collected from the tokens that batches sample row by row."""

from collections.abc import Iterator, Sequence
from math import isfinite

import torch

from gpt_parallel.engine.generation.loop import BatchEvent
from gpt_parallel.engine.generation.sampling import SampledTokens
from gpt_parallel.engine.pipe import LostPeerError
from gpt_parallel.schema.result import TokenRecord
from gpt_parallel.schema.run import Request, RequestTokens

_WHY = "(NaN or infinite weights, or numbers too large for the number type)"


class TaintedError(LostPeerError):
    """Another shard's logits are not finite; that shard's own rank reports the error."""


def _by_batch(events: Sequence[BatchEvent]) -> Iterator[tuple[tuple[Request, ...], list[SampledTokens]]]:
    choices: dict[str, list[SampledTokens]] = {}
    requests = {}
    for event in events:
        assert event.choice is not None
        requests[event.batch.batch_id] = event.batch.requests
        choices.setdefault(event.batch.batch_id, []).append(event.choice)
    for name, chosen in choices.items():
        yield requests[name], chosen


def tokens_by_request(events: Sequence[BatchEvent]) -> dict[int, tuple[int, ...]]:
    tokens = {}
    for requests, choices in _by_batch(events):
        table = torch.stack([choice.tokens for choice in choices], dim=1).tolist()  # [B, steps]
        for request, row in zip(requests, table, strict=True):
            tokens[request.request_id] = tuple(row[: request.max_new_tokens])
    return tokens


def check_own_logits(events: Sequence[BatchEvent]) -> None:
    """Raise ArithmeticError at the first token for which this rank's own logits are not finite."""
    places = [
        (position, request.request_id)
        for requests, choices in _by_batch(events)
        for request, row in zip(requests, _finite(choices), strict=True)
        for position, finite in enumerate(row[: request.max_new_tokens])
        if not finite
    ]
    if places:
        position, request_id = min(places)
        raise ArithmeticError(f"request {request_id}, new token {position}: the logits are not finite {_WHY}")


def _finite(choices: Sequence[SampledTokens]) -> list[list[bool]]:
    """[B, steps]: whether this rank's own logits were finite."""
    finite: list[list[bool]] = torch.stack([choice.finite_check for choice in choices], dim=1).isfinite().tolist()
    return finite


def changed_tokens(records: Sequence[TokenRecord], tokens: dict[int, tuple[int, ...]]) -> tuple[RequestTokens, ...]:
    """The tokens of a round for requests whose tokens differ from the recorded ones."""
    changed = (record.request_id for record in records if tokens[record.request_id] != record.tokens)
    return tuple(RequestTokens(request_id=key, tokens=tokens[key]) for key in changed)


def _check_finite(request: Request, logprobs: Sequence[float], scales: Sequence[float]) -> None:
    for position, (logprob, scale) in enumerate(zip(logprobs, scales, strict=True)):
        if not (isfinite(logprob) and isfinite(scale)):
            raise TaintedError(
                f"request {request.request_id}, new token {position}: another shard's logits are not finite"
            )


def token_records(events: Sequence[BatchEvent]) -> list[TokenRecord]:
    """The records of all requests. Raises ArithmeticError for non-finite logits, TaintedError for another shard's."""
    check_own_logits(events)
    tokens = tokens_by_request(events)
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
