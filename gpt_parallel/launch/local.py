"""Runs a job on this machine: starts one process per rank, watches them to the end, and leaves none behind."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from gpt_parallel.base.signals import uninterrupted
from gpt_parallel.launch import fork_server
from gpt_parallel.launch.devices import available_cores
from gpt_parallel.launch.failure import LaunchError, failure, keep_logs, missed_deadline
from gpt_parallel.launch.fork_server import ForkedProcess, ForkServerError, Process
from gpt_parallel.launch.run_directory import create_private, run_directory
from gpt_parallel.launch.watch import MissedDeadlineError, Observer, OnPhase, WatchedRank, watch
from gpt_parallel.schema.result import RankReport
from gpt_parallel.schema.run import Job, JobKind, RunSpec

WORKER = "gpt_parallel.engine.process.worker"
JUDGE = "gpt_parallel.judge.worker"
_LOGGER = logging.getLogger("gpt_parallel")

_GRACE_S = 2.0  # from SIGTERM to SIGKILL
_STACKS_S = 5.0  # for a rank to write its stacks; its core may be busy
_STALE = ("TORCHELASTIC_", "PET_", "SLURM_", "OMPI_", "PMI_", "PMIX_")
_STALE_EXACT = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"}


@dataclass
class LocalProcess:
    """A rank's process on this machine, and the file that it writes its stacks to on SIGUSR1."""

    process: Process
    stacks: Path
    missing_result: str = "exited without delivering a result"

    @property
    def returncode(self) -> int | None:
        return self.process.returncode

    def wait(self, timeout: float | None = None) -> int:
        return self.process.wait(timeout)

    @property
    def is_stopped(self) -> bool:
        return bool(self._status() == psutil.STATUS_STOPPED)

    def _status(self) -> str:
        """psutil's status of the process; dead if it has ended or has not started yet."""
        with suppress(psutil.Error, ForkServerError):
            self.process.poll()  # reads its id, if that has not come yet
            if self.process.pid is not None:
                return str(psutil.Process(self.process.pid).status())
        return str(psutil.STATUS_DEAD)

    def request_stacks(self) -> None:
        if self.stacks.exists():  # otherwise its signal handler is not installed yet
            for number in (signal.SIGUSR1, signal.SIGCONT):
                self.process.send_signal(number)

    def read_stacks(self) -> str:
        """Read the stacks once their file has stopped growing or the process has ended; empty if none come."""
        deadline, size = time.monotonic() + _STACKS_S, -1
        while self.stacks.exists() and time.monotonic() < deadline:
            last, size = size, self.stacks.stat().st_size
            if last == size > 0 or self._status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
                return self.stacks.read_text(encoding="utf-8", errors="replace").rstrip()
            time.sleep(0.02)
        return ""


def launch(
    job: Job,
    *,
    on_phase: OnPhase | None = None,
    observer: Observer | None = None,
    cores: Sequence[int] | None = None,
) -> tuple[RankReport, ...]:
    """Run a job on as many local processes as its mesh has ranks; reports in rank order.

    `cores` are distributed over CPU ranks; by default all available ones. `on_phase(rank, phase)` is called when a rank
    enters a phase, after the observer. Raises LaunchError unless every rank exited 0 and delivered its report. All
    ranks have ended when this returns or raises.
    """
    with run_directory() as directory:
        return _launch(job, directory, on_phase, observer, cores or available_cores())


def _launch(
    job: Job, directory: Path, on_phase: OnPhase | None, observer: Observer | None, cores: Sequence[int]
) -> tuple[RankReport, ...]:
    ranks: list[WatchedRank] = []
    spec, begin = job.spec, time.monotonic()
    _LOGGER.debug("%s: %s", spec.name, spec.model_dump_json(exclude={"workload": {"requests"}}))

    def entered(rank: int, phase: str) -> None:
        _LOGGER.info("%s: rank %d: %s", spec.name, rank, phase)
        if observer:
            observer.on_phase(rank, phase)
        if on_phase:
            on_phase(rank, phase)

    try:
        with create_private(directory / "job.json") as file:
            file.write(job.model_dump_json().encode())
        for rank in range(spec.mesh.size):
            ranks.append(_start(JUDGE if job.kind == JobKind.JUDGE else WORKER, rank, spec, directory, cores))
        try:
            if watch(ranks, spec.execution.timeout_s, entered, observer):
                return tuple(rank.report for rank in ranks if rank.report)
            raise failure(ranks, spec)
        except MissedDeadlineError:
            raise missed_deadline(ranks, spec.execution.timeout_s) from None
    except (ForkServerError, LaunchError) as error:
        message = f"{error}\n\n{keep_logs(ranks, spec, begin)}"
        raise LaunchError(message) from error
    finally:
        with uninterrupted():
            _stop(ranks)


def _start(module: str, rank: int, spec: RunSpec, directory: Path, cores: Sequence[int]) -> WatchedRank:
    read_end, write_end = os.pipe()
    log = directory / f"rank_{rank}.log"
    arguments = [str(directory)]
    if spec.execution.device == "cpu" and hasattr(os, "sched_setaffinity"):
        arguments.append(",".join(map(str, spec.execution.cores_of(rank, cores))))
    try:
        with create_private(log) as output:
            process = fork_server.start(module, arguments, _environment(rank, spec), output, write_end)
    except BaseException:
        os.close(read_end)
        raise
    finally:
        os.close(write_end)
    return WatchedRank(rank, LocalProcess(process, directory / f"rank_{rank}.stacks"), read_end, log)


def _environment(rank: int, spec: RunSpec) -> dict[str, str]:
    """The caller's environment without other launchers' variables, plus the variables that torchrun sets for a rank."""
    size, threads = str(spec.mesh.size), str(spec.execution.cores_per_rank)
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
    return {**without_launchers(os.environ), **own}


def without_launchers(environment: Mapping[str, str], kept: Sequence[str] = ()) -> dict[str, str]:
    """An environment without the variables that launchers set for their processes; `kept`: prefixes that stay."""
    stale = tuple(prefix for prefix in _STALE if prefix not in kept)
    return {
        name: value for name, value in environment.items() if name not in _STALE_EXACT and not name.startswith(stale)
    }


def _stop(ranks: Sequence[WatchedRank]) -> None:
    """End the ranks that still run: SIGTERM, a grace period, SIGKILL to each rank's process group; then reap them."""
    processes = [rank.process.process for rank in ranks if isinstance(rank.process, LocalProcess)]
    for process in processes:
        with suppress(ForkServerError):
            if process.poll() is None:
                process.terminate()
                process.send_signal(signal.SIGCONT)  # a stopped process would not see SIGTERM
    deadline = time.monotonic() + _GRACE_S
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except (subprocess.TimeoutExpired, ForkServerError):
            pass
        finally:
            kill_group(process.pid)
    for process in processes:
        with suppress(ForkServerError):
            try:
                process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                if isinstance(process, ForkedProcess):
                    process.stop_server()  # it may be stuck, and then reports no exit code
                process.wait(_GRACE_S)
    for rank in ranks:
        os.close(rank.channel)


def kill_group(pid: int | None) -> None:
    """Kill the remaining processes of a group, given the process that leads it."""
    if pid is not None:
        with suppress(ProcessLookupError, PermissionError):  # no process is left
            os.killpg(pid, signal.SIGKILL)
