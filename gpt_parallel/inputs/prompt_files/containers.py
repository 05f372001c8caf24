"""The rows of a prompts file: JSON Lines, a JSON document, a table with a header, or a text on each line."""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gpt_parallel.base.errors import SpecError
from gpt_parallel.base.untrusted_files import parse_json
from gpt_parallel.inputs.prompt_files.shapes import LENGTH_KEYS

MAX_LINE_BYTES = 1 << 20  # a thousand times the text that fits in GPT-2's positions
_JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
_TABLE_SUFFIXES = {".csv": None, ".tsv": "\t"}
_ARCHIVES = {b"PK\x03\x04": "a zip archive", b"\x1f\x8b": "a gzip archive", b"\x28\xb5\x2f\xfd": "a zstandard archive"}
# Control characters that no text file has: all but tab, line ends and form feed; the escape of colours is allowed.
_BINARY = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")


class Row(NamedTuple):
    """A row's place in messages, and its value, or the error that it is."""

    place: str
    value: Any


class Rows(NamedTuple):
    """The name of the container, and its rows."""

    container: str
    rows: Iterator[Row]


def rows_of(path: Path, content: bytes) -> Rows:
    """The rows of a file's UTF-8 content. Raises SpecError if it is no text, or not what its beginning says."""
    for magic, what in _ARCHIVES.items():
        if content.startswith(magic):
            raise SpecError(f"prompts file {path}: is {what}; unpack it first")
    suffix, start = path.suffix.lower(), content.lstrip()[:1]
    if suffix in _TABLE_SUFFIXES:
        return Rows("CSV" if suffix == ".csv" else "TSV", _table(path, content, _TABLE_SUFFIXES[suffix]))
    if start in (b"[", b"{"):
        lines = _first_lines(content)
        if start == b"[" or len(lines) == 1 or not _is_json(lines[0]):
            document = _document(path, content, lines)
            if document is not None:
                return document
    elif start and suffix not in _JSON_SUFFIXES:
        return Rows("text, a prompt a line", _text_lines(path, content))
    return Rows("JSON Lines", _json_lines(path, content))


def _first_lines(content: bytes) -> list[bytes]:
    """The first two lines that are not empty."""
    found = []
    for match in re.finditer(rb"[^\n]+", content):
        if match.group().strip():
            found.append(match.group())
        if len(found) == 2:
            break
    return found


def _is_json(line: bytes) -> bool:
    try:
        parse_json(line[: MAX_LINE_BYTES + 1])
    except ValueError:
        return False
    return True


def _document(path: Path, content: bytes, lines: list[bytes]) -> Rows | None:
    """The rows of one JSON document; None if the file is rather JSON Lines, whose bad lines are to be named."""
    try:
        document = parse_json(content)
    except ValueError as error:
        is_lines = len(lines) == 1 or _is_json(lines[0]) or path.suffix.lower() in (".jsonl", ".ndjson")
        if is_lines:
            return None
        raise SpecError(f"prompts file {path}: {error}") from error
    if isinstance(document, list):
        return Rows("JSON array", (Row(f"{path}: row {number}", row) for number, row in enumerate(document, start=1)))
    wrapped = [value for value in document.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if len(wrapped) == 1 and not {"messages", "conversations", "conversation", "prompt"} & set(document):
        return Rows("JSON array", (Row(f"{path}: row {n}", row) for n, row in enumerate(wrapped[0], start=1)))
    return None if len(lines) == 1 else Rows("JSON object", iter([Row(f"{path}", document)]))


def _json_lines(path: Path, content: bytes) -> Iterator[Row]:
    for number, line in enumerate(io.BytesIO(content), start=1):
        if line.strip():
            yield Row(f"{path}:{number}", _parsed(line.removesuffix(b"\n")))


def _parsed(line: bytes) -> Any:
    if len(line) > MAX_LINE_BYTES:
        return SpecError(f"a line of {len(line)} bytes; allowed: at most {MAX_LINE_BYTES}")
    try:
        return parse_json(line)
    except ValueError as error:
        return SpecError(str(error))


def _text_lines(path: Path, content: bytes) -> Iterator[Row]:
    if match := _BINARY.search(content):
        raise SpecError(
            f"prompts file {path}: looks like binary data (byte {match.start() + 1}); allowed are JSON Lines, JSON, "
            "CSV, TSV, Parquet, and plain text with a prompt on each line"
        )
    for number, line in enumerate(io.BytesIO(content), start=1):
        if not line.strip():
            continue
        place, line = f"{path}:{number}", line.removesuffix(b"\n")
        if len(line) > MAX_LINE_BYTES:
            yield Row(place, SpecError(f"a line of {len(line)} bytes; allowed: at most {MAX_LINE_BYTES}"))
            continue
        try:
            yield Row(place, line.rstrip(b"\r").decode("utf-8"))
        except UnicodeDecodeError as error:
            yield Row(place, SpecError(f"neither UTF-8 nor GBK at byte {error.start + 1}; convert it to UTF-8"))


def _table(path: Path, content: bytes, delimiter: str | None) -> Iterator[Row]:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SpecError(f"{path}:{line}: neither UTF-8 nor GBK; convert it to UTF-8") from error
    header = text[: text.find("\n") + 1 or len(text)]
    delimiter = delimiter or max(",;\t|", key=header.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    csv.field_size_limit(MAX_LINE_BYTES)
    try:
        for row in reader:
            yield Row(f"{path}:{reader.line_num}", table_row(row))
    except csv.Error as error:
        raise SpecError(f"{path}:{reader.line_num}: not a valid table ({error})") from error


def table_row(row: dict[Any, Any]) -> dict[str, Any]:
    """A row of a table: without empty cells and surplus ones, and with lengths as numbers."""
    found = {key.strip(): value for key, value in row.items() if isinstance(key, str) and value not in (None, "")}
    for key in LENGTH_KEYS:
        if isinstance(value := found.get(key), str) and value.isascii() and value.isdigit() and len(value) < 19:
            found[key] = int(value)
    return found
