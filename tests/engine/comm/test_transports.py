"""What moves tensors between ranks, as real processes: sums are right and equal to the bit, lost peers are noticed."""

import signal
from pathlib import Path

import pytest

from tests.support.transports import run_ranks, start_ranks, stop_ranks


@pytest.mark.parametrize("backend", ["shm", "gloo"])
@pytest.mark.parametrize(("pp", "tp"), [(1, 2), (2, 1), (2, 2)])
def test_mixed_operations_of_random_sizes_are_right(tmp_path, backend, pp, tp):
    count = 3000 if backend == "shm" else 200

    found = run_ranks("mixed", backend, pp, tp, tmp_path, count, seed=pp + 10 * tp)

    for stage in range(pp):
        digests = {rank["digest"] for rank in found[stage * tp : (stage + 1) * tp]}
        assert len(digests) == 1, "sums differ between ranks"


def test_tensors_of_many_slots_and_messages_longer_than_the_ring_are_right(tmp_path):
    assert len(run_ranks("large", "shm", 3, 2, tmp_path, 3)) == 6


def test_three_stages_and_three_shards_are_right(tmp_path):
    assert len(run_ranks("mixed", "shm", 3, 3, tmp_path, 300)) == 9


def test_a_killed_peer_is_noticed_soon(tmp_path):
    waiting, killed = ranks = start_ranks("leave", "shm", 1, 2, tmp_path, 10, with_pipes=True)
    try:
        assert [rank.stdout.readline() for rank in ranks] == ["ready\n"] * 2
        killed.send_signal(signal.SIGKILL)
        _, error = waiting.communicate(timeout=30)
    finally:
        stop_ranks(ranks)

    assert waiting.returncode == 1
    assert "LostPeerError: rank 1 has ended" in error


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 20))])
def test_whichever_rank_is_killed_whenever_the_others_end(tmp_path, seed):
    ranks = start_ranks("die", "shm", 2, 2, tmp_path, 400, seed)
    try:
        errors = [rank.communicate(timeout=60)[1] for rank in ranks]
    finally:
        stop_ranks(ranks)

    assert sorted(rank.returncode for rank in ranks) == [-signal.SIGKILL, 1, 1, 1]
    assert [error.strip().splitlines()[-1].split(":")[0] for error in errors if error] == [
        "gpt_parallel.engine.pipe.LostPeerError"
    ] * 3


def test_the_segment_has_no_name_that_could_be_left_behind(tmp_path):
    run_ranks("mixed", "shm", 1, 2, tmp_path, 10)

    (word,) = tmp_path.iterdir()
    assert not list(Path("/dev/shm").glob("*gpt_parallel*"))
    assert word.read_text().startswith("/proc/"), "an open file of a rank, gone with it"
