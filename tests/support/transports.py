"""Ranks that only talk: `python -m tests.support.transports SCENARIO BACKEND PP TP RANK RENDEZVOUS COUNT SEED`.

Each prints what it found as JSON. `run_ranks` starts them all and returns it. They start warm, but where a test speaks
with them.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time

from tests.support import warm
from tests.support.paths import ROOT

KINDS = ("float32", "bfloat16", "int64")


def start_ranks(scenario, backend, pp, tp, directory, count, seed=0, *, with_pipes=False):
    cores = sorted(os.sched_getaffinity(0))
    ranks = []
    for rank in range(pp * tp):
        arguments = [scenario, backend, pp, tp, rank, directory / "rendezvous", count, seed, cores[rank % len(cores)]]
        command = [sys.executable, "-m", "tests.support.transports", *map(str, arguments)]
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        if with_pipes:
            ranks.append(subprocess.Popen(command, cwd=ROOT, env=variables, text=True, **streams))
        else:
            ranks.append(warm.Command(command, env=variables))
    return ranks


def run_ranks(*arguments, timeout=120, **options):
    ranks = start_ranks(*arguments, **options)
    try:
        done = [(*rank.communicate(timeout=timeout), rank.returncode) for rank in ranks]
    finally:
        stop_ranks(ranks)
    for printed, error, code in done:
        assert code == 0, error or printed
    return [json.loads(printed) for printed, _, _ in done]


def stop_ranks(ranks):
    for rank in ranks:
        rank.kill()
        with rank:  # closes its pipes and waits for it
            pass


def values(torch, index, rank, size, dtype):
    """Whole numbers, small enough that their sums are exact in every type."""
    return ((torch.arange(size) + index) % 5 + rank).to(getattr(torch, dtype))


def mixed(torch, transport, mesh, count, seed, before=lambda index: None):
    """Random operations and sizes, every result checked; sums of random floats must be equal to the bit."""
    choose = random.Random(seed)
    noise = torch.Generator().manual_seed(mesh.rank)
    group = mesh.tensor_group()
    digest = 0
    for index in range(count):
        before(index)
        size, dtype = int(10 ** choose.uniform(0, 3 if choose.random() < 0.999 else 5.6)), choose.choice(KINDS)
        operation = choose.choice(
            ("sum", "sum", "gather", "noise", "hop", "barrier") if len(group) > 1 else ("hop", "barrier")
        )
        mine = values(torch, index, mesh.rank, size, dtype)
        if operation == "sum":
            expected = sum(values(torch, index, rank, size, dtype) for rank in group)
            assert torch.equal(transport.all_reduce(mine), expected), index
        elif operation == "gather":
            expected = torch.stack([values(torch, index, rank, size, dtype) for rank in group])
            assert torch.equal(transport.gather(mine), expected), index
        elif operation == "noise":
            total = transport.all_reduce(torch.randn(size, generator=noise))
            digest = hash((digest, total.view(torch.int32).sum().item()))
        elif operation == "barrier":
            transport.barrier()
        elif mesh.sizes.pp > 1:
            hop(torch, transport, mesh, mine, lambda r: values(torch, index, r, size, dtype))  # noqa: B023
    return {"digest": digest}


def hop(torch, transport, mesh, mine, sent_by):
    """A message to the next stage, and one from the last stage to the first."""
    if not mesh.is_first_stage:
        got = transport.receive(tuple(mine.shape), mine.dtype, 0)
        assert torch.equal(got, sent_by(mesh.sender(0)))
    if mesh.is_last_stage:
        transport.send(mine, 1)
    else:
        transport.send(mine, 0)
    if mesh.is_first_stage:
        assert torch.equal(transport.receive(tuple(mine.shape), mine.dtype, 1), sent_by(mesh.sender(1)))


def large(torch, transport, mesh, count, seed):
    """Tensors of many slots, and a message that does not fit the ring."""
    for index in range(count):
        mine = values(torch, index, mesh.rank, 1_600_000, "float32")
        whole = [values(torch, index, rank, 1_600_000, "float32") for rank in mesh.tensor_group()]
        assert torch.equal(transport.gather(mine), torch.stack(whole))
        hop(torch, transport, mesh, mine, lambda r: values(torch, index, r, 1_600_000, "float32"))  # noqa: B023
        transport.barrier()
        assert torch.equal(transport.all_reduce(mine), sum(whole))
    return {}


def latency(torch, transport, mesh, count, seed):
    """Seconds of an all-reduce of [4, 768] float32, and of half a round trip of 12 KB between two stages; medians."""
    tensor = torch.ones(4, 768)
    found = {}
    if mesh.sizes.tp > 1:
        found["all_reduce_s"] = _median_s(lambda: transport.all_reduce(tensor.fill_(1.0)), transport, count)
    if mesh.sizes.pp > 1:

        def round_trip():
            if mesh.is_first_stage:
                transport.send(tensor, 0)
                transport.receive((4, 768), torch.float32, 1)
            else:
                transport.receive((4, 768), torch.float32, 0)
                transport.send(tensor, 1)

        found["hop_s"] = _median_s(round_trip, transport, count) / 2
    return found


def _median_s(operation, transport, count, repeats=9):
    samples = []
    for _ in range(repeats):
        transport.barrier()
        begin = time.perf_counter()
        for _ in range(count):
            operation()
        samples.append((time.perf_counter() - begin) / count)
    return sorted(samples)[repeats // 2]


def die(torch, transport, mesh, count, seed):
    """The same, but some rank is killed before some operation."""
    choose = random.Random(seed)
    victim, fatal = choose.randrange(mesh.sizes.size), choose.randrange(count)

    def kill(index):
        if (mesh.rank, index) == (victim, fatal):
            os.kill(os.getpid(), signal.SIGKILL)

    mixed(torch, transport, mesh, count + 100, seed, kill)
    return {}


def leave(torch, transport, mesh, count, seed):
    """Rank 1 tells the test that it is there, and waits to be killed; the others wait for it."""
    print("ready", flush=True)
    if mesh.rank == 1:
        sys.stdin.read()
    transport.all_reduce(torch.ones(count))
    return {}


def main(scenario, backend, pp, tp, rank, rendezvous, count, seed, core):
    os.sched_setaffinity(0, {int(core)})
    import torch

    from gpt_parallel.engine.comm.process_groups import Distributed
    from gpt_parallel.engine.comm.shared_memory import SharedMemory
    from gpt_parallel.layout.mesh import Mesh
    from gpt_parallel.schema.run import MeshSpec

    torch.set_num_threads(1)
    mesh = Mesh(MeshSpec(pp=int(pp), tp=int(tp)), int(rank))
    oversubscribed = mesh.sizes.size > (os.cpu_count() or 1)
    with torch.inference_mode():
        if backend == "shm":
            transport = SharedMemory(mesh, rendezvous, 60.0, oversubscribed=oversubscribed)
        else:
            transport = Distributed(mesh, backend, torch.device("cpu"), rendezvous, 60.0)
        found = globals()[scenario](torch, transport, mesh, int(count), int(seed))
        transport.barrier()
        transport.close()
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
