"""The error for user mistakes, and how its messages quote untrusted values."""

import re
import reprlib
from collections.abc import Iterable
from difflib import get_close_matches
from functools import lru_cache
from typing import Literal

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from gpt_parallel.base.suggestions import did_you_mean

HelpTopic = Literal[
    "gpu",
    "memory",
    "timeout",
    "model",
    "start",
    "permissions",
    "utilisation",
    "strategy",
    "figures",
    "unstable",
    "production",
    "models",
    "own-strategy",
    "data",
    "logs",
]
MAX_PROBLEMS = 20  # mistakes listed per file; the others are only counted


class SpecError(ValueError):
    """A user mistake that prevents a run. `problems` has one plain sentence per mistake."""

    def __init__(self, problems: str | list[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else problems
        super().__init__("\n".join(self.problems))

    @classmethod
    def from_validation(cls, error: ValidationError, prefix: str = "", keys: Iterable[str] = ()) -> "SpecError":
        """Convert a pydantic error: one problem for each wrong field, with its value and the allowed ones.

        `keys`: the allowed keys of a flat document, for the message about an unknown one.
        """
        items = error.errors(include_url=False)
        problems = []
        for item in items[:MAX_PROBLEMS]:
            field = ".".join(shorten(str(part)) for part in item["loc"])
            message = _in_words(item)
            if keys and item["type"] == "extra_forbidden":
                message = unknown_key(field, tuple(keys))
            value = "" if isinstance(item["input"], dict | BaseModel) else f" = {quoted(item['input'])}"
            head = f"{prefix}{field}{value}: " if field else prefix
            problems += [head + line for line in message.split("\n")]
        if len(items) > MAX_PROBLEMS:
            problems.append(f"{prefix}… and {len(items) - MAX_PROBLEMS} more")
        return cls(problems)


_IN_WORDS = {
    "missing": "is missing",
    "extra_forbidden": "unknown key",
    "string_type": "must be text",
    "string_unicode": "must be text that is valid Unicode",
    "dict_type": "must be an object with keys",
    "model_type": "must be an object with keys",
    "model_attributes_type": "must be an object with keys",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "must be an integer"),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
}


def _in_words(item: ErrorDetails) -> str:
    """A pydantic error in this project's words."""
    message = _IN_WORDS.get(item["type"]) or item["msg"].removeprefix("Value error, ")
    for theirs, ours in (
        ("Input should ", "must "),
        ("greater than or equal to", "at least"),
        ("less than or equal to", "at most"),
    ):
        message = message.replace(theirs, ours)
    if item["type"] == "literal_error":
        message += did_you_mean(item["input"], re.findall("'([^']*)'", item["ctx"]["expected"]))
    return message


def see(topic: HelpTopic) -> str:
    """The end of a message that has a section in docs/troubleshooting.md."""
    return f" (see: gpt-parallel help {topic})"


def refuse(problems: list[str]) -> None:
    """Raise SpecError if there are problems: the first MAX_PROBLEMS of them, and the number of the others."""
    more = [f"… and {len(problems) - MAX_PROBLEMS} more"] if len(problems) > MAX_PROBLEMS else []
    if problems:
        raise SpecError(problems[:MAX_PROBLEMS] + more)


@lru_cache(maxsize=256)  # a file may repeat the same unknown key on every line
def unknown_key(name: str, allowed: tuple[str, ...]) -> str:
    """The message for an unknown key: the key that was probably meant, or all allowed ones."""
    nearest = get_close_matches(name, allowed, n=1)
    return f"unknown key; did you mean {nearest[0]!r}?" if nearest else f"unknown key; allowed: {', '.join(allowed)}"


def why_no_directory(error: OSError) -> str:
    """The reason why a directory cannot be created or written into."""
    if isinstance(error, FileExistsError | NotADirectoryError):
        return "a file is in its place"
    return error.strerror or str(error)


def quoted(value: object) -> str:
    """A value as messages quote it, of bounded length."""
    return _SHORT.repr(value)


def shorten(text: str) -> str:
    """A text as messages quote it without quotation marks, cut if it is long."""
    return text if len(text) <= 120 else f"{text[:100]}…"


class _Short(reprlib.Repr):
    """Bounds the length, nesting and digits that a hostile document can put into a message."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother, self.maxlong = 3, 80, 80, 60

    def repr_int(self, x: int, level: int) -> str:
        if x.bit_length() > 1024:  # Python refuses to convert long ones to text
            return f"a number of {x.bit_length()} bits"
        return super().repr_int(x, level)


_SHORT = _Short()
