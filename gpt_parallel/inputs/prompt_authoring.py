"""Makes prompts files with prompts of a given length, and inspects prompts files.

A text's length in tokens depends on the tokenizer, so texts are built word by word until they have the given number of
tokens by the tokenizer that will read them.
"""

import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from gpt_parallel.base.atomic_files import write_atomically
from gpt_parallel.base.errors import SpecError, refuse
from gpt_parallel.inputs.prompt_files.read import PromptFile, read_prompts
from gpt_parallel.inputs.prompts import Encode, EncodeChat, Prompt, shipped_prompts, token_ids
from gpt_parallel.schema.architecture import Architecture
from gpt_parallel.schema.run import Request, request_problems

_PASSAGE_WORDS = (6, 16)  # consecutive words from one shipped prompt
_MAX_MISSES = 40
_FILLERS = (".", "!", "?", ",", "a", "x", "0")


class PromptSet(NamedTuple):
    """The contents of a file to make: a number of prompts, the length of each, and the tokens to generate for each."""

    num_samples: int
    prompt_tokens: int
    max_length: int


def grid(largest: PromptSet, num_configs: int) -> list[PromptSet]:
    """`num_configs` sets, small ones first: lengths halve from the largest, each with few and with all samples."""
    few, many = max(1, largest.num_samples // 5), largest.num_samples
    counts = sorted({few, many})
    num_lengths = -(-num_configs // len(counts))
    lengths = [largest.prompt_tokens >> halvings for halvings in reversed(range(num_lengths))]
    if lengths[0] < 1:
        raise SpecError(
            f"{num_configs} configurations need {num_lengths} lengths, each half of the next, and "
            f"{largest.prompt_tokens} tokens cannot be halved that often; use fewer --num-configs or more "
            "--prompt-tokens"
        )
    sets = [PromptSet(count, length, largest.max_length) for length in lengths for count in counts]
    return sets[-num_configs:]


def grid_path(output: Path, member: PromptSet) -> Path:
    return output.with_name(f"{output.stem}_{member.num_samples}x{member.prompt_tokens}{output.suffix}")


def make_prompts(prompt_set: PromptSet, encode: Encode, seed: int) -> Iterator[Prompt]:
    """Seeded passages of the shipped prompts' words, each exactly `prompt_tokens` long by the given tokenizer.

    If no text has that many tokens, which can happen with a custom tokenizer, the prompt is a list of token ids.
    """
    sources = [prompt.prompt.split() for prompt in read_prompts(shipped_prompts()) if prompt.prompt]
    generator = random.Random(seed)
    count = lru_cache(maxsize=None)(lambda word: len(encode(word)))
    for _ in range(prompt_set.num_samples):
        text = _text_of(prompt_set.prompt_tokens, _words(generator, sources), count)
        text, ids = _fill(text, prompt_set.prompt_tokens, encode)
        if len(ids) == prompt_set.prompt_tokens:
            yield Prompt(prompt=text, max_length=prompt_set.max_length)
        else:
            yield Prompt(prompt_ids=tuple(ids[: prompt_set.prompt_tokens]), max_length=prompt_set.max_length)


def _words(generator: random.Random, sources: Sequence[Sequence[str]]) -> Iterator[str]:
    while True:
        words = generator.choice(sources)
        start = generator.randrange(len(words))
        yield from words[start : start + generator.randint(*_PASSAGE_WORDS)]


def _text_of(length: int, words: Iterator[str], count: Callable[[str], int]) -> str:
    """Join words that fit, until many in a row do not. A byte-level tokenizer keeps words apart, so counts add up."""
    chosen: list[str] = []
    used = misses = 0
    while used < length and misses < _MAX_MISSES:
        piece = f" {next(words)}" if chosen else next(words)
        if used + count(piece) > length:
            misses += 1
            continue
        misses = 0
        chosen.append(piece)
        used += count(piece)
    return "".join(chosen)


def _fill(text: str, length: int, encode: Encode) -> tuple[str, list[int]]:
    """Append fillers until the text has its length, or more if none adds exactly one token; return text and ids."""
    ids = encode(text) if text else []
    while len(ids) < length:
        for filler in _FILLERS:
            longer = encode(text + filler)
            if len(longer) == len(ids) + 1:
                break
        text, ids = text + filler, longer
    return text, ids


def check_outputs(paths: Iterable[Path], *, force: bool) -> None:
    """Raise SpecError for a directory, and for an existing file unless `force` allows to replace it."""
    for path in paths:
        if path.is_dir():
            raise SpecError(f"--output {path}: is a directory; give a file's name")
        if path.exists() and not force:
            raise SpecError(f"--output {path}: exists already; --force replaces it")


def write_prompts(path: Path, prompts: Iterable[Prompt], on_written: Callable[[], None] = lambda: None) -> None:
    """Write the whole file; on failure the old one stays as it was. Raises SpecError."""

    def lines() -> Iterator[str]:
        for prompt in prompts:
            yield json.dumps(prompt.model_dump(exclude_none=True, exclude={"messages"}), ensure_ascii=False) + "\n"
            on_written()

    try:
        write_atomically(path, lines())
    except OSError as error:
        raise SpecError(f"{path}: cannot be written ({error.strerror})") from error


class Contents(NamedTuple):
    """The contents of a valid file: each prompt's length and number of tokens to generate."""

    num_texts: int
    prompt_lengths: list[int]
    max_lengths: list[int]
    num_repeated: int


def inspect_prompts(
    file: PromptFile, encode: Encode, shape: Architecture, model: str, encode_chat: EncodeChat | None = None
) -> Contents:
    """Look at a file's prompts as a run with this model would. Raises SpecError for all that cannot be run."""
    encoded = [(place, prompt, token_ids(prompt, encode, encode_chat)) for place, prompt in file.rows]
    problems = []
    for place, prompt, ids in encoded:
        if ids:
            request = Request(request_id=0, prompt_ids=tuple(ids), max_new_tokens=prompt.max_length)
            problems += [f"{place}: {problem}" for problem in request_problems(request, model, shape)]
        else:
            problems.append(f"{place}: is empty after tokenisation")
    refuse(problems)
    return Contents(
        num_texts=sum(prompt.prompt is not None for prompt in file.prompts),
        prompt_lengths=[len(ids) for _, _, ids in encoded],
        max_lengths=[prompt.max_length for prompt in file.prompts],
        num_repeated=len(encoded) - len({tuple(ids) for _, _, ids in encoded}),
    )
