"""Decoding as CUDA graphs: a step's hundreds of kernels are launched at once, and the host is out of the way.

A graph repeats the same kernels on the same memory. So a lane's decode step is written over tensors that stay where
they are (tokens or activations, positions, the sampler's state), every row at its own position under a mask, and the
attention window is rounded up to a bucket. One graph is captured per number of rows and bucket, at its first use: in
the recorded pass, which is thereby the same computation as the timed rounds.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gpt_parallel.engine.kv_cache import Step
from gpt_parallel.engine.sampling import Choice, RowState

Result = Tensor | Choice  # activations [B, D] for the next stage, or the last stage's choice
Compute = Callable[[Tensor, Step, RowState | None, int | Tensor], Result]
Capture = Callable[[Callable[[], Result]], Callable[[], Result]]

BUCKET = 128


class DecodeGraphs:
    """One lane's captured steps. `compute(inputs, step, state, number)` is this stage's side of decoding a token."""

    def __init__(self, compute: Compute, capture: Capture, num_positions: int, device: torch.device) -> None:
        self._compute, self._capture = compute, capture
        self._limit = num_positions
        self._all_positions = torch.arange(num_positions, device=device)
        self._number = torch.zeros((), dtype=torch.long, device=device)
        self._lengths = self._positions = self._all_positions[:0]
        self._inputs: dict[int, Tensor] = {}
        self._state: dict[int, RowState] = {}
        self._places: dict[int, Tensor] = {}
        self._captured: dict[tuple[int, int], Callable[[], Result]] = {}

    def start(self, lengths: Tensor, state: RowState | None) -> None:
        """A batch's prompts [B] have been read; its state moves to where the graphs look for it."""
        rows = len(lengths)
        self._lengths = lengths
        self._positions = self._places.setdefault(rows, torch.zeros_like(lengths))
        if state is not None:
            self._state.setdefault(rows, state.clone()).copy_(state)

    def run(self, inputs: Tensor, step: int, longest: int) -> Result:
        """Decode token number `step` of the batch; `longest` is its longest prompt. The result is overwritten by the
        next step.
        """
        rows = len(self._lengths)
        held = self._inputs.setdefault(rows, torch.zeros_like(inputs))
        held.copy_(inputs)
        self._number.fill_(step)
        torch.clamp(self._lengths + (step - 1), max=self._limit - 1, out=self._positions)
        window = min(-(-(longest + step) // BUCKET) * BUCKET, self._limit)
        if (rows, window) not in self._captured:
            self._captured[rows, window] = self._capture(self._call(rows, window))
        return self._captured[rows, window]()

    def _call(self, rows: int, window: int) -> Callable[[], Result]:
        positions, inputs = self._places[rows], self._inputs[rows]
        state, all_rows = self._state.get(rows), torch.arange(rows, device=positions.device)

        def call() -> Result:
            mask = self._all_positions[:window] <= positions[:, None]
            step = Step(True, rows, window, None, positions, mask[:, None, None], all_rows)
            return self._compute(inputs, step, state, self._number)

        return call


def cuda_graph(pool: object) -> Capture:
    """Captures on the current device; all graphs of a rank share a memory pool, as only one runs at a time."""

    def capture(call: Callable[[], Result]) -> Callable[[], Result]:
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            call()  # libraries make their workspaces outside the graph
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
