"""Reads a prompts file, whatever its format, and says what was understood."""

from collections import Counter
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from gpt_parallel.base.errors import MAX_PROBLEMS, SpecError, refuse, shorten
from gpt_parallel.base.untrusted_files import read_whole
from gpt_parallel.inputs.prompt_files.containers import Row, Rows, rows_of
from gpt_parallel.inputs.prompt_files.encodings import to_utf8
from gpt_parallel.inputs.prompt_files.parquet import MAGIC, parquet_rows
from gpt_parallel.inputs.prompt_files.shapes import CHATS, LENGTH_KEYS, recognise
from gpt_parallel.inputs.prompts import MAX_SAMPLES, Prompt

MAX_FILE_BYTES = 64 << 20
_KNOWN = ("prompt", "prompt_ids", *LENGTH_KEYS)


class PromptFile(NamedTuple):
    """A file's prompts with their places, and what was understood of it.

    `container`: such as "JSON Lines"; `form`: such as "ShareGPT, first human turn", and "" for this package's own
    format; `encoding`: such as "UTF-8"; `ignored`: keys without meaning here, with the number of rows that have each.
    """

    path: Path
    rows: list[tuple[str, Prompt]]
    container: str
    form: str
    encoding: str
    ignored: dict[str, int]

    @property
    def prompts(self) -> list[Prompt]:
        return [prompt for _, prompt in self.rows]

    @property
    def places(self) -> list[str]:
        return [place for place, _ in self.rows]

    def name(self, is_templated: bool = False) -> str:
        """The file's name, with its form in brackets if it is not this package's own: "x.json (ShareGPT, …)"."""
        parts = [self.form] if self.form else []
        if is_templated and self.form:
            parts = [self.form.replace("first human turn", "the model's chat template")]
        parts += [self.encoding] if self.encoding != "UTF-8" else []
        return f"{self.path.name} ({', '.join(parts)})" if parts else self.path.name

    @property
    def note_on_ignored(self) -> str | None:
        """One line that lists the ignored keys; None if there are none."""
        if not self.ignored:
            return None
        names = []
        for key in list(self.ignored)[:20]:
            meant = get_close_matches(key, _KNOWN, n=1, cutoff=0.75)
            names.append(shorten(key) + (f" (did you mean {meant[0]}?)" if meant else ""))
        more = f" and {len(self.ignored) - 20} more" if len(self.ignored) > 20 else ""
        return f"{self.path.name}: keys without effect are ignored: {', '.join(names)}{more}"


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file, as `read_prompt_file` reads it."""
    return read_prompt_file(path).prompts


def read_prompt_file(path: Path) -> PromptFile:
    """Read a file; its format is recognised by its shape, and by its name only for tables.

    Raises SpecError with file, line or row, and reason for all wrong ones at once. A file may have at most
    `MAX_FILE_BYTES`, a line `MAX_LINE_BYTES`. Empty lines, CRLF and a leading byte order mark are accepted.
    """
    raw = read_whole(path, MAX_FILE_BYTES, "prompts file")
    encoding = "UTF-8"
    if raw.startswith(MAGIC) or path.suffix.lower() == ".parquet":
        found = parquet_rows(path)
    else:
        text = to_utf8(raw)
        encoding, found = text.encoding, rows_of(path, text.content)
    return _collect(path, found, encoding)


def _collect(path: Path, found: Rows, encoding: str) -> PromptFile:
    rows: list[tuple[str, Prompt]] = []
    problems: list[str] = []
    forms: Counter[str] = Counter()
    ignored: Counter[str] = Counter()
    for number, row in enumerate(found.rows, start=1):
        if number > MAX_SAMPLES:
            raise SpecError(f"prompts file {path}: more than {MAX_SAMPLES} prompts, the most allowed")
        try:
            prompt, form, keys = _prompt(row)
        except SpecError as error:
            problems += [f"{row.place}: {problem}" for problem in error.problems]
            continue
        rows.append((row.place, prompt))
        forms[form] += 1
        if len(ignored) < 1000:
            ignored.update(keys)
    refuse(problems)
    if not rows:
        raise SpecError(
            f'prompts file {path} has no prompts; a line is such as {{"prompt": "…"}} or {{"prompt_ids": [1, 2]}}'
        )
    return PromptFile(path, rows, found.container, _form(found.container, forms), encoding, dict(ignored))


def _prompt(row: Row) -> tuple[Prompt, str, tuple[str, ...]]:
    if isinstance(row.value, SpecError):
        raise row.value
    fields, form, ignored = recognise(row.value)
    try:
        return Prompt.model_validate(fields), form, ignored
    except ValidationError as error:
        raise SpecError.from_validation(error) from error


def _form(container: str, forms: Counter[str]) -> str:
    """The file's form in words; "" for JSON Lines of this package's own."""
    names = [f"{form}, first human turn" if form in CHATS else form for form, _ in forms.most_common()]
    if names == ["prompts"] or (names == ["texts"] and container != "JSON Lines"):
        return "" if container == "JSON Lines" else container
    tail = "" if container in ("JSON Lines", "JSON array", "JSON object") else f", {container}"
    return " and ".join(names[:MAX_PROBLEMS]) + tail
