"""Writes each finished case to disk before the next one starts: a power cut loses one case, not a night.

The journal is an append-only JSON Lines file: a header with the settings and the machine, a line for each finished case
of a pytest session, and an end line. A line that a crash cut off is dropped when the file is opened again.
"""

import errno
import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from pydantic import ValidationError
from typing_extensions import Self

from gpt_parallel.base.atomic_files import write_atomically
from gpt_parallel.base.errors import SpecError
from gpt_parallel.base.redaction import redact_tree
from gpt_parallel.base.untrusted_files import parse_json, read_whole
from gpt_parallel.bench.environment import describe_machine, describe_weights
from gpt_parallel.inputs.prompt_files.read import MAX_FILE_BYTES
from gpt_parallel.inputs.settings import Settings
from gpt_parallel.schema.frozen import Frozen
from gpt_parallel.schema.result import RunResult

MAX_BYTES = 1 << 30
_END = {"kind": "end"}
_ELSEWHERE = "use another directory with --gpt-report DIR"
_START_OVER = "move it away, or use --gpt-report DIR"
# Settings that may differ when a journal is resumed: they select cases, or do not change measurements.
_FREE = {"strategy", "num_gpus", "batch_sizes", "timeout_s", "offline", "when_busy", "launcher_address", "log_dir"}


class JournalError(RuntimeError):
    """An open journal can no longer be written."""


class Header(Frozen):
    """The facts that hold for all lines of a journal. Cases with different headers do not belong in one table."""

    kind: Literal["session"] = "session"
    schema_version: Literal[1] = 1
    settings: dict[str, Any]
    machine: dict[str, str]


def make_header(settings: Settings) -> Header:
    """Make the header. Raises SpecError for a prompts file that cannot be read: its content is part of the header."""
    fixed = settings.model_dump(mode="json", exclude=_FREE)
    if settings.prompts not in ("builtin", "random"):
        content = read_whole(Path(settings.prompts), MAX_FILE_BYTES, "prompts file")
        fixed["prompts_sha256"] = hashlib.sha256(content).hexdigest()
    fixed.update(describe_weights(settings))
    return redact_tree(Header(settings=fixed, machine=describe_machine()))


class Finished(Frozen):
    """A finished case: every launch, which includes pytest-benchmark's rounds, or the reason why it failed."""

    kind: Literal["case"] = "case"
    case: str
    outcome: Literal["passed", "failed"]
    reason: str = ""
    results: tuple[RunResult, ...] = ()


class Journal:
    """An open journal, locked against a second writer. `finished` has each case's latest line."""

    def __init__(self, path: Path, header: Header, *, resume: bool, keep_as: Path) -> None:
        """Open a journal. An unfinished one that is not resumed is copied to `keep_as`, or to a similar free name.

        Then `kept` is its new path, and `num_kept` the number of its cases. A finished one with another header leaves
        nothing to resume; `has_nothing_to_resume` says so. Raises SpecError if the file cannot be used, or if an
        unfinished one has another header; the file is then unchanged.
        """
        self.path, self.num_kept, self.kept = path, 0, path
        self.has_nothing_to_resume = False
        self.finished: dict[str, Finished] = {}
        try:
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise SpecError(f"journal {path}: cannot be written ({error.strerror}); {_ELSEWHERE}") from error
        try:
            self._lock()
            self._open(header, resume, keep_as)
        except (OSError, JournalError) as error:
            os.close(self._file)
            raise SpecError(str(error)) from error
        except BaseException:
            os.close(self._file)
            raise

    def _lock(self) -> None:
        if not stat.S_ISREG(os.fstat(self._file).st_mode):
            raise SpecError(f"journal {self.path}: not a regular file; {_ELSEWHERE}")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SpecError(f"journal {self.path}: another pytest session is writing it; {_ELSEWHERE}") from error

    def _open(self, header: Header, resume: bool, keep_as: Path) -> None:
        content = self._content()
        end = content.rfind(b"\n") + 1  # the rest was cut off
        lines = self._parse(content[:end])
        if lines[0].get("kind") != header.kind if lines else not _may_be_cut_off(content, header):
            raise SpecError(f"{self.path} is not a session journal; {_ELSEWHERE}")
        if resume and lines and not self._is_finished_with_others(lines, header):
            self._check_header(lines[0], header)
            self.finished = {case.case: case for case in self._cases(lines)}
            os.ftruncate(self._file, end)
            return
        if len(lines) > 1 and lines[-1] != _END:
            self.kept, self.num_kept = _free_name(keep_as), len({line.get("case") for line in lines[1:]})
            write_atomically(self.kept, content)
        os.ftruncate(self._file, 0)
        self._append(header.model_dump(mode="json"))
        self._sync_directory()

    def _is_finished_with_others(self, lines: list[dict[str, Any]], header: Header) -> bool:
        self.has_nothing_to_resume = lines[-1] == _END and lines[0] != header.model_dump(mode="json")
        return self.has_nothing_to_resume

    def _content(self) -> bytes:
        """Read the open file, because another file may have its name by now."""
        size = os.fstat(self._file).st_size
        if size > MAX_BYTES:
            raise SpecError(f"journal {self.path}: larger than {MAX_BYTES} bytes, the most allowed; {_START_OVER}")
        os.lseek(self._file, 0, os.SEEK_SET)
        with open(self._file, "rb", closefd=False) as stream:
            return stream.read(size)

    def _parse(self, content: bytes) -> list[dict[str, Any]]:
        lines = []
        for number, line in enumerate(content.splitlines(), start=1):
            try:
                value = parse_json(line)
            except ValueError as error:
                raise SpecError(f"journal {self.path}:{number}: {error}; {_START_OVER}") from error
            if not isinstance(value, dict):
                raise SpecError(f"journal {self.path}:{number}: not an object; {_START_OVER}")
            lines.append(value)
        return lines

    def _check_header(self, line: Mapping[str, Any], header: Header) -> None:
        try:
            found = Header.model_validate(line)
        except ValidationError as error:
            raise SpecError.from_validation(error, prefix=f"journal {self.path}:1: ") from error
        differing = [
            f"{name} was {old.get(name)!r} and is {new.get(name)!r}"
            for old, new in ((found.settings, header.settings), (found.machine, header.machine))
            for name in sorted({*old, *new})
            if old.get(name) != new.get(name)
        ]
        if differing:
            raise SpecError(
                f"journal {self.path} is of other settings or another machine: {'; '.join(differing)} ({_START_OVER})"
            )

    def _cases(self, lines: list[dict[str, Any]]) -> list[Finished]:
        try:
            return [Finished.model_validate(line) for line in lines[1:] if line != _END]
        except ValidationError as error:
            raise SpecError.from_validation(error, prefix=f"journal {self.path}: ") from error

    def add(self, case: Finished) -> None:
        """Write a case to disk; raises JournalError if that fails. `finished` has the case either way."""
        self.finished[case.case] = case
        self._append(redact_tree(case).model_dump(mode="json"))

    def forget_failures(self) -> None:
        """Drop failed cases from `finished`, so that they run again; their new lines will count."""
        self.finished = {name: case for name, case in self.finished.items() if case.outcome == "passed"}

    def end(self) -> None:
        self._append(_END)

    def close(self) -> None:
        os.close(self._file)

    def _append(self, value: Mapping[str, Any]) -> None:
        """Write a whole line or nothing."""
        try:
            self._write(json.dumps(value).encode() + b"\n")
            if not os.path.samestat(os.fstat(self._file), os.stat(self.path)):  # the line would be lost
                raise OSError(errno.ESTALE, "it was replaced by another file")
        except OSError as error:
            raise JournalError(f"journal {self.path}: can no longer be written ({error.strerror})") from error

    def _write(self, data: bytes) -> None:
        size = os.fstat(self._file).st_size
        try:
            while data:
                data = data[os.write(self._file, data) :]
            os.fsync(self._file)
        except BaseException:
            with suppress(OSError):
                os.ftruncate(self._file, size)
            raise

    def _sync_directory(self) -> None:
        """Flush the directory, so that the file's name survives a power cut, too."""
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with suppress(OSError):  # not every file system supports it
                os.fsync(directory)
        finally:
            os.close(directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _may_be_cut_off(content: bytes, header: Header) -> bool:
    """Whether a file without a whole line is empty, or the beginning of such a journal's header after a crash."""
    line = json.dumps(header.model_dump(mode="json")).encode()
    begin = line[: line.index(b'"settings"')]
    return content[: len(begin)] == begin[: len(content)]


def _free_name(path: Path) -> Path:
    """The path, or a similar one with a number, at which no file exists."""
    number, free = 1, path
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free
