"""A rank started by an external launcher: `python -m gpt_parallel.engine.process.cluster_worker HOST:PORT RUN`.

It connects to the session, sends its location, receives its place in the mesh and its job, and reports on the same
connection. It ends when that connection is lost or its launcher ends, even if the process is stopped.
"""

import faulthandler
import json
import os
import platform
import socket
import sys
import tempfile
import threading
import time
from typing import IO, Any

import psutil

from gpt_parallel.base.host import clock_id, keep_alive, pid_space
from gpt_parallel.base.warning_filters import print_warnings
from gpt_parallel.engine.pipe import StatusPipe
from gpt_parallel.engine.process.title import show_as, title_of
from gpt_parallel.engine.process.worker import end_with_parent
from gpt_parallel.schema.handshake import Hello
from gpt_parallel.version import __version__

_CONNECT_S = 60.0
# The variables in which launchers give rank, world size and local rank.
_LAUNCHERS = {
    "TORCHELASTIC_RUN_ID": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    "OMPI_COMM_WORLD_RANK": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    "PMI_RANK": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    "SLURM_PROCID": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
    "RANK": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
}


class _Line:
    """The connection to the session that watches this rank."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S)
        self.socket.settimeout(None)
        keep_alive(self.socket)
        self.own_address: str = self.socket.getsockname()[0]
        self._lines: IO[bytes] = self.socket.makefile("rb")

    def tell(self, message: dict[str, Any]) -> None:
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def listen(self) -> dict[str, Any]:
        """The next message. Raises ConnectionError when the connection has ended."""
        line = self._lines.readline()
        if not line:
            raise ConnectionError("the process that wanted this rank has hung up")
        message: dict[str, Any] = json.loads(line)
        return message


def main(arguments: list[str]) -> int:
    address, run = arguments
    print_warnings()
    end_with_parent()
    try:
        line = _Line(address)
        line.tell(_hello(run).model_dump())
        message, store = _get_ready(line)
    except OSError as error:
        print(f"gpt-parallel worker: no run at {address} wants this rank ({error.strerror or error})", file=sys.stderr)
        return 2
    pipe = StatusPipe(line.socket.fileno())
    pipe.enter("start")
    threading.Thread(target=_obey, args=(line, pipe), daemon=True).start()
    try:
        _run(message, store, line.own_address, pipe)
    except BaseException as error:
        pipe.fail(error)
        return 1
    return 0


def _get_ready(line: _Line) -> tuple[dict[str, Any], Any]:
    """Answer requests until the job arrives. Returns the job, and the store if this rank serves it."""
    store: Any = None  # torch is not imported yet
    while "job" not in (message := line.listen()):
        if "ping" in message:
            line.tell({"clock": time.monotonic()})
        elif "serve_store" in message:
            store = _serve_store(line.socket, message["serve_store"])
            line.tell({"store": store.port})
    return message, store


def _run(message: dict[str, Any], store: Any, own_address: str, pipe: StatusPipe) -> None:
    from gpt_parallel.schema.run import Job

    job = Job.model_validate(message["job"])
    rank, local_rank = message["rank"], message["local_rank"]
    show_as(title_of(job, rank))  # not earlier: until the session has its hello, the arguments have to name the run
    cores: tuple[int, ...] = ()
    if job.spec.execution.device == "cpu":
        cores = job.spec.execution.cores_of(local_rank, sorted(os.sched_getaffinity(0)))  # that the launcher allows
        os.sched_setaffinity(0, cores)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", _interface_of(own_address))

    # Imported here, so that torch's threads are made after the process is pinned.
    import torch.distributed as dist

    from gpt_parallel.engine.job import run_job

    if store is None and message["store"] is not None:
        host, _, port = message["store"].rpartition(":")
        store = dist.TCPStore(host, int(port), is_master=False)  # type: ignore[attr-defined]
    report = run_job(job, rank, local_rank, store, pipe)
    pipe.deliver(report.placed(cores=cores, host=platform.node()))


def _hello(run: str) -> Hello:
    launcher = next((names for sign, names in _LAUNCHERS.items() if sign in os.environ), None)
    if launcher is None:
        raise SystemExit("gpt-parallel worker: started by no launcher that is known (torchrun, srun, mpirun)")
    rank, size, local_rank = (os.environ.get(name) for name in launcher)
    return Hello(
        run=run,
        version=__version__,
        rank=int(rank or 0),
        size=int(size or 1),
        local_rank=None if local_rank is None else int(local_rank),
        host=platform.node(),
        clock=clock_id(),
        pid=os.getpid(),
        pid_space=pid_space(),
    )


def _obey(line: _Line, pipe: StatusPipe) -> None:
    """Write the stacks on request; end with the connection."""
    while True:
        try:
            message = line.listen()
        except (OSError, ValueError):
            os._exit(0 if pipe.is_done else 1)
        if "stacks" in message:
            with tempfile.TemporaryFile() as file:
                faulthandler.dump_traceback(file)
                file.seek(0)
                pipe.show_stacks(file.read().decode(errors="replace"))


def _serve_store(connected: socket.socket, num_ranks: int) -> Any:
    """Serve the store through which the ranks connect. It listens only on the interface that reaches the session."""
    import torch.distributed as dist

    host, _, *scope = connected.getsockname()
    with socket.socket(connected.family) as listener:
        listener.bind((host, 0, *scope))
        listener.listen(num_ranks)
        port, descriptor = listener.getsockname()[1], listener.detach()  # torch closes it
    return dist.TCPStore(  # type: ignore[attr-defined]
        host, port, num_ranks, is_master=True, wait_for_workers=False, master_listen_fd=descriptor
    )


def _interface_of(address: str) -> str:
    """The network interface with this address; ranks use the interface that reaches the session."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == address for each in addresses):
            return str(name)
    return "lo"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
