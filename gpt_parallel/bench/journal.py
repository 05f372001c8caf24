"""What has been finished so far, on disk before the next case starts: a power cut loses one case, not a night.

An append-only JSON Lines file: a header that says what was asked of which machine, a line for each finished cell of a
matrix or case of a pytest session, and an end. A line that was cut off by a crash is dropped when the file is opened
again.
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
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError
from typing_extensions import Self

from gpt_parallel.base.atomic_files import write_atomically
from gpt_parallel.base.errors import SpecError
from gpt_parallel.base.redaction import redact_tree
from gpt_parallel.base.untrusted_files import parse_json, read_whole
from gpt_parallel.bench.environment import describe_machine, describe_weights
from gpt_parallel.inputs.prompts import MAX_FILE_BYTES
from gpt_parallel.inputs.settings import Settings
from gpt_parallel.schema.frozen import Frozen
from gpt_parallel.schema.result import RunResult
from gpt_parallel.schema.summary import CaseSummary

FILE_NAME = "matrix.jsonl"
MAX_BYTES = 1 << 30
_END = {"kind": "end"}
Kind = Literal["matrix", "session"]


class _Words(NamedTuple):
    """How messages name the writer of a journal, and what it offers its user."""

    writer: str
    elsewhere: str
    anew: str


_WORDS: dict[Kind, _Words] = {
    "matrix": _Words("matrix", "use another --output-dir", "--force starts over"),
    "session": _Words(
        "pytest session", "use another directory with --gpt-report DIR", "move it away, or use --gpt-report DIR"
    ),
}
# Settings that choose cases, or do not change what is measured: a journal may be resumed with others.
_FREE = {"strategy", "num_gpus", "timeout_s", "offline", "when_busy", "launcher_address", "log_dir"}


class JournalError(RuntimeError):
    """A journal that could be opened and can no longer be written."""


class Header(Frozen):
    """What all lines of a journal have in common. Cases of two headers do not belong in one table."""

    kind: Kind = "matrix"
    schema_version: Literal[1] = 1
    settings: dict[str, Any]
    machine: dict[str, str]


def make_header(kind: Kind, settings: Settings) -> Header:
    """Raises SpecError for a prompts file that cannot be read: its content is a part of what was asked."""
    free = _FREE | {"batch_size"} if kind == "matrix" else _FREE
    fixed = settings.model_dump(mode="json", exclude=free)
    if settings.prompts not in ("builtin", "random"):
        content = read_whole(Path(settings.prompts), MAX_FILE_BYTES, "prompts file")
        fixed["prompts_sha256"] = hashlib.sha256(content).hexdigest()
    fixed.update(describe_weights(settings))
    return redact_tree(Header(kind=kind, settings=fixed, machine=describe_machine()))


class Finished(Frozen):
    """A cell or case that is done with: measured, or the reason why not.

    A matrix keeps the row of its table, a session every launch, from which pytest-benchmark's rounds come too.
    """

    kind: Literal["cell"] = "cell"
    cell: str
    outcome: Literal["passed", "failed", "oom", "skipped"]
    reason: str = ""
    seconds: float = 0.0
    fault: str | None = None
    summary: CaseSummary | None = None
    results: tuple[RunResult, ...] = ()


class Journal:
    """An open journal, locked against a second writer. `finished` has each cell's latest line."""

    def __init__(
        self, path: Path, header: Header, *, resume: bool, force: bool = False, keep_as: Path | None = None
    ) -> None:
        """An unfinished journal that is not to be resumed goes to `keep_as`, or to a like name that is free, or is an
        error; then `kept` says where it is, and `num_kept` how many cells are in it.

        Raises SpecError if the file cannot be used, is of other runs, or would be lost; it is as it was then.
        """
        self.path, self.num_kept, self.kept = path, 0, path
        self.finished: dict[str, Finished] = {}
        self._words = _WORDS[header.kind]
        try:
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise SpecError(f"journal {path}: cannot be written ({error.strerror}); {self._words.elsewhere}") from error
        try:
            self._lock()
            self._open(header, resume, force, keep_as)
        except (OSError, JournalError) as error:
            os.close(self._file)
            raise SpecError(str(error)) from error
        except BaseException:
            os.close(self._file)
            raise

    def _lock(self) -> None:
        if not stat.S_ISREG(os.fstat(self._file).st_mode):
            raise SpecError(f"journal {self.path}: not a regular file; {self._words.elsewhere}")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SpecError(
                f"journal {self.path}: another {self._words.writer} is writing it; {self._words.elsewhere}"
            ) from error

    def _open(self, header: Header, resume: bool, force: bool, keep_as: Path | None) -> None:
        content = b"" if force else self._content()
        end = content.rfind(b"\n") + 1  # what follows was cut off
        lines = self._parse(content[:end])
        if lines[0].get("kind") != header.kind if lines else not _may_be_cut_off(content, header):
            raise SpecError(f"{self.path} is not a {header.kind} journal; {self._words.elsewhere}")
        if resume and lines:
            self._check_header(lines[0], header)
            # A cell that was given a fault has not been run yet.
            self.finished = {cell.cell: cell for cell in self._cells(lines) if cell.fault is None}
            os.ftruncate(self._file, end)
            return
        if len(lines) > 1 and lines[-1] != _END:
            self._put_aside(content, lines, keep_as)
        os.ftruncate(self._file, 0)
        self._append(header.model_dump(mode="json"))
        self._sync_directory()

    def _put_aside(self, content: bytes, lines: list[dict[str, Any]], keep_as: Path | None) -> None:
        num_finished = len({line.get("cell") for line in lines if line.get("kind") == "cell"})
        if keep_as is None:
            raise SpecError(
                f"journal {self.path} is of an interrupted {self._words.writer} (finished cells: {num_finished}); "
                "go on with --resume, or start over with --force"
            )
        self.kept, self.num_kept = _free_name(keep_as), num_finished
        write_atomically(self.kept, content)

    def _content(self) -> bytes:
        """Of the open file, for another one may have its name by now."""
        size = os.fstat(self._file).st_size
        if size > MAX_BYTES:
            raise SpecError(
                f"journal {self.path}: larger than {MAX_BYTES} bytes, the most that is read; {self._words.anew}"
            )
        os.lseek(self._file, 0, os.SEEK_SET)
        with open(self._file, "rb", closefd=False) as stream:
            return stream.read(size)

    def _parse(self, content: bytes) -> list[dict[str, Any]]:
        lines = []
        for number, line in enumerate(content.splitlines(), start=1):
            try:
                value = parse_json(line)
            except ValueError as error:
                raise SpecError(f"journal {self.path}:{number}: {error}; {self._words.anew}") from error
            if not isinstance(value, dict):
                raise SpecError(f"journal {self.path}:{number}: not an object; {self._words.anew}")
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
                f"journal {self.path} is of other runs, which do not belong in one table: {'; '.join(differing)} "
                f"({self._words.anew})"
            )

    def _cells(self, lines: list[dict[str, Any]]) -> list[Finished]:
        try:
            return [Finished.model_validate(line) for line in lines[1:] if line != _END]
        except ValidationError as error:
            raise SpecError.from_validation(error, prefix=f"journal {self.path}: ") from error

    def add(self, cell: Finished) -> None:
        """On disk when this returns; JournalError where the disk is full or gone. `finished` has it in either case."""
        self.finished[cell.cell] = cell
        self._append(redact_tree(cell).model_dump(mode="json"))

    def forget(self, *outcomes: str) -> None:
        """Have cells with these outcomes run again; their new lines will count."""
        self.finished = {name: cell for name, cell in self.finished.items() if cell.outcome not in outcomes}

    def end(self) -> None:
        self._append(_END)

    def close(self) -> None:
        os.close(self._file)

    def _append(self, value: Mapping[str, Any]) -> None:
        """A whole line or nothing."""
        try:
            self._write(json.dumps(value).encode() + b"\n")
            if not os.path.samestat(os.fstat(self._file), os.stat(self.path)):  # nobody would find it
                raise OSError(errno.ESTALE, "it was replaced by another file")
        except OSError as error:
            raise JournalError(f"journal {self.path}: cannot be written any more ({error.strerror})") from error

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
        """So that the file's name survives a power cut, too."""
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with suppress(OSError):  # not every file system can
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
    """Whether a file without a whole line is what a crash has left of such a journal's header, or empty."""
    line = json.dumps(header.model_dump(mode="json")).encode()
    begin = line[: line.index(b'"settings"')]
    return content[: len(begin)] == begin[: len(content)]


def _free_name(path: Path) -> Path:
    """The path, or one like it with a number that nothing has: what is put aside replaces nothing."""
    number, free = 1, path
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free
