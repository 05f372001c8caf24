"""The private directory of a launch, gone when it ends; what a killed launcher left is removed at a later start."""

import fcntl
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from gpt_parallel.wire import boot_id

_PREFIX = "gpt_parallel-run-"
_LOCK = "lock"


@contextmanager
def run_directory() -> Iterator[Path]:
    """A new directory that only this user can enter (mode 0700), locked for as long as its launch lives."""
    _remove_leftovers()
    directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
    directory.chmod(0o700)  # whatever the umask took away
    lock = _create(directory / ".lock")
    try:
        os.write(lock, _host())
        with suppress(OSError):  # a file system without locks: then nothing is ever taken for a leftover
            fcntl.flock(lock, fcntl.LOCK_EX)
            (directory / ".lock").rename(directory / _LOCK)  # under this name it is locked, or its owner is gone
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(lock)


def create_private(path: Path) -> IO[bytes]:
    """A new file, open for writing, that only this user can read (mode 0600), whatever the umask."""
    return os.fdopen(_create(path), "wb")


def _create(path: Path) -> int:
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    os.fchmod(descriptor, 0o600)
    return descriptor


def _host() -> bytes:
    """Locks of other hosts on a shared file system may not be seen here."""
    return f"{platform.node()} {boot_id()}".encode()


def _remove_leftovers() -> None:
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # another user's, in use, or just gone
            _remove_leftover(path)


def _remove_leftover(path: Path) -> None:
    """Raises OSError for what is no directory, or has no lock that is free. Nothing is followed through links."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(directory).st_uid != os.getuid():
            return
        lock = os.open(_LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        try:
            if os.read(lock, 4096) == _host():
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(lock)
    finally:
        os.close(directory)
