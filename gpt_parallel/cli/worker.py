"""`gpt-parallel worker` and `gpt-parallel join`: the commands on the machines of a run that a launcher starts."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from gpt_parallel.base.errors import SpecError
from gpt_parallel.base.host import keep_alive
from gpt_parallel.base.signals import uninterrupted
from gpt_parallel.cli.common import errors, exit_codes, option
from gpt_parallel.launch.cluster import process as launcher_process
from gpt_parallel.launch.cluster.command import Launcher, parse_address, parse_launcher

WORKER_HELP = """Run one rank. The launcher given by --launcher starts this command; it is not meant to be typed.

The rank's number comes from the launcher (torchrun, srun, mpirun), the job from the process that
listens at HOST:PORT.
"""

JOIN_HELP = """Let this machine take part in a session that runs on another one.

torchrun needs an agent on every machine. The machine with pytest starts its own agent for each case; this command
starts one here at the same times, until the session ends. srun and mpirun reach all machines and need no join.

Exit codes: 0 the session has ended, 2 wrong usage, 130 interrupted.

\b
Example, with pytest on the machine "one":
  one$ pytest benchmarks --gpt-launcher-address one:29401
           --gpt-launcher "torchrun --nnodes=2 --nproc-per-node=2 --rdzv-backend=c10d --rdzv-endpoint=one:29400"
  two$ gpt-parallel join one:29401
           --launcher "torchrun --nnodes=2 --nproc-per-node=2 --rdzv-backend=c10d --rdzv-endpoint=one:29400"
"""


def worker(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="address of the process that runs the case")],
    run: Annotated[str, typer.Argument(metavar="RUN", help="name of the run")],
) -> None:
    with exit_codes():
        parse_address(address)
        os.execv(sys.executable, [sys.executable, "-m", "gpt_parallel.engine.process.cluster_worker", address, run])


def join(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="the session's --gpt-launcher-address")],
    launcher: Annotated[str, option("--launcher", "This machine's part of the session's --gpt-launcher.")],
    wait: Annotated[float, option("--wait", "Seconds to wait for the session to begin. Default: 600.")] = 600.0,
) -> None:
    with exit_codes():
        command = parse_launcher(launcher)
        command.command(1, [])  # raises SpecError if it is not installed
        with tempfile.TemporaryDirectory(prefix="gpt_parallel-join-") as scratch:  # torchrun leaves directories behind
            _follow(_connect(address, wait), address, command, Path(scratch) if command.is_torchrun else None)
    errors.print("the session has ended")


def _connect(address: str, wait_s: float) -> socket.socket:
    host, port = parse_address(address)
    errors.print(f"waiting for a session at {address}")
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return socket.create_connection((host, port), timeout=min(10.0, wait_s))
        except OSError as error:
            if time.monotonic() >= deadline:
                raise SpecError(
                    f"{address}: no session to join within {wait_s:g} s ({error.strerror or error}); check that it is "
                    "the session's --gpt-launcher-address and that this machine can reach it"
                ) from error
            time.sleep(0.5)


def _follow(session: socket.socket, address: str, launcher: Launcher, temporary: Path | None) -> None:
    """Start and stop this machine's launcher on the session's orders, until the session ends."""
    session.settimeout(None)
    keep_alive(session)
    session.sendall(json.dumps({"follow": socket.gethostname()}).encode() + b"\n")
    errors.print(f"joined the session at {address}")
    running: subprocess.Popen[bytes] | None = None
    try:
        for order in _orders(session.makefile("rb")):
            _end(running)
            running = None
            if name := order.get("start"):
                errors.print(f"run {name}: {order['num_gpus']} ranks")
                program = [sys.executable, "-m", "gpt_parallel", "worker", address, str(name)]
                words = launcher.command(int(order["num_gpus"]), program)
                with uninterrupted():  # an interrupt before the assignment would leave the process running
                    running = launcher_process.start(words, temporary=temporary)
    finally:
        with uninterrupted():
            _end(running)
        session.close()


def _orders(lines: IO[bytes]) -> Iterator[dict[str, Any]]:
    with suppress(OSError):  # the connection was lost
        for line in lines:
            yield json.loads(line)


def _end(process: "subprocess.Popen[bytes] | None") -> None:
    """Stop a launcher. After a successful run it has ended, or is about to, when the next run starts."""
    if process is not None:
        launcher_process.stop(process)
