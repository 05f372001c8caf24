"""Runs a job by the user's launcher (torchrun, srun, mpirun …), on one machine or many: the same worker, same result.

The launcher starts `gpt-parallel worker` on each machine; the workers call back, are given their place in the mesh, and
from then on are watched as local ranks are. A cut line ends a rank here and there.
"""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_parallel import __version__
from gpt_parallel.launch.failure import LaunchError, failure, keep_logs, missed_deadline
from gpt_parallel.launch.launcher import Launcher, parse_address, parse_launcher
from gpt_parallel.launch.local import kill_group, uninterrupted, without_launchers
from gpt_parallel.launch.placement import place
from gpt_parallel.launch.reception import Guest, Reception
from gpt_parallel.launch.run_directory import run_directory
from gpt_parallel.launch.watch import MissedDeadlineError, OnPhase, WatchedRank, watch
from gpt_parallel.result import RankReport
from gpt_parallel.spec import Job, RunSpec, SpecError
from gpt_parallel.wire import clock_id

_GRACE_S = 10.0  # for a launcher to end, once its ranks have or are told to
_STACKS_S = 2.0


@dataclass
class RemoteProcess:
    """A rank's process as far as its connection tells."""

    guest: Guest
    vanished: str = "ended, or its machine was cut off, without delivering a result"
    returncode: int | None = None
    is_stopped: bool = False
    stacks: str = ""

    def wait(self, timeout: float | None = None) -> int:
        """Called when the connection has closed; how the process ended is not told."""
        self.returncode = 0
        return 0

    def ask_for_stacks(self) -> None:
        try:
            self.guest.connection.tell({"stacks": True})
        except OSError:
            self.vanished = "cannot be reached"

    def read_stacks(self) -> str:
        """The answer, an event among others, which may come or not."""
        deadline = time.monotonic() + _STACKS_S
        connection = self.guest.connection.socket
        text = b""
        while time.monotonic() < deadline and not self.stacks:
            connection.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                text += connection.recv(1 << 16)
            except OSError:
                break
            self.stacks = _stacks_among(text)
        return self.stacks


class External:
    """A launcher that starts ranks, and the address at which they report. Listens as long as it lives."""

    def __init__(self, launcher: Launcher, address: str | None = None) -> None:
        """Raises SpecError if the launcher is not there or the address cannot be listened on."""
        self._launcher = launcher
        launcher.command(1, [])
        host, port = parse_address(address) if address else (default_host(launcher), 0)
        self._reception = Reception(host, port)

    @classmethod
    def from_text(cls, launcher: str, address: str | None = None) -> "External":
        return cls(parse_launcher(launcher), address)

    def close(self) -> None:
        self._reception.close()

    def launch(self, job: Job, *, on_phase: OnPhase | None = None) -> tuple[RankReport, ...]:
        """Run a job on the launcher's ranks; reports in mesh order, their times by this machine's clock.

        Raises LaunchError unless every rank delivered its report.
        """
        name = secrets.token_hex(8)
        program = [sys.executable, "-m", "gpt_parallel", "worker", self._reception.address, name]
        command = self._launcher.command(job.spec.num_gpus, program)
        with run_directory() as directory:
            return self._launch(name, command, job, directory / "launcher.log", on_phase or (lambda rank, phase: None))

    def _launch(
        self, name: str, command: Sequence[str], job: Job, log: Path, on_phase: OnPhase
    ) -> tuple[RankReport, ...]:
        begin, spec = time.monotonic(), job.spec
        guests: list[Guest] = []
        ranks: list[WatchedRank] = []
        order = {"start": name, "num_gpus": spec.num_gpus}
        self._reception.start_followers(order)
        process, is_over = _start(command, log), False
        try:
            guests = self._gather(name, order, process, log, spec, on_phase)
            ranks = _hire(guests, job)
            left_s = max(1.0, spec.execution.timeout_s - (time.monotonic() - begin))
            try:
                is_over = watch(ranks, left_s, on_phase)
                if is_over:
                    return tuple(_finished(rank) for rank in ranks)
                raise failure(ranks, spec)
            except MissedDeadlineError:
                raise missed_deadline(ranks, spec.execution.timeout_s) from None
        except (LaunchError, OSError, ValueError) as error:
            if isinstance(error, SpecError):
                raise
            if not isinstance(error, LaunchError):
                error = LaunchError(f"a rank did not do as it was told while it was started: {error}")
            kept = keep_logs(ranks, spec, begin, launcher=_printed(log))
            raise LaunchError(f"{error}{_tail(log)}\n\n{kept}", out_of_memory=error.out_of_memory) from error
        finally:
            with uninterrupted():
                for guest in guests:
                    guest.connection.close()  # ranks end at this
                if not _ended(process, _GRACE_S if is_over else 0.0):
                    self._reception.start_followers({"stop": name})
                    _stop(process)

    def _gather(
        self,
        name: str,
        order: dict[str, Any],
        process: "subprocess.Popen[bytes]",
        log: Path,
        spec: RunSpec,
        on_phase: OnPhase,
    ) -> list[Guest]:
        deadline = time.monotonic() + spec.execution.timeout_s
        told = -1

        def go_on(guests: Sequence[Guest]) -> None:
            nonlocal told
            for guest in guests:
                _check(guest, spec)
            here = f"{len(guests)} of {spec.num_gpus} ranks have reported at {self._reception.address}"
            if process.poll() is not None:
                raise LaunchError(f"the launcher {self._launcher.name!r} ended with code {process.returncode}; {here}")
            if time.monotonic() > deadline:
                raise LaunchError(
                    f"the run did not start within {spec.execution.timeout_s:g} s: {here}. Is that address reachable "
                    "from their machines, and does each machine run its part (gpt-parallel join)?"
                )
            if len(guests) != told:
                told = len(guests)
                on_phase(0, f"wait for ranks ({told} of {spec.num_gpus})")

        return self._reception.wait_for_guests(name, spec.num_gpus, order, go_on)


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
            "give the launcher address HOST:PORT at which ranks on other machines reach this one"
        )
    return name


def _check(guest: Guest, spec: RunSpec) -> None:
    hello, where = guest.hello, f"{guest.hello.host} ({guest.connection.host})"
    if hello.version != __version__:
        raise LaunchError(f"gpt_parallel is {__version__} here and {hello.version} on {where}; install one version")
    if hello.size != spec.num_gpus:
        raise LaunchError(
            f"the launcher started {hello.size} ranks, but the case needs {spec.num_gpus}; choose cases that suit it "
            "(-k 4gpu, --gpt-num-gpus 4), or put {num_gpus} for the number in its command"
        )


def _hire(guests: Sequence[Guest], job: Job) -> list[WatchedRank]:
    """Give every guest its rank and the job."""
    hosts = [f"{guest.hello.host}@{guest.connection.host}" for guest in guests]
    names = {guest.hello.host for guest in guests}
    places = place(hosts, [guest.hello for guest in guests], job.spec.mesh)
    by_rank = sorted(range(len(guests)), key=lambda index: places[index])
    for guest in guests:
        if guest.hello.clock != clock_id():
            guest.compare_clocks()
    first = guests[by_rank[0]].connection
    store = None
    if len(guests) > 1:
        store = f"{first.host}:{int(first.ask({'serve_store': len(guests)}, 'store'))}"
    ranks = []
    text = job.model_dump(mode="json")
    for rank, index in enumerate(by_rank):
        guest, here = guests[index], [i for i in by_rank if hosts[i] == hosts[index]]
        local = guest.hello.local_rank if guest.hello.local_rank is not None else here.index(index)
        guest.is_crowded = len(here) * job.spec.execution.cores_per_rank > guest.hello.num_cores
        guest.connection.tell({"job": text, "rank": rank, "local_rank": local, "store": store})
        host = guest.hello.host if len(names) == len(set(hosts)) else hosts[index]
        ranks.append(WatchedRank(rank, RemoteProcess(guest), guest.connection.fileno(), host=host))
    for guest in guests:
        guest.connection.socket.settimeout(None)
    return ranks


def _finished(rank: WatchedRank) -> RankReport:
    """A rank's report, with times by this machine's clock."""
    assert isinstance(rank.process, RemoteProcess)
    assert rank.report is not None
    guest = rank.process.guest
    report = on_clock(rank.report, guest.clock_offset_s)
    return report.model_copy(update={"oversubscribed": guest.is_crowded and report.device_name == "CPU"})


def on_clock(report: RankReport, offset_s: float) -> RankReport:
    """A report whose batches' times are of a clock that is so much ahead."""
    if not offset_s:
        return report
    rounds = tuple(
        each.model_copy(
            update={
                "timelines": tuple(
                    timeline.model_copy(
                        update={
                            "start_s": None if timeline.start_s is None else timeline.start_s + offset_s,
                            "token_times_s": tuple(time + offset_s for time in timeline.token_times_s),
                        }
                    )
                    for timeline in each.timelines
                )
            }
        )
        for each in report.rounds
    )
    return report.model_copy(update={"rounds": rounds})


def _stacks_among(text: bytes) -> str:
    for line in text.split(b"\n")[:-1]:
        with suppress(ValueError):  # the end of an event that was begun before
            event = json.loads(line)
            if "stacks" in event:
                return str(event["stacks"]).rstrip()
    return ""


def _start(command: Sequence[str], log: Path) -> "subprocess.Popen[bytes]":
    environment = without_launchers(os.environ, kept=("SLURM_", "PET_"))  # srun's job, torchrun's own defaults
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def _ended(process: "subprocess.Popen[bytes]", within_s: float) -> bool:
    try:
        process.wait(within_s)
    except subprocess.TimeoutExpired:
        return False
    return True


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """A launcher passes SIGTERM on to its ranks, here and elsewhere."""
    process.terminate()
    _ended(process, _GRACE_S)
    kill_group(process.pid)
    process.wait()


def _printed(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace").rstrip() if log.exists() else ""


def _tail(log: Path, num_lines: int = 20) -> str:
    lines = _printed(log).splitlines()[-num_lines:]
    return "".join(["\n\nthe launcher and its ranks printed:", *(f"\n  {line}" for line in lines)]) if lines else ""
