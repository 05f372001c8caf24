"""What the user got wrong: the error that says so, and how its messages quote values that anybody may have written."""

import reprlib
from collections.abc import Iterable
from difflib import get_close_matches
from functools import lru_cache

from pydantic import BaseModel, ValidationError

MAX_PROBLEMS = 20  # as many mistakes of a file are told; the rest is counted


class SpecError(ValueError):
    """What the user asked for cannot be run. `problems` has one plain sentence per mistake."""

    def __init__(self, problems: str | list[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else problems
        super().__init__("\n".join(self.problems))

    @classmethod
    def from_validation(cls, error: ValidationError, prefix: str = "", keys: Iterable[str] = ()) -> "SpecError":
        """The wrong fields of a pydantic error, each with its value and what is allowed.

        `keys` are those that a flat document may have.
        """
        items = error.errors(include_url=False)
        problems = []
        for item in items[:MAX_PROBLEMS]:
            field = ".".join(shorten(str(part)) for part in item["loc"])
            message = item["msg"].removeprefix("Value error, ")
            if keys and item["type"] == "extra_forbidden":
                message = unknown_key(field, tuple(keys))
            value = "" if isinstance(item["input"], dict | BaseModel) else f" = {quoted(item['input'])}"
            head = f"{prefix}{field}{value}: " if field else prefix
            problems += [head + line for line in message.split("\n")]
        if len(items) > MAX_PROBLEMS:
            problems.append(f"{prefix}… and {len(items) - MAX_PROBLEMS} more")
        return cls(problems)


def refuse(problems: list[str]) -> None:
    """Raise SpecError with the first of the problems, if there are any, and how many more there are."""
    more = [f"… and {len(problems) - MAX_PROBLEMS} more"] if len(problems) > MAX_PROBLEMS else []
    if problems:
        raise SpecError(problems[:MAX_PROBLEMS] + more)


@lru_cache(maxsize=256)  # a file may have the same one on every line
def unknown_key(name: str, allowed: tuple[str, ...]) -> str:
    """What a message says of a key that is not there, with the one that was probably meant."""
    nearest = get_close_matches(name, allowed, n=1)
    return f"unknown key; did you mean {nearest[0]!r}?" if nearest else f"unknown key; allowed: {', '.join(allowed)}"


def why_no_directory(error: OSError) -> str:
    """Why a directory cannot be made or written into."""
    if isinstance(error, FileExistsError | NotADirectoryError):
        return "a file is where it would be"
    return error.strerror or str(error)


def quoted(value: object) -> str:
    """A value as messages quote it: short whatever it holds."""
    return _SHORT.repr(value)


def shorten(text: str) -> str:
    """A text as messages quote it without quotation marks."""
    return text if len(text) <= 120 else f"{text[:100]}…"


class _Short(reprlib.Repr):
    """Bounds what a hostile document can make of a message: its own length, levels and digits."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother, self.maxlong = 3, 80, 80, 60

    def repr_int(self, x: int, level: int) -> str:
        if x.bit_length() > 1024:  # Python refuses to write long ones
            return f"a number of {x.bit_length()} bits"
        return super().repr_int(x, level)


_SHORT = _Short()
