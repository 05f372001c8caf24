"""Fits the number of new tokens to the positions that a model has left after each prompt."""

from collections.abc import Sequence

from gpt_parallel.schema.run import Request


def fit_new_tokens(requests: Sequence[Request], max_positions: int) -> tuple[tuple[Request, ...], str | None]:
    """Cut requests to `max_positions` tokens in total, and say so in a sentence; None if nothing was cut.

    A prompt that leaves no position stays as it is: it cannot be run at all.
    """
    fitted = tuple(
        request.model_copy(update={"max_new_tokens": left})
        if 0 < (left := max_positions - len(request.prompt_ids)) < request.max_new_tokens
        else request
        for request in requests
    )
    cut = [new for new, old in zip(fitted, requests, strict=True) if new is not old]
    if not cut:
        return fitted, None
    news = sorted({request.max_new_tokens for request in cut})
    asked = max(request.max_new_tokens for request in requests)
    lengths = " to ".join(map(str, dict.fromkeys((news[0], news[-1]))))
    share = f"{len(cut)} of {len(requests)} requests"
    return fitted, f"max_length {asked} is cut to {lengths} ({share}): the model has {max_positions} positions"
