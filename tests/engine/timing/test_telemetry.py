"""What a rank reads about itself. No GPU is here; what is read of one is torch.cuda's to answer."""

import mmap
from itertools import count

import pytest
import torch

from gpt_parallel.engine.timing import peaks, telemetry
from gpt_parallel.engine.timing.peaks import measure_peaks
from gpt_parallel.engine.timing.telemetry import CpuMeter, read_telemetry

CPU = torch.device("cpu")


@pytest.fixture
def clocks(monkeypatch):
    """Wall and CPU seconds that the test sets."""
    now = {"monotonic": 10.0, "process_time": 2.0}
    for name in now:
        monkeypatch.setattr(telemetry.time, name, lambda name=name: now[name])
    return now


def test_only_the_rounds_count_and_the_share_is_of_all_cores(clocks):
    meter = CpuMeter()
    for _ in range(2):
        with meter:
            clocks["monotonic"] += 4.0
            clocks["process_time"] += 6.0
        clocks["monotonic"] += 100.0
        clocks["process_time"] += 50.0

    found = read_telemetry(meter, 2, CPU)

    assert (found.seconds, found.cpu_seconds) == (8.0, 12.0)
    assert found.cpu_share == 0.75


def test_what_a_cpu_rank_cannot_tell_is_null_with_a_reason(clocks):
    found = read_telemetry(CpuMeter(), 1, CPU)

    assert found.peak_allocated_bytes is found.peak_reserved_bytes is found.device_uuid is found.cpu_share is None
    assert "CPU cores" in found.unavailable["peak_reserved_bytes"]
    assert found.unavailable["cpu_share"] == "no round was timed"


def test_memory_is_this_process_own():
    before = read_telemetry(CpuMeter(), 1, CPU)
    with mmap.mmap(-1, 64 << 20) as held:  # memory that no allocator had before
        held.write(b"1" * (64 << 20))
        after = read_telemetry(CpuMeter(), 1, CPU)

    assert 60 << 20 < after.resident_bytes - before.resident_bytes < 70 << 20
    assert 60 << 20 < after.proportional_bytes - before.proportional_bytes < 70 << 20
    assert after.proportional_bytes <= after.resident_bytes


def test_where_the_system_does_not_tell_memory_is_null(monkeypatch):
    monkeypatch.setattr(telemetry.Path, "read_text", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError()))

    found = read_telemetry(CpuMeter(), 1, CPU)

    assert found.resident_bytes is found.proportional_bytes is None
    assert "Linux does" in found.unavailable["proportional_bytes"]


def test_peaks_are_rates_of_this_machine():
    found = measure_peaks(1, torch.float32, CPU, lambda: None)

    assert 1e8 < found.bytes_per_s < 1e12
    assert 1e8 < found.flop_per_s < 1e13
    assert "reading 32 MiB" in found.method


def test_measuring_a_peak_ends_when_its_time_is_over(monkeypatch):
    """By a clock that moves on by 4 ms each time it is read."""
    ticks = count()
    calls = []
    multiply = torch.mm
    monkeypatch.setattr(peaks.time, "monotonic", lambda: 0.004 * next(ticks))
    monkeypatch.setattr(torch, "mm", lambda *squares: calls.append(1) or multiply(*squares))

    found = measure_peaks(1, torch.float32, CPU, lambda: None)

    assert len(calls) == 1 + 8, "one to warm up, then for 0.03 s"
    assert found.flop_per_s == pytest.approx(2 * 512**3 / 0.004)


def test_the_buffer_is_as_large_as_the_weights_within_limits(monkeypatch):
    monkeypatch.setattr(peaks, "_CPU_S", 1e-9)
    monkeypatch.setattr(peaks, "_CPU_BYTES", (1 << 20, 3 << 20))

    methods = [measure_peaks(size << 20, torch.float32, CPU, lambda: None).method for size in (0, 2, 9)]

    assert [method.split(";")[0] for method in methods] == ["reading 1 MiB", "reading 2 MiB", "reading 3 MiB"]


@pytest.mark.parametrize(("oversubscribed", "expected"), [(False, 2e6), (True, 1e6)])
def test_the_fastest_call_is_the_peak_unless_ranks_take_turns(monkeypatch, oversubscribed, expected):
    """Calls that take 1, 0.5 and 1.5 s, of 1 MB each."""
    now = iter([0.0, 1.0, 1.5, 3.0, 3.0, 4.0, 5.0, 6.0])
    monkeypatch.setattr(peaks.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(peaks, "_reading", lambda _: peaks._Work(1e6, lambda: None))
    monkeypatch.setattr(peaks, "_multiplying", lambda *_: peaks._Work(1.0, lambda: None))

    found = measure_peaks(1, torch.float32, CPU, lambda: None, oversubscribed=oversubscribed)

    assert found.bytes_per_s == expected


def test_a_rank_without_memory_to_measure_says_so_and_holds_nobody_up(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("tried to allocate 1.00 GiB\nand more")

    barriers = []
    monkeypatch.setattr(peaks, "_reading", full)

    found = measure_peaks(1, torch.float32, CPU, lambda: barriers.append(1))

    assert found.bytes_per_s is None
    assert found.unavailable == {"bytes_per_s": "could not be measured: tried to allocate 1.00 GiB"}
    assert found.flop_per_s > 0
    assert len(barriers) == 4, "as many as on ranks that have the memory"
