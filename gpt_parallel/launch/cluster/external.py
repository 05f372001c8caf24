"""Runs a job through the user's launcher (torchrun, srun, mpirun …), on one machine or many, with the same results.

The launcher starts `gpt-parallel worker` on each machine; the workers connect to this process, receive their place in
the mesh, and are then watched like local ranks. A lost connection ends the rank on both sides.
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

_GRACE_S = 10.0  # for a launcher to end once its ranks have ended
_FINAL_OUTPUT_S = 2.0  # for a launcher to print how a lost rank has ended


class External:
    """A launcher that starts ranks, and the address at which they report. Listens until it is closed."""

    def __init__(self, launcher: Launcher, address: str | None = None) -> None:
        """Raises SpecError if the launcher is not installed or the address cannot be listened on."""
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
        its report and the launcher exited with code 0.
        """
        with run_directory() as directory:
            run = _Run(secrets.token_hex(8), job, on_phase or (lambda rank, phase: None), directory / "launcher.log")
            return self._launch(run, cores)

    def _launch(self, run: "_Run", cores: Sequence[int] | None) -> tuple[RankReport, ...]:
        pending_ranks: list[PendingRank] = []
        ranks: list[WatchedRank] = []
        process, is_over = None, False
        try:
            self._listener.notify_followers(run.order)
            with uninterrupted():  # an interrupt before the assignment would leave the process running
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
                launcher_process.has_ended(process, _FINAL_OUTPUT_S)
            kept = keep_logs(ranks, run.spec, run.begin, launcher=launcher_process.printed(run.log))
            message = f"{error}{launcher_process.tail(run.log)}\n\n{kept}"
            raise LaunchError(message) from error
        finally:
            with uninterrupted():
                for pending in pending_ranks:
                    pending.disconnect()
                if not is_over:
                    self._listener.notify_followers({"stop": run.name})
                if process is not None:
                    launcher_process.stop(process)
                launcher_process.wait_until_gone(
                    [pending.process for pending in pending_ranks if pending.process is not None]
                )

    def _start(self, run: "_Run", cores: Sequence[int] | None) -> "subprocess.Popen[bytes]":
        program = [sys.executable, "-m", "gpt_parallel", "worker", self._listener.address, run.name]
        with create_private(run.log) as output:
            command = self._launcher.command(run.spec.num_gpus, program)
            # torchrun leaves directories behind. Other launchers' ranks may be on machines without this directory.
            temporary = run.log.parent if self._launcher.is_torchrun else None
            return launcher_process.start(command, cores, output, temporary)

    def _gather(self, run: "_Run", process: "subprocess.Popen[bytes]", pending_ranks: list[PendingRank]) -> None:
        num_shown, size = -1, run.spec.num_gpus

        def check_progress(pending_ranks: Sequence[PendingRank]) -> None:
            nonlocal num_shown
            for pending in pending_ranks:
                check(pending, run.spec)
            state = f"{len(pending_ranks)} of {size} ranks have reported at {self._listener.address}"
            if process.poll() is not None:
                raise LaunchError(f"the launcher {self._launcher.name!r} ended with code {process.returncode}; {state}")
            if time.monotonic() > run.deadline:
                raise LaunchError(
                    f"the run did not start within {run.spec.execution.timeout_s:g} s: {state}. Is that address "
                    "reachable from their machines, and does each machine run its part (gpt-parallel join)?"
                )
            if len(pending_ranks) != num_shown:
                num_shown = len(pending_ranks)
                run.on_phase(0, f"wait for ranks ({num_shown} of {size})")

        self._listener.gather(pending_ranks, run.name, size, run.order, check_progress)


@dataclass(frozen=True)
class _Run:
    """One launch. Its name is sent to its ranks and to the machines that follow."""

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
    """Watch the ranks until all have ended well; raises LaunchError if they do not."""
    try:
        if not watch(ranks, max(1.0, run.deadline - time.monotonic()), run.on_phase):
            raise failure(ranks, run.spec)
    except MissedDeadlineError:
        raise missed_deadline(ranks, run.spec.execution.timeout_s) from None


def default_host(launcher: Launcher) -> str:
    """The host at which ranks reach this machine: the loopback address if all are local, otherwise its name.

    Raises SpecError if the name does not resolve, or resolves to an address of the loopback interface.
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
            f"other machines cannot reach this one by its name {name!r} (it resolves to {address}…); give "
            "--gpt-launcher-address (or --launcher-address) HOST:PORT, by which they can, or 127.0.0.1:0 if all ranks "
            "are on this machine"
        )
    return name
