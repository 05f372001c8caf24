"""Runs a job by the user's launcher (torchrun, srun, mpirun …), on one machine or many: the same worker, same result.

The launcher starts `gpt-parallel worker` on each machine; the workers call back, are given their place in the mesh, and
from then on are watched as local ranks are. A cut line ends a rank here and there.
"""

import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt_parallel.base.errors import SpecError
from gpt_parallel.base.signals import uninterrupted
from gpt_parallel.launch.cluster import process as launcher_process
from gpt_parallel.launch.cluster.assignment import assign_ranks, check
from gpt_parallel.launch.cluster.command import Launcher, parse_address, parse_launcher
from gpt_parallel.launch.cluster.connection import PendingRank
from gpt_parallel.launch.cluster.listener import RankListener
from gpt_parallel.launch.cluster.remote_process import reports_of
from gpt_parallel.launch.failure import LaunchError, failure, keep_logs, missed_deadline
from gpt_parallel.launch.run_directory import create_private, run_directory
from gpt_parallel.launch.watch import MissedDeadlineError, OnPhase, WatchedRank, watch
from gpt_parallel.schema.result import RankReport
from gpt_parallel.schema.run import Job, RunSpec

_GRACE_S = 10.0  # for a launcher to end once its ranks have
_LAST_WORDS_S = 2.0  # for a launcher to say how a rank that is gone has ended


class External:
    """A launcher that starts ranks, and the address at which they report. Listens as long as it lives."""

    def __init__(self, launcher: Launcher, address: str | None = None) -> None:
        """Raises SpecError if the launcher is not there or the address cannot be listened on."""
        self._launcher = launcher
        launcher.command(1, [])
        host, port = parse_address(address) if address else (default_host(launcher), 0)
        self._listener = RankListener(host, port)

    @classmethod
    def from_text(cls, launcher: str, address: str | None = None) -> "External":
        return cls(parse_launcher(launcher), address)

    @property
    def is_local(self) -> bool:
        return self._launcher.is_local

    def close(self) -> None:
        self._listener.close()

    def launch(
        self, job: Job, *, on_phase: OnPhase | None = None, cores: Sequence[int] | None = None
    ) -> tuple[RankReport, ...]:
        """Run a job on the launcher's ranks; reports in mesh order, their times by this machine's clock.

        A launcher of this machine and its ranks stay on the given cores. Raises LaunchError unless every rank delivered
        its report and the launcher ended well.
        """
        with run_directory() as directory:
            run = _Run(secrets.token_hex(8), job, on_phase or (lambda rank, phase: None), directory / "launcher.log")
            return self._launch(run, cores)

    def _launch(self, run: "_Run", cores: Sequence[int] | None) -> tuple[RankReport, ...]:
        pending_ranks: list[PendingRank] = []
        ranks: list[WatchedRank] = []
        process, is_over = None, False
        try:
            self._listener.tell_followers(run.order)
            with uninterrupted():  # or it would be left behind, not known of
                process = self._start(run, cores)
            self._gather(run, process, pending_ranks)
            ranks = assign_ranks(pending_ranks, run.job, run.deadline)
            _watch(run, ranks)
            has_ended = launcher_process.has_ended(process, _GRACE_S)
            if process.returncode:
                message = f"all ranks delivered their results, but the launcher {self._launcher.name!r} ended with code"
                raise LaunchError(f"{message} {process.returncode}")
            reports = reports_of(ranks, run.spec.execution.cores_per_rank)
            is_over = has_ended
            return reports
        except LaunchError as error:
            if process is not None and any(rank.ended for rank in ranks):
                launcher_process.has_ended(process, _LAST_WORDS_S)
            kept = keep_logs(ranks, run.spec, run.begin, launcher=launcher_process.printed(run.log))
            message = f"{error}{launcher_process.tail(run.log)}\n\n{kept}"
            raise LaunchError(message) from error
        finally:
            with uninterrupted():
                for pending in pending_ranks:
                    pending.disconnect()
                if not is_over:
                    self._listener.tell_followers({"stop": run.name})
                if process is not None:
                    launcher_process.stop(process)
                launcher_process.wait_until_gone(
                    [pending.process for pending in pending_ranks if pending.process is not None]
                )

    def _start(self, run: "_Run", cores: Sequence[int] | None) -> "subprocess.Popen[bytes]":
        program = [sys.executable, "-m", "gpt_parallel", "worker", self._listener.address, run.name]
        with create_private(run.log) as output:
            command = self._launcher.command(run.spec.num_gpus, program)
            # torchrun leaves directories behind. What others start may be elsewhere, where there is no such directory.
            temporary = run.log.parent if self._launcher.is_torchrun else None
            return launcher_process.start(command, cores, output, temporary)

    def _gather(self, run: "_Run", process: "subprocess.Popen[bytes]", pending_ranks: list[PendingRank]) -> None:
        told, size = -1, run.spec.num_gpus

        def go_on(pending_ranks: Sequence[PendingRank]) -> None:
            nonlocal told
            for pending in pending_ranks:
                check(pending, run.spec)
            here = f"{len(pending_ranks)} of {size} ranks have reported at {self._listener.address}"
            if process.poll() is not None:
                raise LaunchError(f"the launcher {self._launcher.name!r} ended with code {process.returncode}; {here}")
            if time.monotonic() > run.deadline:
                raise LaunchError(
                    f"the run did not start within {run.spec.execution.timeout_s:g} s: {here}. Is that address "
                    "reachable from their machines, and does each machine run its part (gpt-parallel join)?"
                )
            if len(pending_ranks) != told:
                told = len(pending_ranks)
                run.on_phase(0, f"wait for ranks ({told} of {size})")

        self._listener.gather(pending_ranks, run.name, size, run.order, go_on)


@dataclass(frozen=True)
class _Run:
    """One launch. Its name is told to its ranks and to machines that follow."""

    name: str
    job: Job
    on_phase: OnPhase
    log: Path
    begin: float = field(default_factory=time.monotonic)

    @property
    def spec(self) -> RunSpec:
        return self.job.spec

    @property
    def deadline(self) -> float:
        return self.begin + self.spec.execution.timeout_s

    @property
    def order(self) -> dict[str, Any]:
        return {"start": self.name, "num_gpus": self.spec.num_gpus}


def _watch(run: _Run, ranks: Sequence[WatchedRank]) -> None:
    """Until every rank has ended well; raises LaunchError."""
    try:
        if not watch(ranks, max(1.0, run.deadline - time.monotonic()), run.on_phase):
            raise failure(ranks, run.spec)
    except MissedDeadlineError:
        raise missed_deadline(ranks, run.spec.execution.timeout_s) from None


def default_host(launcher: Launcher) -> str:
    """Where ranks reach this machine: the loopback interface if all are here, otherwise its name.

    Raises SpecError where the name would lead other machines to themselves.
    """
    if launcher.is_local:
        return "127.0.0.1"
    name = socket.getfqdn()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        address = "127."
    if address.startswith("127."):
        raise SpecError(
            f"this machine's name {name!r} is of no use to others (it stands for {address}…); "
            "give --gpt-launcher-address (or --launcher-address) HOST:PORT, at which ranks on other machines reach it; "
            "127.0.0.1:0 if all ranks are here"
        )
    return name
