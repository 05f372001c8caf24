"""Prompts: the shipped ones, those of a user's file or seeded random ids, turned into requests."""

import random
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints
from pydantic import model_validator as validate_model
from typing_extensions import Self

from gpt_parallel.base.errors import SpecError, quoted, refuse
from gpt_parallel.schema.architecture import Architecture
from gpt_parallel.schema.frozen import Frozen
from gpt_parallel.schema.run import Request, request_problems

DEFAULT_MAX_LENGTH = 64
MAX_SAMPLES = 1_000_000
MAX_TOKENS = 1 << 26  # of all requests together, which every process holds in memory
Encode = Callable[[str], list[int]]


class Message(Frozen):
    """A turn of a chat; `role` is system, user, assistant or what else a template knows."""

    role: str
    content: str


EncodeChat = Callable[[Sequence[Message]], list[int]]


class Prompt(Frozen):
    """One prompt. `max_length` counts the tokens to generate, as transformers' `max_new_tokens`.

    Numbers have to be JSON numbers: neither true nor "5" is accepted. A chat has `messages` up to the first answer, for
    models with a chat template, and as `prompt` its first human turn, for the others.
    """

    prompt: Annotated[str, StringConstraints(min_length=1)] | None = None
    prompt_ids: Annotated[tuple[Annotated[int, Field(strict=True, ge=0)], ...], Field(min_length=1)] | None = None
    max_length: Annotated[int, Field(strict=True, gt=0)] = DEFAULT_MAX_LENGTH
    messages: tuple[Message, ...] | None = None

    @validate_model(mode="after")
    def _one_kind(self) -> Self:
        if (self.prompt is None) == (self.prompt_ids is None):
            raise ValueError('exactly one of "prompt" (text) and "prompt_ids" (list of token ids) must be given')
        return self


def shipped_prompts() -> Path:
    """The 20 varied prompts that come with the package."""
    return Path(str(files("gpt_parallel.inputs") / "data" / "prompts.jsonl"))


def make_requests(
    prompts: Sequence[Prompt],
    encode: Encode,
    *,
    num_requests: int | None,
    prompt_tokens: int | None,
    max_new_tokens: int | None,
    places: Sequence[str] = (),
    encode_chat: EncodeChat | None = None,
) -> tuple[Request, ...]:
    """Tokenise prompts and fit them to the given lengths; `places` are the prompts' origins, for error messages.

    `encode_chat` tokenises chats; without it their first human turn is taken.

    `num_requests` takes the first prompts, starting over if there are fewer; `prompt_tokens` cuts or repeats each to
    exactly that many tokens; `max_new_tokens` overrides each prompt's own `max_length`. None keeps the prompts' values.
    """
    count = num_requests or len(prompts)
    _check_amount(count, prompt_tokens or 1)
    encoded = [token_ids(prompt, encode, encode_chat) for prompt in prompts]
    for index, ids in enumerate(encoded):
        if not ids:
            raise SpecError(f"{places[index] if places else f'prompt {index + 1}'} is empty after tokenisation")
    fitted = [tuple(_fit(ids, prompt_tokens)) for ids in encoded[:count]]
    return tuple(
        Request(
            request_id=index,
            prompt_ids=fitted[index % len(prompts)],
            max_new_tokens=max_new_tokens or prompts[index % len(prompts)].max_length,
        )
        for index in range(count)
    )


def token_ids(prompt: Prompt, encode: Encode, encode_chat: EncodeChat | None) -> list[int]:
    if prompt.messages and encode_chat:
        return encode_chat(prompt.messages)
    return list(prompt.prompt_ids) if prompt.prompt_ids else encode(prompt.prompt or "")


def check_requests(requests: Sequence[Request], places: Sequence[str], model: str, shape: Architecture) -> None:
    """Raise SpecError for requests that a model cannot run, with the place of each one's prompt.

    Each prompt is reported once, however many requests repeat it.
    """
    refuse(
        [
            f"{place}: request {request.request_id}: {problem}"
            for place, request in zip(places, requests, strict=False)
            for problem in request_problems(request, model, shape)
        ]
    )


def _check_amount(num_samples: int, prompt_tokens: int) -> None:
    if num_samples > MAX_SAMPLES or num_samples * prompt_tokens > MAX_TOKENS:
        raise SpecError(
            f"num_samples {quoted(num_samples)} × prompt_tokens {quoted(prompt_tokens)} is too large; allowed: at most "
            f"{MAX_SAMPLES} requests and {MAX_TOKENS} tokens in total"
        )


def _fit(ids: list[int], length: int | None) -> list[int]:
    if length is None:
        return ids
    return (ids * (length // len(ids) + 1))[:length]


def random_prompts(count: int, length: int, vocab_size: int, seed: int) -> list[Prompt]:
    """Seeded uniform token ids."""
    _check_amount(count, length)
    generator = random.Random(seed)
    return [Prompt(prompt_ids=tuple(generator.randrange(vocab_size) for _ in range(length))) for _ in range(count)]
