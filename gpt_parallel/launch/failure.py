"""The error of a failed run: the rank that caused it, its phase, what it printed, and where the logs are."""

import os
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from gpt_parallel.base.atomic_files import write_atomically
from gpt_parallel.base.errors import see
from gpt_parallel.base.escaping import slug
from gpt_parallel.base.redaction import redact
from gpt_parallel.launch.watch import WatchedRank
from gpt_parallel.layout.cost import gib, rank_bytes
from gpt_parallel.schema.run import RunSpec

# Words of Python, torch, CUDA and the kernel for a lack of memory.
_NO_MEMORY = re.compile(r"out[ -]of[ -]memory|OutOfMemory|MemoryError|bad_alloc|allocate memory", re.IGNORECASE)


class LaunchError(RuntimeError):
    """A run that did not finish on every rank. The message names the rank, its phase and the cause, and no secrets."""

    def __init__(self, message: str) -> None:
        super().__init__(redact(message))


def failure(ranks: Sequence[WatchedRank], spec: RunSpec) -> LaunchError:
    """The error of a run in which at least one rank has failed."""
    cause = _cause(ranks)
    head, details = _describe(cause)
    if cause.error is None or not _NO_MEMORY.search(cause.error["error"]):
        return LaunchError(head + details)
    needed = f"\nthe largest rank needs about {gib(rank_bytes(spec))} for its weights, cache and process"
    remedy = "; use a smaller batch, shorter prompts, or more devices per replica" + see("memory")
    return LaunchError(f"out of memory: {head}{needed}{remedy}{details}")


def _cause(ranks: Sequence[WatchedRank]) -> WatchedRank:
    """The failed rank that did not merely lose a peer: killed ones first, then those with an error of their own."""

    def severity(rank: WatchedRank) -> int:
        if rank.ended and (rank.process.returncode or 0) < 0:
            return 0
        return 2 if rank.error is not None and rank.error["lost_peer"] else 1

    return min((rank for rank in ranks if rank.has_failed), key=severity)


def _describe(rank: WatchedRank) -> tuple[str, str]:
    """The message's first line, and its details, which may be empty."""
    code = rank.process.returncode if rank.ended else None
    if code is not None and code < 0:
        number = -code
        name = signal.Signals(number).name if number in set(signal.Signals) else "unknown"
        hint = "; out-of-memory killer?" if number == signal.SIGKILL else ""
        head = f"{rank.title} killed by signal {number} ({name}{hint}) in phase {rank.phase!r}"
        return head, _log_tail(rank)
    if rank.error is not None:
        head = f"{rank.title} failed in phase {rank.error['phase']!r}: {rank.error['error']}"
        return head, f"\n\n{rank.error['traceback'].rstrip()}" + _log_tail(rank)
    outcome = f"exited with code {code}" if code else rank.process.missing_result
    return f"{rank.title} {outcome} in phase {rank.phase!r}", _log_tail(rank)


def missed_deadline(ranks: Sequence[WatchedRank], timeout_s: float) -> LaunchError:
    """The error of a run that missed its deadline: every rank's phase and Python stacks."""
    stopped = [rank for rank in ranks if not rank.ended and rank.process.is_stopped]
    where = "; ".join(f"{rank.title} {_whereabouts(rank, rank in stopped)}" for rank in ranks)
    _gather_stacks(ranks)
    stacks = "".join(
        f"\n\n{rank.title}, most recent call first:\n{_indented(rank.stacks, 120)}" for rank in ranks if rank.stacks
    )
    return LaunchError(
        f"the run did not finish within {timeout_s:g} s: {where} (allow more time with the timeout option)"
        f"{see('timeout')}{stacks}"
    )


def _whereabouts(rank: WatchedRank, stopped: bool) -> str:
    if rank.ended:
        return "had finished"
    return f"was in phase {rank.phase!r}" + (", stopped by a signal" if stopped else "")


def _gather_stacks(ranks: Sequence[WatchedRank]) -> None:
    running = [rank for rank in ranks if not rank.ended]
    for rank in running:
        rank.process.request_stacks()
    for rank in running:
        rank.stacks = rank.process.read_stacks()


def _log_tail(rank: WatchedRank, num_lines: int = 20) -> str:
    """The last lines that the rank printed, as an indented paragraph."""
    text = rank.printed()
    return f"\n\n{rank.title} printed:\n{_indented(text, num_lines)}" if text else ""


def _indented(text: str, num_lines: int = 40) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines()[-num_lines:])


def keep_logs(ranks: Sequence[WatchedRank], spec: RunSpec, begin: float, launcher: str = "") -> str:
    """Write each rank's history and output, and the launcher's, into the log directory; return a line that names it."""
    directory = Path(spec.execution.log_dir) / f"{slug(spec.name)}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    try:
        for rank in ranks:
            lines = [f"{seconds - begin:9.3f} s  {phase}" for seconds, phase in rank.history]
            lines += [rank.error["traceback"].rstrip()] if rank.error else []
            lines += [rank.stacks] if rank.stacks else []
            write_atomically(directory / f"rank_{rank.rank}.log", redact("\n".join([*lines, rank.printed(), ""])))
        if launcher:
            write_atomically(directory / "launcher.log", redact(launcher + "\n"))
    except OSError as error:
        return f"the logs of all ranks could not be written to {directory} ({error.strerror})"
    return f"logs of all ranks: {directory}"
