"""Runs at once on one machine: real processes that claim what one of them can have. NVML is faked at the boundary."""

import os
import select
import signal
import subprocess
import sys
import uuid
from contextlib import ExitStack, suppress

import pynvml
import pytest

from gpt_parallel.base.errors import SpecError
from gpt_parallel.launch import claims, devices
from gpt_parallel.launch.claims import claim_cores, claim_devices, claim_gpus, memory_released
from gpt_parallel.launch.torch_build import TorchBuild
from gpt_parallel.schema.run import ExecutionSpec

HOLDER = """
import subprocess, sys
from gpt_parallel.launch.claims import claim_cores, claim_gpus

def tell(text):
    print(text, flush=True)

kind, names, policy, count = sys.argv[1:]
names = names.split(",")
claims = {
    "gpus": lambda: claim_gpus(names, policy, tell),
    "cores": lambda: claim_cores([int(name) for name in names], int(count), policy, tell),
}
with claims[kind]() as got:
    child = subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    tell(f"got {','.join(map(str, got.cores if kind == 'cores' else names))} {child.pid}")
    sys.stdin.readline()
    child.kill()
    child.wait()
"""


class Holder:
    """A process that claims devices, tells what it waits for and got, and gives it back when it is told."""

    def __init__(self, kind, names, policy, count):
        arguments = [kind, ",".join(map(str, names)), policy, str(count)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.child = None

    def read(self):
        line = self.process.stdout.readline().strip()
        if not line.startswith("got "):
            return line
        _, got, self.child = line.split()
        return got.split(",")

    def end(self):
        self.process.communicate("\n", timeout=30)

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def hold():
    """hold(kind, names, policy, count) starts one; its first words are to be read."""
    holders = []

    def start(kind, names, policy="wait", count=0):
        holders.append(Holder(kind, names, policy, count))
        return holders[-1]

    yield start
    for holder in holders:
        holder.kill()
        holder.process.stdin.close()
        holder.process.stdout.close()
        if holder.child:
            with suppress(ProcessLookupError):
                os.kill(int(holder.child), signal.SIGKILL)


@pytest.fixture
def gpus():
    """Names of three GPUs that no other test has."""
    return [f"GPU-{uuid.uuid4()}" for _ in range(3)]


@pytest.fixture
def cores():
    """Numbers of three cores that no run on this machine has."""
    first = 10**6 + int(uuid.uuid4().int % 10**9)
    return [first, first + 1, first + 2]


def never(text):
    pytest.fail(f"waited: {text}")


def test_a_busy_gpu_is_waited_for_and_said_once(hold, gpus):
    first = hold("gpus", gpus[:2])
    assert first.read() == gpus[:2]
    second = hold("gpus", [gpus[2], gpus[1]])
    assert second.read() == "waiting for GPU 1, which another run of gpt_parallel uses"

    first.end()

    assert second.read() == [gpus[2], gpus[1]]


def test_waiting_is_told_once_however_long_it_takes(gpus, cores, monkeypatch):
    sleeps, told = [], []

    def sleep(seconds):
        sleeps.append(seconds)
        if len(sleeps) % 5 == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", sleep)
    with claim_gpus(gpus[:1], "refuse", never), claim_cores(cores, 3, "refuse", never):
        for claim in (claim_gpus(gpus, "wait", told.append), claim_cores(cores, 2, "wait", told.append)):
            with pytest.raises(KeyboardInterrupt), claim:
                pass

    assert len(sleeps) == 10
    assert max(sleeps) <= 0.2
    assert told == [
        "waiting for GPU 0, which another run of gpt_parallel uses",
        "waiting for 2 CPU core(s), which other runs of gpt_parallel use",
    ]


def test_a_busy_gpu_is_refused_by_name(hold, gpus):
    hold("gpus", gpus[1:2]).read()

    with (
        pytest.raises(
            SpecError,
            match=rf"GPU 1 \({gpus[1]}\) is used by another run.*CUDA_VISIBLE_DEVICES.*--when-busy wait or share",
        ),
        claim_gpus(gpus, "refuse", never),
    ):
        pass

    with claim_gpus([gpus[0], gpus[2]], "refuse", never):
        pass  # what it had claimed before it met the busy one is free again


def test_a_busy_gpu_can_be_shared(hold, gpus):
    hold("gpus", gpus).read()

    with claim_gpus(gpus, "share", never) as claims:
        assert claims.are_shared
    with claim_gpus(gpus, "share", never) as claims:
        assert claims.are_shared, "whoever shared them before"


@pytest.mark.parametrize("kind", ["gpus", "cores"])
def test_who_came_first_learns_that_others_came_even_if_they_have_gone(hold, gpus, cores, kind):
    claim = {
        "gpus": lambda when_busy: claim_gpus(gpus[2:], when_busy, str),
        "cores": lambda when_busy: claim_cores(cores[2:], 1, when_busy, str),
    }[kind]
    with claim_gpus(gpus, "refuse", never) as on_gpus, claim_cores(cores, 3, "refuse", never) as on_cores:
        first, other = (on_gpus, on_cores) if kind == "gpus" else (on_cores, on_gpus)
        with pytest.raises(SpecError), claim("refuse"):
            pass
        assert not first.are_shared, "who was refused has used nothing"

        sharer = hold(kind, {"gpus": gpus, "cores": cores}[kind][2:], "share", 1)
        while isinstance(sharer.read(), str):
            pass
        sharer.kill()
        assert first.are_shared
        for _ in range(20):  # more messages than a socket keeps
            with claim("share"):
                assert first.are_shared
        assert not other.are_shared
    with claim("refuse") as alone:
        assert not alone.are_shared


@pytest.mark.parametrize("kind", ["gpus", "cores"])
def test_a_device_is_free_when_those_who_shared_it_have_ended_too(hold, gpus, cores, kind):
    names = {"gpus": gpus, "cores": cores}[kind]
    claim = {"gpus": lambda: claim_gpus(gpus, "refuse", never), "cores": lambda: claim_cores(cores, 3, "refuse", never)}
    first, sharers = hold(kind, names, "wait", 3), []
    first.read()
    for _ in range(2):
        sharers.append(hold(kind, names, "share", 3))
        while sharers[-1].read() != [str(name) for name in names]:
            pass

    for user in (first, *sharers):
        with pytest.raises(SpecError, match="other run"), claim[kind]():
            pass
        user.end()

    with claim[kind]():
        pass


def test_a_run_that_shares_a_device_alone_is_waited_for(hold, gpus):
    first = hold("gpus", gpus[:1])
    assert first.read() == gpus[:1]
    sharer = hold("gpus", gpus[:1], "share")
    assert sharer.read() == gpus[:1]
    first.end()
    waiting = hold("gpus", gpus[:1])
    assert "waiting for GPU 0" in waiting.read()

    sharer.end()

    assert waiting.read() == gpus[:1]


def test_a_free_device_is_not_shared_by_asking_for_it(gpus, cores):
    with claim_gpus(gpus, "share", never) as claims, claim_cores(cores, 3, "share", never) as claimed:
        assert not claims.are_shared
        assert not claimed.are_shared
        with pytest.raises(SpecError), claim_gpus(gpus[:1], "refuse", never):
            pass


def test_more_runs_than_a_device_has_names_share_it_all_the_same(gpus):
    with ExitStack() as runs:
        all_claims = [runs.enter_context(claim_gpus(gpus[:1], "share", never)) for _ in range(10)]
        assert [claims.are_shared for claims in all_claims] == [True] * 10

    with claim_gpus(gpus[:1], "refuse", never):
        pass


def test_a_gpu_that_is_named_twice_is_claimed_once(gpus):
    with claim_gpus([gpus[0], gpus[0]], "refuse", never):
        pass


def test_a_killed_run_holds_nothing_even_if_what_it_started_lives_on(hold, gpus):
    first = hold("gpus", gpus[:1])
    first.read()
    second = hold("gpus", gpus[:1])
    assert "waiting for GPU 0" in second.read()

    first.kill()

    assert second.read() == gpus[:1]
    os.kill(int(first.child), 0)


def test_runs_that_want_the_same_gpus_in_other_orders_do_not_wait_for_each_other(hold, gpus):
    """Both wait for the first in order, so neither holds what the other waits for."""
    lowest, *_ = sorted(gpus)
    with claim_gpus([lowest], "refuse", never):
        one, other = hold("gpus", gpus), hold("gpus", gpus[::-1])
        for holder, names in ((one, gpus), (other, gpus[::-1])):
            assert holder.read() == f"waiting for GPU {names.index(lowest)}, which another run of gpt_parallel uses"
        with claim_gpus(sorted(gpus)[1:], "refuse", never):
            pass

    # Whichever it was that came first; the other has it when that one ends.
    readable, _, _ = select.select([one.process.stdout, other.process.stdout], [], [], 30)
    winner, loser = (one, other) if one.process.stdout in readable else (other, one)
    assert set(winner.read()) == set(gpus)
    winner.end()
    assert set(loser.read()) == set(gpus)


def test_cores_that_others_have_are_passed_over(hold, cores):
    assert hold("cores", cores, "wait", 1).read() == [str(cores[0])]

    with claim_cores(cores, 2, "wait", never) as got:
        assert (got.cores, got.are_shared) == (tuple(cores[1:]), False)
    with claim_cores(cores, 1, "refuse", never) as got:
        assert (got.cores, got.are_shared) == ((cores[1],), False)


def test_too_few_free_cores_are_waited_for_with_none_held(hold, cores):
    first = hold("cores", cores, "wait", 2)
    first.read()
    second = hold("cores", cores, "wait", 2)
    assert second.read() == "waiting for 2 CPU core(s), which other runs of gpt_parallel use"

    with claim_cores(cores[2:], 1, "wait", lambda text: None):
        first.end()
        assert second.read() == [str(core) for core in cores[:2]]


def test_too_few_free_cores_are_refused_or_shared(hold, cores):
    hold("cores", cores, "wait", 2).read()

    with (
        pytest.raises(
            SpecError,
            match=r"2 CPU core\(s\) are needed, but other runs of gpt_parallel leave 1 of 3 free; use --when-busy wait",
        ),
        claim_cores(cores, 2, "refuse", never),
    ):
        pass
    told = []
    with claim_cores(cores, 2, "share", told.append) as got:
        assert (got.cores, got.are_shared) == ((cores[0], cores[2]), True), "the free one, and one more"
    assert told == ["sharing 1 CPU core(s) with other runs of gpt_parallel, which slows both"]


def test_more_ranks_than_cores_take_all(cores):
    with claim_cores(cores, 8, "refuse", never) as got:
        assert got.cores == tuple(cores)


def test_claims_end_with_their_block_however_it_does(cores, gpus):
    for _ in range(2):
        with (
            pytest.raises(KeyboardInterrupt),
            claim_cores(cores, 3, "refuse", never),
            claim_gpus(gpus, "refuse", never),
        ):
            raise KeyboardInterrupt


def test_without_abstract_sockets_nothing_is_claimed(cores, gpus, monkeypatch):
    monkeypatch.setattr(claims, "AVAILABLE", False)

    with claim_cores(cores, 2, "refuse", never), claim_cores(cores, 2, "refuse", never) as got:
        assert (got.cores, got.are_shared) == (tuple(cores[:2]), False)
    with claim_gpus(gpus, "refuse", never), claim_gpus(gpus, "refuse", never):
        pass


@pytest.fixture
def machine(monkeypatch, gpus):
    """machine.used: bytes in use on each of three GPUs, as NVML tells; a list is told one value after the other."""

    class Machine:
        used = dict.fromkeys(gpus, 1 << 30)

        def memory(self, uuid):
            value = self.used[uuid]
            if isinstance(value, list):
                value = value.pop(0) if len(value) > 1 else value[0]
            return type("Memory", (), {"used": value})

    machine = Machine()
    devices.cuda_devices.cache_clear()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "torch_build", lambda: TorchBuild("2.13.0", "CUDA", "13.0"))
    for name, answer in {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: len(gpus),
        "nvmlDeviceGetHandleByIndex": lambda index: gpus[index],
        "nvmlDeviceGetHandleByUUID": lambda uuid: uuid,
        "nvmlDeviceGetUUID": lambda handle: handle,
        "nvmlDeviceGetName": lambda handle: "a GPU",
        "nvmlDeviceGetCudaComputeCapability": lambda handle: (9, 0),
        "nvmlDeviceGetMemoryInfo": machine.memory,
    }.items():
        monkeypatch.setattr(pynvml, name, answer)
    yield machine
    devices.cuda_devices.cache_clear()


ON_CUDA = ExecutionSpec(device="cuda", dtype="bfloat16", backend="nccl")
ON_CPU = ExecutionSpec(device="cpu", dtype="float32", backend="shm", cores_per_rank=2)


def test_a_run_claims_the_gpus_it_will_use_and_waits_unless_told_otherwise(hold, machine, gpus, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"2,{gpus[0]},1")
    hold("gpus", gpus[:1]).read()
    waits = []

    def give_up(text):
        waits.append(text)
        raise KeyboardInterrupt

    with claim_devices(ON_CUDA, 1, "refuse", never):
        pass
    with pytest.raises(SpecError, match="GPU 1 "), claim_devices(ON_CUDA, 2, "refuse", never):
        pass
    with pytest.raises(KeyboardInterrupt), claim_devices(ON_CUDA, 2, "auto", give_up):
        pass
    assert waits == ["waiting for GPU 1, which another run of gpt_parallel uses"]
    with claim_devices(ON_CUDA, 3, "share", never) as got:
        assert got.are_shared


def test_on_cpu_cores_are_shared_unless_told_otherwise(hold, cores, monkeypatch):
    monkeypatch.setattr(claims, "available_cores", lambda: tuple(cores))
    hold("cores", cores[:1], "wait", 1).read()

    with claim_devices(ON_CPU, 1, "auto", never) as got:
        assert (got.cores, got.are_shared) == ((cores[1], cores[2]), False)
    with claim_devices(ON_CPU, 2, "auto", lambda text: None) as got:
        assert (got.cores, got.are_shared) == (tuple(cores), True)
    with pytest.raises(SpecError, match=r"3 CPU core\(s\) are needed"), claim_devices(ON_CPU, 2, "refuse", never):
        pass


def test_memory_of_a_run_that_failed_is_waited_for(machine, gpus):
    full, empty = 70 << 30, 1 << 30
    machine.used[gpus[1]] = [empty, full, full, empty + 1000]

    with pytest.raises(ZeroDivisionError), memory_released(gpus[:2]):
        raise ZeroDivisionError

    assert machine.used[gpus[1]] == [empty + 1000]


def test_a_run_on_gpus_ends_when_their_memory_is_free(machine, gpus):
    machine.used[gpus[0]] = [1 << 30, 70 << 30, 1 << 30]

    with claim_devices(ON_CUDA, 1, "refuse", never):
        pass

    assert machine.used[gpus[0]] == [1 << 30]


def test_memory_that_stays_in_use_is_not_waited_for_for_ever(machine, gpus, monkeypatch, caplog):
    monkeypatch.setattr(claims, "_MEMORY_WAIT_S", 0.05)
    machine.used[gpus[0]] = [1 << 30, 70 << 30]

    with memory_released(gpus[:1]):
        pass

    assert "GPU memory is still in use 0.05 s after the run" in caplog.text


def test_memory_that_cannot_be_read_is_not_waited_for(machine, gpus, monkeypatch):
    def refuse(handle):
        raise pynvml.NVMLError_NotSupported

    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", refuse)

    with memory_released(gpus):
        pass
