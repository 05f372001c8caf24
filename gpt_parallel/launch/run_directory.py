"""The private directory of a launch, deleted at its end; those of killed launchers are deleted at a later start."""

import fcntl
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from gpt_parallel.base.host import boot_id

_PREFIX = "gpt_parallel-run-"
_LOCK = "lock"
_UNLOCKED = ".lock"
_GRACE_S = 24 * 3600  # a launcher takes its lock within the first millisecond, unless it dies there


@contextmanager
def run_directory() -> Iterator[Path]:
    """Create a directory that only this user can enter (mode 0700), locked for as long as its launch lives."""
    _remove_leftovers()
    directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
    directory.chmod(0o700)  # whatever the umask
    lock = _create(directory / _UNLOCKED)
    try:
        os.write(lock, _host())
        with suppress(OSError):  # a file system without locks, where no directory is taken for a leftover
            fcntl.flock(lock, fcntl.LOCK_EX)
            (directory / _UNLOCKED).rename(directory / _LOCK)  # under this name it is locked, or its owner has ended
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(lock)


def create_private(path: Path) -> IO[bytes]:
    """Create a file, open for writing, that only this user can read (mode 0600), whatever the umask."""
    return os.fdopen(_create(path), "wb")


def _create(path: Path) -> int:
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    os.fchmod(descriptor, 0o600)
    return descriptor


def _host() -> bytes:
    """This host and boot: locks that other hosts hold on a shared file system may not be visible here."""
    return f"{platform.node()} {boot_id()}".encode()


def _remove_leftovers() -> None:
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # another user's, in use, or just deleted
            _remove_leftover(path)


def _remove_leftover(path: Path) -> None:
    """Delete a leftover directory. Raises OSError if it is not one or its lock is held. Links are not followed."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        state, names = os.fstat(directory), os.listdir(directory)
        if state.st_uid != os.getuid():
            return
        if _LOCK in names:
            _remove_if_free(path, directory, _LOCK, (_host(),))
        elif time.time() - state.st_mtime < _GRACE_S:
            return
        elif _UNLOCKED in names:
            _remove_if_free(path, directory, _UNLOCKED, (_host(), b""))
        else:
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(directory)


def _remove_if_free(path: Path, directory: int, lock_name: str, hosts: tuple[bytes, ...]) -> None:
    lock = os.open(lock_name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    try:
        if os.read(lock, 4096) in hosts:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(lock)
