"""Decoding with CUDA graphs: one launch replays the hundreds of kernels of a step, without the host's overhead.

A graph repeats the same kernels on the same memory. So a lane's decode step uses tensors at fixed addresses (tokens or
activations, positions, the sampler's state), every row has its own position and a mask, and the attention window is
rounded up to a bucket. One graph is captured per number of rows and bucket, at its first use: in
the recorded pass, which is thereby the same computation as the timed rounds.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gpt_parallel.engine.comm.collectives import Collectives
from gpt_parallel.engine.generation.sampling import RowState, SampledTokens
from gpt_parallel.engine.model.kv_cache import Step

Result = Tensor | SampledTokens  # activations [B, D] for the next stage, or the last stage's choice
Compute = Callable[[Tensor, Step, RowState | None, int | Tensor], Result]
Capture = Callable[[Callable[[], Result]], Callable[[], Result]]

BUCKET = 128


class DecodeGraphs:
    """One lane's captured steps. `compute(inputs, step, state, number)` is this stage's side of decoding a token."""

    def __init__(
        self, compute: Compute, capture: Capture, collectives: Collectives, num_positions: int, device: torch.device
    ) -> None:
        self._compute, self._capture, self._collectives = compute, capture, collectives
        self._limit = num_positions
        self._all_positions = torch.arange(num_positions, device=device)
        self._number = torch.zeros((), dtype=torch.long, device=device)
        self._lengths = self._all_positions[:0]
        self._batches: dict[int, _Static] = {}
        self._captured: dict[tuple[int, int], _Captured] = {}

    def start(self, lengths: Tensor, state: RowState | None) -> None:
        """Copy a batch's state to the graphs' fixed tensors after its prefill. `lengths` [B] are the prompts'."""
        self._lengths = lengths
        rows = len(lengths)
        if rows not in self._batches:
            places = torch.zeros_like(lengths), torch.arange(rows, device=lengths.device)
            self._batches[rows] = _Static(*places, None if state is None else state.clone())
        held = self._batches[rows]
        if held.state is not None and state is not None:
            held.state.copy_(state)

    def run(self, inputs: Tensor, step: int, longest: int) -> Result:
        """Decode token number `step` of the batch; `longest` is its longest prompt.

        The result is overwritten by the next step.
        """
        rows = len(self._lengths)
        held = self._batches[rows]
        if held.inputs is None:
            held.inputs = torch.zeros_like(inputs)
        held.inputs.copy_(inputs)
        self._number.fill_(step)
        torch.clamp(self._lengths + (step - 1), max=self._limit - 1, out=held.positions)
        window = min(-(-(longest + step) // BUCKET) * BUCKET, self._limit)
        if (rows, window) not in self._captured:
            self._captured[rows, window] = self._make(held, rows, window)
        captured = self._captured[rows, window]
        result, _ = self._collectives.without_counting(captured.replay)
        self._collectives.add_counts(captured.counts)
        return result

    def _make(self, held: "_Static", rows: int, window: int) -> "_Captured":
        """Capture a step. Capturing runs it once or twice, so state and counts are restored afterwards."""
        before = None if held.state is None else held.state.clone()
        counts: Counter[tuple[str, int]] = Counter()

        def call() -> Result:
            assert held.inputs is not None
            mask = self._all_positions[:window] <= held.positions[:, None]
            step = Step(True, rows, window, None, held.positions, mask[:, None, None], held.rows)
            inputs, state = held.inputs, held.state
            result, counted = self._collectives.without_counting(
                lambda: self._compute(inputs, step, state, self._number)
            )
            counts.clear()
            counts.update(counted)
            return result

        replay = self._capture(call)
        if before is not None and held.state is not None:
            held.state.copy_(before)
        return _Captured(replay, call, counts)


@dataclass
class _Static:
    """The input tensors of all graphs for one number of rows, at fixed addresses for as long as the graphs exist."""

    positions: Tensor
    rows: Tensor
    state: RowState | None
    inputs: Tensor | None = None


class _Captured(NamedTuple):
    """A captured step. `call` keeps the memory it reads alive; `counts` are the collectives of one step."""

    replay: Callable[[], Result]
    call: Callable[[], Result]
    counts: "Counter[tuple[str, int]]"


def cuda_graph(pool: object) -> Capture:
    """Captures on the current device; all graphs of a rank share a memory pool, as only one runs at a time."""

    def capture(call: Callable[[], Result]) -> Callable[[], Result]:
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            call()  # libraries allocate their workspaces outside the graph
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=pool):  # type: ignore[arg-type]
                result = call()
        except RuntimeError as error:
            raise RuntimeError(f"a decode step could not be captured ({error}); use decode 'eager'") from error

        def replay() -> Result:
            graph.replay()
            return result

        return replay

    return capture
