"""A launcher's command line: what is read from it, and what is made of it."""

import os
import sys

import pytest

from gpt_parallel.base.errors import SpecError
from gpt_parallel.inputs.execution import device_counts, reason_to_skip, resolve_execution
from gpt_parallel.inputs.settings import make_settings
from gpt_parallel.launch.cluster import process as launcher_process
from gpt_parallel.launch.cluster.command import parse_address, parse_launcher


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("torchrun --nnodes=2 --nproc-per-node=4 --rdzv-backend=c10d", 8),
        ("torchrun --nnodes 2 --nproc_per_node 4", 8),
        ("torchrun --standalone --nproc-per-node=2", 2),
        ("python3 -m torch.distributed.run --nproc-per-node=3", 3),
        ("torchrun --nnodes=1:4 --nproc-per-node=4", None),
        ("torchrun --nproc-per-node=gpu", None),
        ("torchrun --nproc-per-node={num_gpus}", None),
        ("torchrun --nnodes=2 --nproc-per-node=2 --nproc-per-node=4 --nnodes 1", 4),
        ("srun -n 8", 8),
        ("srun -n4", 4),
        ("srun -N2 --ntasks-per-node=4", 8),
        ("srun -n 4 --ntasks=8", 8),
        ("srun -n{num_gpus}", None),
        ("srun --ntasks=8 -N 2", 8),
        ("srun -N 2 --ntasks-per-node=4", 8),
        ("srun", None),
        ("/opt/mpi/bin/mpirun -np 4 --map-by node", 4),
        ("mpirun -n {num_gpus}", None),
        ("my-launcher --hosts a,b", None),
    ],
)
def test_the_number_of_ranks_is_read_where_it_is_told(text, size):
    assert parse_launcher(text).size == size


@pytest.mark.parametrize("text", ["", "  ", "torchrun '", "mpirun -n {gpus}"])
def test_what_is_no_command_line_is_refused(text):
    with pytest.raises(SpecError, match="launcher"):
        parse_launcher(text)


@pytest.mark.parametrize("text", ["one", "one:", ":1", "one:65536", "one:-1", "one:٣"])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(SpecError, match="must be HOST:PORT"):
        parse_address(text)


def test_addresses_may_be_of_either_family():
    assert parse_address("one:0") == ("one", 0)
    assert parse_address("[fe80::1]:29401") == ("fe80::1", 29401)


def test_the_program_follows_the_launcher_s_own_words():
    program = [sys.executable, "-m", "gpt_parallel"]

    own = parse_launcher(f"{sys.executable} -x '{{num_gpus}} ranks'").command(4, program)
    torchrun = parse_launcher("torchrun --nproc-per-node={num_gpus}").command(2, program)

    assert own == [sys.executable, "-x", "4 ranks", *program]
    assert os.path.basename(torchrun[0]) == "torchrun"
    assert torchrun[1:] == ["--nproc-per-node=2", "--no-python", *program]


def test_a_launcher_that_is_not_there_is_named():
    with pytest.raises(SpecError, match="launcher 'no-such-launcher': no such program on this machine"):
        parse_launcher("no-such-launcher -n 2").command(2, [])


def test_cases_are_those_that_suit_the_launcher():
    four = make_settings("smoke", {"device": "cpu", "launcher": "torchrun --nnodes=2 --nproc-per-node=2"})
    any_number = make_settings("smoke", {"device": "cpu", "launcher": "mpirun -n {num_gpus}"})

    assert device_counts(four) == (4,)
    assert reason_to_skip(four, 2).startswith("needs 2 ranks, the launcher starts 4")
    assert reason_to_skip(four, 4) is None
    assert device_counts(any_number) == (1, 2, 4)
    assert reason_to_skip(any_number, 2) is None
    assert resolve_execution(four, 4).backend == "gloo"
    assert not resolve_execution(four, 4).oversubscribed


def test_what_the_environment_would_change_about_a_launcher_is_kept_from_it(monkeypatch, tmp_path):
    """Words alone say what a launcher starts and where; but srun needs to know its job."""
    monkeypatch.setenv("PET_NNODES", "2")
    monkeypatch.setenv("RANK", "7")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    with (tmp_path / "log").open("wb") as log:
        process = launcher_process.start(["env"], output=log)
        assert process.wait(10) == 0

    names = {line.partition("=")[0] for line in (tmp_path / "log").read_text().splitlines()}
    assert {"PET_NNODES", "RANK", "SLURM_JOB_ID"} & names == {"SLURM_JOB_ID"}


def test_a_launcher_is_stopped_with_what_left_its_session(tmp_path):
    """As ranks of torchrun do; this one does not heed SIGTERM either."""
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    launcher = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]], start_new_session=True)"
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as told:
        with os.fdopen(write_end, "wb") as output:
            process = launcher_process.start([sys.executable, "-c", launcher, stubborn], output=output)
        assert told.readline() == b"\n"

        launcher_process.stop(process)

        assert b"signal" not in told.read(), "its end is there once nobody can write"


def test_a_launcher_s_temporary_files_go_with_the_run(tmp_path):
    with (tmp_path / "log").open("wb") as output:
        launcher_process.start(["sh", "-c", "echo $TMPDIR $OMP_NUM_THREADS"], None, output, tmp_path).wait(10)

    assert (tmp_path / "log").read_text() == f"{tmp_path} 1\n"


def test_an_empty_launcher_is_a_mistake():
    """Such as a variable that is not set in a script: it must not mean this machine."""
    with pytest.raises(SpecError, match="launcher = ''"):
        make_settings("smoke", {"launcher": ""})
