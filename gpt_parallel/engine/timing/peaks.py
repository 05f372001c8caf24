"""Measures a rank's peak bytes and operations per second, the reference for MBU and MFU.

All ranks measure at the same time, as they generate, so ranks that share a memory bus or a GPU measure their shares.
The peak is the fastest call, or the mean where ranks share cores and take turns.
On CPU the peak is reading: a matrix is read once for a product with a vector. On CUDA it is copying, which moves every
byte twice. The other peak is a product of two square matrices in the run's number type.
"""

import time
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch

from gpt_parallel.schema.telemetry import PeakRates

_CPU_S = 0.03  # how long each peak is measured on CPU
_CPU_BYTES = (32 << 20, 256 << 20)  # limits of a buffer as large as the rank's weights
_FEWEST = 3
_CPU_COLUMNS, _CPU_WIDTH = 8192, 512
_CUDA_CALLS = 10
_CUDA_BYTES, _CUDA_WIDTH = 512 << 20, 4096


class _Work(NamedTuple):
    """A call to repeat, and the bytes or operations of one repetition."""

    amount: float
    call: Callable[[], object]


def measure_peaks(
    weight_bytes: int,
    dtype: torch.dtype,
    device: torch.device,
    barrier: Callable[[], None],
    *,
    oversubscribed: bool = False,
) -> PeakRates:
    """Bytes and operations per second of this rank; null with a reason where memory is too full to measure.

    `oversubscribed`: there are more ranks than devices. Call it after the model is freed, because it needs memory.
    """
    on_cuda = device.type == "cuda"
    smallest, largest = (_CUDA_BYTES, _CUDA_BYTES) if on_cuda else _CPU_BYTES
    num_bytes = min(max(weight_bytes, smallest), largest)
    width = _CUDA_WIDTH if on_cuda else _CPU_WIDTH
    found: dict[str, float] = {}
    unavailable = {}
    prepares: dict[str, Callable[[], _Work]] = {
        "bytes_per_s": lambda: _copying(num_bytes, device) if on_cuda else _reading(num_bytes),
        "flop_per_s": lambda: _multiplying(width, dtype, device),
    }
    for name, prepare in prepares.items():
        work = None
        try:
            work = prepare()
            work.call()
        except RuntimeError as error:
            unavailable[name] = f"could not be measured: {str(error).splitlines()[0]}"
        barrier()  # even after an error, because the other ranks wait here
        if name not in unavailable and work is not None:
            found[name] = work.amount / _seconds(work.call, device, oversubscribed)
        barrier()  # no rank starts the next while others still measure this
    what = "copying" if on_cuda else "reading"
    method = f"{what} {num_bytes >> 20} MiB; product of {width}×{width} matrices; all ranks at once"
    return PeakRates(method=method, unavailable=unavailable, **found)


def _reading(num_bytes: int) -> _Work:
    matrix, vector = torch.ones(num_bytes // (4 * _CPU_COLUMNS), _CPU_COLUMNS), torch.ones(_CPU_COLUMNS)
    return _Work(matrix.nbytes, lambda: torch.mv(matrix, vector))


def _copying(num_bytes: int, device: torch.device) -> _Work:
    torch.cuda.empty_cache()
    source = torch.ones(num_bytes // 4, device=device)
    target = torch.empty_like(source)
    return _Work(2 * source.nbytes, lambda: target.copy_(source))


def _multiplying(width: int, dtype: torch.dtype, device: torch.device) -> _Work:
    square = torch.randn(width, width, device=device).to(dtype)  # of noise: a GPU multiplies ones at a higher clock
    return _Work(2 * width**3, lambda: torch.mm(square, square))


def _seconds(call: Callable[[], object], device: torch.device, oversubscribed: bool) -> float:
    """The duration of a call."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        begin = time.monotonic()
        for _ in range(_CUDA_CALLS):
            call()
        torch.cuda.synchronize(device)
        return (time.monotonic() - begin) / _CUDA_CALLS
    times = [time.monotonic()]
    while times[-1] - times[0] < _CPU_S or len(times) <= _FEWEST:
        call()
        times.append(time.monotonic())
    if oversubscribed:
        return (times[-1] - times[0]) / (len(times) - 1)
    return min(later - earlier for earlier, later in pairwise(times))
