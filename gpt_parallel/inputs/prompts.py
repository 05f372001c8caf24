"""Prompts: the shipped ones, a user's JSON Lines file or seeded random ids, turned into requests."""

import random
from codecs import BOM_UTF8
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints, ValidationError
from pydantic import model_validator as validate_model
from typing_extensions import Self

from gpt_parallel.base.errors import SpecError, quoted, refuse
from gpt_parallel.base.untrusted_files import parse_json, read_whole
from gpt_parallel.schema.architecture import Architecture
from gpt_parallel.schema.frozen import Frozen
from gpt_parallel.schema.run import Request, request_problems

DEFAULT_MAX_LENGTH = 64
MAX_FILE_BYTES = 64 << 20
MAX_LINE_BYTES = 1 << 20  # a thousand times the text that fits in GPT-2's positions
MAX_SAMPLES = 1_000_000
MAX_TOKENS = 1 << 26  # of all requests together, which every process holds in memory
Encode = Callable[[str], list[int]]


class Prompt(Frozen):
    """One line of a prompts file. `max_length` counts the tokens to generate, as transformers' `max_new_tokens`.

    Numbers have to be JSON numbers: neither true nor "5" is accepted.
    """

    prompt: Annotated[str, StringConstraints(min_length=1)] | None = None
    prompt_ids: Annotated[tuple[Annotated[int, Field(strict=True, ge=0)], ...], Field(min_length=1)] | None = None
    max_length: Annotated[int, Field(strict=True, gt=0)] = DEFAULT_MAX_LENGTH

    @validate_model(mode="after")
    def _one_kind(self) -> Self:
        if (self.prompt is None) == (self.prompt_ids is None):
            raise ValueError('exactly one of "prompt" (text) and "prompt_ids" (list of token ids) must be given')
        return self


def shipped_prompts() -> Path:
    """The 20 varied prompts that come with the package."""
    return Path(str(files("gpt_parallel.inputs") / "data" / "prompts.jsonl"))


def read_prompts(path: Path) -> list[Prompt]:
    """Read a JSON Lines file. Raises SpecError with file, line number and reason for all wrong lines at once.

    A file may have at most `MAX_FILE_BYTES`, a line `MAX_LINE_BYTES`. Empty lines, CRLF and a leading byte order mark
    are accepted.
    """
    return [prompt for _, prompt in read_numbered_prompts(path)]


def read_numbered_prompts(path: Path) -> list[tuple[int, Prompt]]:
    """Read a JSON Lines file as `read_prompts` does, with each prompt's line number."""
    content = read_whole(path, MAX_FILE_BYTES, "prompts file").removeprefix(BOM_UTF8)
    prompts, problems = [], []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            prompts.append((number, _parse_line(line)))
        except SpecError as error:
            problems += [f"{path}:{number}: {problem}" for problem in error.problems]
    refuse(problems)
    if not prompts:
        raise SpecError(
            f'prompts file {path} has no prompts; each line must be {{"prompt": "…"}} or {{"prompt_ids": [1, 2]}}'
        )
    return prompts


def _parse_line(line: bytes) -> Prompt:
    if len(line) > MAX_LINE_BYTES:
        raise SpecError(f"a line of {len(line)} bytes; allowed: at most {MAX_LINE_BYTES}")
    try:
        value = parse_json(line)
    except ValueError as error:
        raise SpecError(str(error)) from error
    if not isinstance(value, dict):
        raise SpecError('must be an object such as {"prompt": "…", "max_length": 64}')
    try:
        return Prompt.model_validate(value)
    except ValidationError as error:
        raise SpecError.from_validation(error, keys=Prompt.model_fields) from error


def make_requests(
    prompts: Sequence[Prompt],
    encode: Encode,
    *,
    num_requests: int | None,
    prompt_tokens: int | None,
    max_new_tokens: int | None,
    places: Sequence[str] = (),
) -> tuple[Request, ...]:
    """Tokenise prompts and fit them to the given lengths; `places` are the prompts' origins, for error messages.

    `num_requests` takes the first prompts, starting over if there are fewer; `prompt_tokens` cuts or repeats each to
    exactly that many tokens; `max_new_tokens` overrides each prompt's own `max_length`. None keeps the prompts' values.
    """
    count = num_requests or len(prompts)
    _check_amount(count, prompt_tokens or 1)
    encoded = [list(p.prompt_ids) if p.prompt_ids else encode(p.prompt or "") for p in prompts]
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
