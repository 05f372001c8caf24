"""Files that are all there before the first changes: a disk that is full at the third leaves all of them as they were.

They take their names one after the other, each whole. A crash between two of these leaves some of them new.
"""

import errno
import os
import secrets
from collections.abc import Iterable
from pathlib import Path


class StagedFiles:
    """Enter it, `write` files, and they take their names when the block ends well; else nothing has changed."""

    def __init__(self) -> None:
        self._staged: dict[Path, Path] = {}
        self._to_remove: list[Path] = []

    def write(self, path: Path, content: str | bytes | Iterable[str]) -> Path:
        """On disk under a name of its own when this returns, which is that name; raises OSError.

        The content may come in pieces; its directory is made if need be. A link is replaced, not followed.
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
        """Have an old file go, unless it is written anew."""
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
    """Readers see the file's old content or the new, never a part. Raises OSError."""
    with StagedFiles() as staged:
        staged.write(path, content)
