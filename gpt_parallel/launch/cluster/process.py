"""The launcher's own process, here or on a machine that joins: started, and stopped with all its descendants."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import psutil

from gpt_parallel.launch.failure import LaunchError
from gpt_parallel.launch.local import kill_group, without_launchers

_GONE_S = 2.0
_STOP_S = 5.0  # for a launcher to end its ranks everywhere after SIGTERM


def start(
    command: Sequence[str],
    cores: Sequence[int] | None = None,
    output: IO[bytes] | None = None,
    temporary: Path | None = None,
) -> "subprocess.Popen[bytes]":
    """Start a launcher, pinned to `cores` and with `temporary` as TMPDIR if they are given. Raises LaunchError."""
    environment = {
        "OMP_NUM_THREADS": "1",  # otherwise torchrun sets it and prints a long warning
        **without_launchers(os.environ, kept=("SLURM_",)),  # srun needs its job's variables
        **({"TMPDIR": str(temporary)} if temporary else {}),
    }
    try:
        with _pinned_to(cores):
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if output else None,
                env=environment,
                start_new_session=True,
            )
    except OSError as error:
        raise LaunchError(f"the launcher {command[0]!r} cannot be started: {error.strerror or error}") from error


@contextmanager
def _pinned_to(cores: Sequence[int] | None) -> Iterator[None]:
    """Pin this thread to these cores; processes that it starts meanwhile inherit them."""
    if cores is None or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def has_ended(process: "subprocess.Popen[bytes]", within_s: float) -> bool:
    try:
        process.wait(within_s)
    except subprocess.TimeoutExpired:
        return False
    return True


def stop(process: "subprocess.Popen[bytes]") -> None:
    """Stop it and its descendants, even those in sessions of their own.

    A launcher passes SIGTERM on to its ranks, here and elsewhere.
    """
    if process.poll() is not None:
        return
    descendants = []
    with suppress(psutil.Error):
        descendants = psutil.Process(process.pid).children(recursive=True)
    for descendant in descendants:
        with suppress(psutil.Error):
            descendant.send_signal(signal.SIGCONT)  # a stopped process would not see SIGTERM
    process.terminate()
    has_ended(process, _STOP_S)
    kill_group(process.pid)
    for descendant in descendants:
        with suppress(psutil.Error):
            descendant.kill()
    process.wait()
    wait_until_gone(descendants)


def wait_until_gone(processes: Sequence[psutil.Process]) -> None:
    """Wait until killed processes have ended: for a moment they still hold their memory and devices."""
    deadline = time.monotonic() + _GONE_S
    while any(map(_runs, processes)) and time.monotonic() < deadline:
        time.sleep(0.01)


def _runs(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def printed(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace").rstrip() if log.exists() else ""


def tail(log: Path, num_lines: int = 20) -> str:
    lines = printed(log).splitlines()[-num_lines:]
    return "".join(["\n\nthe launcher and its ranks printed:", *(f"\n  {line}" for line in lines)]) if lines else ""
