"""Writes a set of files so that a failure, such as a full disk, leaves all the old files unchanged.

All contents are written under temporary names first; then each file is renamed into place. A crash between two renames
leaves some files new and the others old.
"""

import errno
import os
import secrets
from collections.abc import Iterable
from pathlib import Path


class StagedFiles:
    """A set of files that are renamed into place when the `with` block succeeds; if it raises, nothing has changed."""

    def __init__(self) -> None:
        self._staged: dict[Path, Path] = {}
        self._to_remove: list[Path] = []

    def write(self, path: Path, content: str | bytes | Iterable[str]) -> Path:
        """Write a file to disk under a temporary name and return that name. Raises OSError.

        The content may be given in pieces; missing directories are created. A link is replaced, not followed.
        """
        if path.exists() and not path.is_file() and not path.is_dir():
            raise OSError(errno.EINVAL, "it is a device or a pipe, not a file", str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        self._staged[path] = temporary
        with temporary.open("xb") as stream:
            for piece in [content] if isinstance(content, str | bytes) else content:
                stream.write(piece.encode() if isinstance(piece, str) else piece)
            stream.flush()
            os.fsync(stream.fileno())
        return temporary

    def remove(self, path: Path) -> None:
        """Delete an old file on commit, unless it is also written."""
        self._to_remove.append(path)

    @property
    def paths(self) -> list[Path]:
        return list(self._staged)

    def __enter__(self) -> "StagedFiles":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._commit()
        finally:
            for temporary in self._staged.values():
                temporary.unlink(missing_ok=True)

    def _commit(self) -> None:
        for path, temporary in self._staged.items():
            temporary.replace(path)
        for path in self._to_remove:
            if path not in self._staged:
                path.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes | Iterable[str]) -> None:
    """Replace a file's content in one step: readers see the old content or the new, never a part. Raises OSError."""
    with StagedFiles() as staged:
        staged.write(path, content)
