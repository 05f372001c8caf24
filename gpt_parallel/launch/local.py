"""Runs a job on this machine: one process per rank, watched to the end, and none left behind.

The first failure ends the run. Ranks report phases and errors on a pipe each; a pipe that closes is a process that
ended, so the parent sleeps until something happens and takes no time from the ranks.
"""

import json
import logging
import math
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from gpt_parallel.launch import fork_server
from gpt_parallel.launch.devices import available_cores
from gpt_parallel.launch.fork_server import ForkedProcess, ForkServerError, Process
from gpt_parallel.launch.run_directory import run_directory
from gpt_parallel.result import RankReport, write_atomically
from gpt_parallel.spec import Job, RunSpec

WORKER = "gpt_parallel.engine.worker"
_LOGGER = logging.getLogger("gpt_parallel")
OnPhase = Callable[[int, str], None]

_GRACE_S = 2.0  # from SIGTERM to SIGKILL
_SETTLE_S = 1.0  # after a first failure, for its cause to show where it was a peer's
_STALE = ("TORCHELASTIC_", "PET_", "SLURM_", "OMPI_", "PMI_")
_STALE_EXACT = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"}


class Observer(Protocol):
    """Something that looks at the machine while ranks run."""

    def entered(self, rank: int, phase: str) -> None:
        """A rank enters a phase."""

    def look(self) -> float:
        """Look now if it is time; the seconds until it is time again."""


class LaunchError(RuntimeError):
    """A run that did not finish on every rank. The message names the rank, its phase and the cause."""


@dataclass
class _RankProcess:
    rank: int
    process: Process
    pipe: int
    log: Path
    report: Path
    phase: str = "start"
    error: dict[str, Any] | None = None
    ended: bool = False
    pending: bytes = b""
    phases: list[str] = field(default_factory=list)
    history: list[tuple[float, str]] = field(default_factory=list)

    def read_events(self) -> bool:
        """Take what the pipe holds; False at its end."""
        data = os.read(self.pipe, 1 << 16)
        *lines, self.pending = (self.pending + data).split(b"\n")
        for line in lines:
            event = json.loads(line)
            self.phase = event["phase"]
            if "error" in event:
                self.error = event
            else:
                self.phases.append(self.phase)
                self.history.append((time.monotonic(), self.phase))
        return bool(data)


def launch(job: Job, *, on_phase: OnPhase | None = None, observer: Observer | None = None) -> tuple[RankReport, ...]:
    """Run a job on as many local processes as its mesh has ranks; reports in rank order.

    `on_phase(rank, phase)` is called as ranks enter phases, after the observer. Raises LaunchError unless every rank
    exited 0 and left its report. All ranks are gone when this returns or raises.
    """
    with run_directory() as directory:
        return _launch(job, directory, on_phase, observer)


def _launch(job: Job, directory: Path, on_phase: OnPhase | None, observer: Observer | None) -> tuple[RankReport, ...]:
    ranks: list[_RankProcess] = []
    begin = time.monotonic()
    _LOGGER.debug("%s: %s", job.spec.name, job.spec.model_dump_json(exclude={"workload": {"requests"}}))
    try:
        (directory / "job.json").write_text(job.model_dump_json(), encoding="utf-8")
        for rank in range(job.spec.mesh.size):
            ranks.append(_start(rank, job.spec, directory))
        listeners: list[OnPhase] = [lambda rank, phase: _LOGGER.info("%s: rank %d: %s", job.spec.name, rank, phase)]
        listeners += [observer.entered] if observer else []
        listeners += [on_phase] if on_phase else []
        _watch(ranks, job.spec.execution.timeout_s, listeners, observer)
        return tuple(_read_report(rank) for rank in ranks)
    except (ForkServerError, LaunchError) as error:
        raise LaunchError(f"{error}\n\n{_keep_logs(ranks, job.spec, begin)}") from error
    finally:
        _stop(ranks)


def _start(rank: int, spec: RunSpec, directory: Path) -> _RankProcess:
    read_end, write_end = os.pipe()
    log = directory / f"rank_{rank}.log"
    arguments = [str(directory)]
    if spec.execution.device == "cpu" and hasattr(os, "sched_setaffinity"):
        arguments.append(",".join(map(str, cores_of(rank, spec.execution.cores_per_rank, available_cores()))))
    try:
        with log.open("wb") as output:
            process = fork_server.start(WORKER, arguments, _environment(rank, spec), output, write_end)
    except BaseException:
        os.close(read_end)
        raise
    finally:
        os.close(write_end)
    return _RankProcess(rank, process, read_end, log, report=directory / f"rank_{rank}.json")


def cores_of(rank: int, count: int, available: Sequence[int]) -> list[int]:
    """The cores a rank is pinned to: consecutive slices, going round where there are more ranks than cores."""
    return sorted({available[(rank * count + index) % len(available)] for index in range(count)})


def _environment(rank: int, spec: RunSpec) -> dict[str, str]:
    """The caller's environment without any launcher's leftovers, plus torchrun's contract for this rank."""
    size, threads = str(spec.mesh.size), str(spec.execution.cores_per_rank)
    inherited = {
        name: value for name, value in os.environ.items() if name not in _STALE_EXACT and not name.startswith(_STALE)
    }
    own = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": size,
        "LOCAL_WORLD_SIZE": size,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    if sys.platform == "linux":
        own["GLOO_SOCKET_IFNAME"] = "lo"  # gloo listens on the loopback interface only
    return {**inherited, **own}


def _watch(
    ranks: list[_RankProcess], timeout_s: float, listeners: Sequence[OnPhase], observer: Observer | None
) -> None:
    """Return when every rank has ended well; raise LaunchError at the first failure or the deadline."""
    deadline = time.monotonic() + timeout_s
    failed_at: float | None = None
    with selectors.DefaultSelector() as selector:
        for rank in ranks:
            selector.register(rank.pipe, selectors.EVENT_READ, rank)
        while selector.get_map():
            limit = deadline if failed_at is None else min(deadline, failed_at + _SETTLE_S)
            remaining = limit - time.monotonic()
            if remaining <= 0:
                break
            pause = observer.look() if observer else math.inf
            for key, _ in selector.select(min(remaining, pause)):
                rank = key.data
                if not _take_events(rank, listeners):
                    selector.unregister(rank.pipe)
                    with suppress(subprocess.TimeoutExpired):
                        rank.process.wait(max(0.0, deadline - time.monotonic()))
                        rank.ended = True
                if failed_at is None and _has_failed(rank):
                    failed_at = time.monotonic()
    if failed_at is not None:
        raise LaunchError(_describe(_cause(ranks), ranks))
    if not all(rank.ended for rank in ranks):
        raise LaunchError(_describe_deadline(ranks, timeout_s))


def _take_events(rank: _RankProcess, listeners: Sequence[OnPhase]) -> bool:
    alive = rank.read_events()
    for phase in rank.phases:
        for tell in listeners:
            tell(rank.rank, phase)
    rank.phases.clear()
    return alive


def _has_failed(rank: _RankProcess) -> bool:
    return rank.error is not None or (rank.ended and (rank.process.returncode != 0 or not rank.report.exists()))


def _cause(ranks: list[_RankProcess]) -> _RankProcess:
    """The failed rank that did not merely lose a peer: killed ones first, then those with an error of their own."""

    def severity(rank: _RankProcess) -> int:
        if rank.ended and (rank.process.returncode or 0) < 0:
            return 0
        if rank.error is not None:
            return 2 if rank.error["lost_peer"] else 1
        return 1

    return min((rank for rank in ranks if _has_failed(rank)), key=severity)


def _describe(rank: _RankProcess, ranks: list[_RankProcess]) -> str:
    code = rank.process.returncode if rank.ended else None
    if code is not None and code < 0:
        number = -code
        name = signal.Signals(number).name if number in set(signal.Signals) else "unknown"
        hint = "; out-of-memory killer?" if number == signal.SIGKILL else ""
        return f"rank {rank.rank} killed by signal {number} ({name}{hint}) in phase {rank.phase!r}" + _log_tail(rank)
    if rank.error is not None:
        head = f"rank {rank.rank} failed in phase {rank.error['phase']!r}: {rank.error['error']}"
        return f"{head}\n\n{rank.error['traceback'].rstrip()}" + _log_tail(rank)
    what = f"exited with code {code}" if code else "exited without delivering a result"
    return f"rank {rank.rank} {what} in phase {rank.phase!r}" + _log_tail(rank)


def _describe_deadline(ranks: list[_RankProcess], timeout_s: float) -> str:
    where = "; ".join(
        f"rank {rank.rank} " + ("had finished" if rank.ended else f"was in phase {rank.phase!r}") for rank in ranks
    )
    return f"the run did not finish within {timeout_s:g} s: {where} (allow more time with the timeout option)"


def _log_tail(rank: _RankProcess, num_lines: int = 20) -> str:
    """The end of what the rank printed, as an indented paragraph."""
    text = rank.log.read_text(encoding="utf-8", errors="replace").rstrip()
    if not text:
        return ""
    lines = "\n".join(f"  {line}" for line in text.splitlines()[-num_lines:])
    return f"\n\nrank {rank.rank} printed:\n{lines}"


def _keep_logs(ranks: list[_RankProcess], spec: RunSpec, begin: float) -> str:
    """Write what every rank did, met and printed where the user finds it; says where that is."""
    directory = Path(spec.execution.log_dir) / f"{spec.name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    try:
        for rank in ranks:
            lines = [f"{seconds - begin:9.3f} s  {phase}" for seconds, phase in rank.history]
            lines += [rank.error["traceback"].rstrip()] if rank.error else []
            printed = rank.log.read_text(encoding="utf-8", errors="replace")
            write_atomically(directory / f"rank_{rank.rank}.log", "\n".join([*lines, printed]))
    except OSError as error:
        return f"the logs of all ranks could not be kept in {directory} ({error.strerror})"
    return f"logs of all ranks: {directory}"


def _read_report(rank: _RankProcess) -> RankReport:
    try:
        return RankReport.model_validate_json(rank.report.read_bytes())
    except ValidationError as error:
        raise LaunchError(f"rank {rank.rank} delivered a malformed result: {error}") from error


def _stop(ranks: list[_RankProcess]) -> None:
    """End whatever still runs: SIGTERM, a short grace, SIGKILL to the rank's whole process group; then reap."""
    for rank in ranks:
        with suppress(ForkServerError):
            if rank.process.poll() is None:
                rank.process.terminate()
                rank.process.send_signal(signal.SIGCONT)  # a stopped process would not see SIGTERM
    deadline = time.monotonic() + _GRACE_S
    for rank in ranks:
        try:
            rank.process.wait(max(0.0, deadline - time.monotonic()))
        except (subprocess.TimeoutExpired, ForkServerError):
            pass
        finally:
            _kill_group(rank.process.pid)
    for rank in ranks:
        with suppress(ForkServerError):
            try:
                rank.process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                if isinstance(rank.process, ForkedProcess):
                    rank.process.stop_server()  # it may be stuck, and then tells nothing
                rank.process.wait(_GRACE_S)
        os.close(rank.pipe)


def _kill_group(pid: int | None) -> None:
    if pid is not None:
        with suppress(ProcessLookupError, PermissionError):  # nothing of it is left
            os.killpg(pid, signal.SIGKILL)
