"""The private directory of a launch, gone when it ends; what a killed launcher left is removed at a later start."""

import fcntl
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "gpt_parallel-run-"
_LOCK = "lock"


@contextmanager
def run_directory() -> Iterator[Path]:
    """A new directory that only this user can enter (mode 0700), locked for as long as its launch lives."""
    _remove_leftovers()
    directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
    lock = os.open(directory / ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        os.write(lock, _host())
        with suppress(OSError):  # a file system without locks: then nothing is ever taken for a leftover
            fcntl.flock(lock, fcntl.LOCK_EX)
            (directory / ".lock").rename(directory / _LOCK)  # under this name it is locked, or its owner is gone
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(lock)


def _host() -> bytes:
    """This boot of this machine: locks of other hosts on a shared file system may not be seen here."""
    with suppress(OSError):
        return platform.node().encode() + Path("/proc/sys/kernel/random/boot_id").read_bytes()
    return platform.node().encode()


def _remove_leftovers() -> None:
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_LOCK}"):
        with suppress(OSError):  # another user's, in use, or just gone
            if path.parent.is_symlink() or path.parent.stat().st_uid != os.getuid():
                continue
            lock = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if os.read(lock, 4096) != _host():
                    continue
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path.parent, ignore_errors=True)
            finally:
                os.close(lock)
