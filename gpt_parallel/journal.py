"""What a matrix has finished so far, on disk before the next cell starts: a power cut loses one cell, not a night.

An append-only JSON Lines file: a header that says what was asked of which machine, a line for each finished cell, and
an end. A line that was cut off by a crash is dropped when the file is opened again.
"""

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from pydantic import ValidationError
from typing_extensions import Self

from gpt_parallel.result import CaseSummary
from gpt_parallel.spec import Frozen, SpecError

FILE_NAME = "matrix.jsonl"
_END = {"kind": "end"}


class JournalError(RuntimeError):
    """A journal that could be opened and can no longer be written."""


class Header(Frozen):
    """What all cells of a journal have in common. Cells of two headers do not belong in one table."""

    kind: Literal["matrix"] = "matrix"
    schema_version: Literal[1] = 1
    settings: dict[str, Any]
    machine: dict[str, str]


class Finished(Frozen):
    """A cell that is done with: measured, or the reason why not."""

    kind: Literal["cell"] = "cell"
    cell: str
    outcome: Literal["passed", "failed", "oom", "skipped"]
    reason: str = ""
    seconds: float = 0.0
    summary: CaseSummary | None = None


class Journal:
    """An open journal, locked against a second writer. `finished` has each cell's latest line."""

    def __init__(self, path: Path, header: Header, *, resume: bool, force: bool) -> None:
        """Raises SpecError if the file cannot be used, is of another matrix, or would be lost."""
        self.path = path
        self.finished: dict[str, Finished] = {}
        try:
            self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        except OSError as error:
            raise SpecError(f"journal {path}: cannot be written ({error.strerror})") from error
        try:
            self._lock()
            self._open(header, resume, force)
        except BaseException:
            self._file.close()
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SpecError(f"journal {self.path}: another matrix is writing it; use another --output-dir") from error

    def _open(self, header: Header, resume: bool, force: bool) -> None:
        lines = [] if force else self._read()
        if lines and lines[0].get("kind") != "matrix":
            raise SpecError(f"{self.path} is not a matrix journal; use another --output-dir")
        if resume and lines:
            self._check_header(lines[0], header)
            self.finished = {cell.cell: cell for cell in self._cells(lines)}
            return
        if len(lines) > 1 and lines[-1] != _END:
            raise SpecError(
                f"journal {self.path} has {len(lines) - 1} finished cells of an interrupted matrix; "
                "go on with --resume, or start over with --force"
            )
        self._file.seek(0)
        self._file.truncate()
        self._append(header.model_dump(mode="json"))

    def _read(self) -> list[dict[str, Any]]:
        """Whole lines; what follows the last of them was cut off and is removed."""
        content = self._file.read()
        end = content.rfind(b"\n") + 1
        lines = []
        for number, line in enumerate(content[:end].splitlines(), start=1):
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise SpecError(
                    f"journal {self.path}:{number}: not valid JSON ({error}); --force starts over"
                ) from error
            if not isinstance(value, dict):
                raise SpecError(f"journal {self.path}:{number}: not an object; --force starts over")
            lines.append(value)
        self._file.seek(end)
        self._file.truncate()
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
                "(--force starts over)"
            )

    def _cells(self, lines: list[dict[str, Any]]) -> list[Finished]:
        try:
            return [Finished.model_validate(line) for line in lines[1:] if line != _END]
        except ValidationError as error:
            raise SpecError.from_validation(error, prefix=f"journal {self.path}: ") from error

    def add(self, cell: Finished) -> None:
        """On disk when this returns; JournalError where the disk is full or gone."""
        self._append(cell.model_dump(mode="json"))
        self.finished[cell.cell] = cell

    def forget(self, *outcomes: str) -> None:
        """Have cells with these outcomes run again; their new lines will count."""
        self.finished = {name: cell for name, cell in self.finished.items() if cell.outcome not in outcomes}

    def end(self) -> None:
        self._append(_END)

    def _append(self, value: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps(value).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise JournalError(f"journal {self.path}: cannot be written any more ({error.strerror})") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
