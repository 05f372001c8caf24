"""Prompts: the shipped ones, a user's JSON Lines file or seeded random ids, turned into requests."""

import json
import random
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, PositiveInt, StringConstraints, ValidationError
from pydantic import model_validator as validate_model
from typing_extensions import Self

from gpt_parallel.spec import Frozen, Request, SpecError

DEFAULT_MAX_LENGTH = 64
Encode = Callable[[str], list[int]]


class Prompt(Frozen):
    """One line of a prompts file. `max_length` counts the tokens to generate, as transformers' `max_new_tokens`."""

    prompt: Annotated[str, StringConstraints(min_length=1)] | None = None
    prompt_ids: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] | None = None
    max_length: PositiveInt = DEFAULT_MAX_LENGTH

    @validate_model(mode="after")
    def _one_kind(self) -> Self:
        if (self.prompt is None) == (self.prompt_ids is None):
            raise ValueError('exactly one of "prompt" (text) and "prompt_ids" (list of token ids) must be given')
        return self


def shipped_prompts() -> Path:
    """The 20 varied prompts that come with the package."""
    return Path(str(files("gpt_parallel") / "data" / "prompts.jsonl"))


def read_prompts(path: Path) -> list[Prompt]:
    """Read a JSON Lines file. Raises SpecError with file, line number and reason, for all wrong lines at once."""
    return [prompt for _, prompt in read_numbered_prompts(path)]


def read_numbered_prompts(path: Path) -> list[tuple[int, Prompt]]:
    """The same with each prompt's line number."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise SpecError(f"prompts file {path}: cannot be read ({error.strerror})") from error
    prompts, problems = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            prompts.append((number, _parse_line(line)))
        except SpecError as error:
            problems += [f"{path}:{number}: {problem}" for problem in error.problems]
    if problems:
        raise SpecError(problems)
    if not prompts:
        raise SpecError(
            f'prompts file {path} has no prompts; each line is {{"prompt": "…"}} or {{"prompt_ids": [1, 2]}}'
        )
    return prompts


def _parse_line(line: bytes) -> Prompt:
    try:
        value: Any = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise SpecError(f"not valid UTF-8 at byte {error.start + 1}") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise SpecError(f"not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise SpecError('must be an object such as {"prompt": "…", "max_length": 64}')
    try:
        return Prompt.model_validate(value)
    except ValidationError as error:
        raise SpecError.from_validation(error) from error


def make_requests(
    prompts: Sequence[Prompt],
    encode: Encode,
    *,
    num_requests: int | None,
    prompt_tokens: int | None,
    max_new_tokens: int | None,
) -> tuple[Request, ...]:
    """Tokenise prompts and fit them to the asked lengths.

    `num_requests` takes the first so many, going round again when there are fewer; `prompt_tokens` cuts each prompt, or
    repeats it, to exactly that many tokens; `max_new_tokens` overrides each prompt's own `max_length`. None keeps what
    the prompts say.
    """
    encoded = [list(p.prompt_ids) if p.prompt_ids else encode(p.prompt or "") for p in prompts]
    for index, ids in enumerate(encoded):
        if not ids:
            raise SpecError(f"prompt {index + 1} is empty after tokenisation")
    return tuple(
        Request(
            request_id=index,
            prompt_ids=tuple(_fit(encoded[index % len(prompts)], prompt_tokens)),
            max_new_tokens=max_new_tokens or prompts[index % len(prompts)].max_length,
        )
        for index in range(num_requests or len(prompts))
    )


def _fit(ids: list[int], length: int | None) -> list[int]:
    if length is None:
        return ids
    return (ids * (length // len(ids) + 1))[:length]


def random_prompts(count: int, length: int, vocab_size: int, seed: int) -> list[Prompt]:
    """Seeded uniform token ids."""
    generator = random.Random(seed)
    return [Prompt(prompt_ids=tuple(generator.randrange(vocab_size) for _ in range(length))) for _ in range(count)]
