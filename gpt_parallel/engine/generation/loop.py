"""One generation loop for every layout. It yields events; `engine/timing` measures them.

A replica deals its batches to `pp` lanes. Each turn of the loop advances every lane by one step: the first stage
embeds the prompt or the returned token, every stage runs its layers on the lane's cache and sends the result on, the
last stage samples and returns the token. With pp = 1 this is plain batched generation.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from gpt_parallel.engine.comm.collectives import Collectives
from gpt_parallel.engine.generation.cuda_graphs import Capture, DecodeGraphs, Result
from gpt_parallel.engine.generation.sampling import RowState, SampledTokens, Sampler
from gpt_parallel.engine.model.interface import DecoderPart, allocate_cache
from gpt_parallel.engine.model.kv_cache import KVCache, Step
from gpt_parallel.layout.batches import Batch
from gpt_parallel.layout.mesh import Mesh


class BatchEvent(NamedTuple):
    """A batch's start (first stage; `choice` None) or one sampled token per row (last stage)."""

    batch: Batch
    step: int
    choice: SampledTokens | None


class _Rows:
    """A batch's tensors on the device, created before timing starts."""

    def __init__(self, batch: Batch, num_positions: int, device: torch.device) -> None:
        self.batch = batch
        lengths = [len(request.prompt_ids) for request in batch.requests]
        padded = [list(r.prompt_ids) + [0] * (batch.prompt_length - len(r.prompt_ids)) for r in batch.requests]
        self.size = len(batch.requests)
        self.prompt = torch.tensor(padded, device=device)
        self.lengths = torch.tensor(lengths, device=device)
        self.all_rows = torch.arange(self.size, device=device)
        self._all_positions = torch.arange(num_positions, device=device)
        self._same_length = min(lengths) == max(lengths)
        self._last_position = num_positions - 1

    def step(self, index: int) -> Step:
        """The step as blocks need it: index 0 is prefill, later ones decode a token."""
        length = self.batch.prompt_length
        if index == 0:
            return Step(decode=False, num_rows=self.size, window=length)
        position = length + index - 1
        if self._same_length:
            return Step(True, self.size, position + 1, position)
        # A row that has all its tokens idles at the last position until its batch is done.
        positions = (self.lengths + (index - 1)).clamp_max(self._last_position)
        window = min(position, self._last_position) + 1
        mask = self._all_positions[:window] <= positions[:, None]
        return Step(True, self.size, window, None, positions, mask[:, None, None], self.all_rows)


@dataclass
class _Lane:
    """A lane's queue of batches and its progress in this pass."""

    rows: list[_Rows]
    cache: KVCache
    graphs: DecodeGraphs | None = None
    current: int = 0
    step: int = 0
    tokens: Tensor | None = None
    state: RowState | None = None

    @property
    def done(self) -> bool:
        return self.current == len(self.rows)

    def rewind(self) -> None:
        self.current = self.step = 0
        self.tokens = self.state = None

    def advance(self) -> None:
        self.step += 1
        if self.step == self.rows[self.current].batch.num_steps:
            self.current, self.step = self.current + 1, 0


class Generator:
    """One stage's part in generating all batches of a replica, with decode steps captured and replayed by `capture`."""

    def __init__(
        self,
        model: DecoderPart,
        mesh: Mesh,
        collectives: Collectives,
        sampler: Sampler,
        lanes: Sequence[Sequence[Batch]],
        capture: Capture | None = None,
    ) -> None:
        self._model, self._mesh, self._collectives, self._sampler = model, mesh, collectives, sampler
        limit = model.architecture.max_positions
        self._lanes = [
            _Lane([_Rows(batch, limit, model.device) for batch in lane], self._allocate(lane)) for lane in lanes
        ]
        if capture is not None:
            for lane in self._lanes:
                compute = partial(self._decode, lane.cache, record=True)
                lane.graphs = DecodeGraphs(compute, capture, collectives, lane.cache.num_positions, model.device)

    def _allocate(self, lane: Sequence[Batch]) -> KVCache:
        positions = max(batch.prompt_length + batch.num_steps for batch in lane)
        return allocate_cache(self._model, max(len(batch.requests) for batch in lane), positions)

    @property
    def cache_bytes(self) -> int:
        return sum(lane.cache.num_bytes for lane in self._lanes)

    def run(self, *, record: bool = False) -> Iterator[BatchEvent]:
        """Generate everything once. Yields a batch's start on the first stage and each sampled token on the last."""
        for lane in self._lanes:
            lane.rewind()
        active = [lane for lane in self._lanes if not lane.done]
        while active:
            for lane in active:
                yield from self._step(lane, record)
                lane.advance()
            active = [lane for lane in active if not lane.done]

    def _step(self, lane: _Lane, record: bool) -> Iterator[BatchEvent]:
        rows = lane.rows[lane.current]
        if lane.step == 0 and self._mesh.is_first_stage:
            yield BatchEvent(rows.batch, 0, None)
        inputs = self._inputs(lane, rows)
        result = self._prefill(lane, rows, inputs, record) if lane.step == 0 else self._next(lane, rows, inputs, record)
        if isinstance(result, Tensor):
            self._collectives.send_forward(result)
            return
        lane.tokens = result.tokens
        if not self._mesh.is_first_stage and lane.step + 1 < rows.batch.num_steps:
            self._collectives.return_tokens(result.tokens)
        yield BatchEvent(rows.batch, lane.step, result)

    def _inputs(self, lane: _Lane, rows: _Rows) -> Tensor:
        """This stage's input: prompts [B, T] or tokens [B] on the first stage, activations [N, D] on later ones."""
        if not self._mesh.is_first_stage:
            num_tokens = rows.size if lane.step else rows.size * rows.batch.prompt_length
            return self._collectives.receive_forward(
                (num_tokens, self._model.architecture.hidden_size), self._model.dtype
            )
        if lane.step == 0:
            return rows.prompt
        if not self._mesh.is_last_stage:
            return self._collectives.receive_tokens((rows.size,))
        assert lane.tokens is not None
        return lane.tokens

    def _prefill(self, lane: _Lane, rows: _Rows, inputs: Tensor, record: bool) -> Result:
        step = rows.step(0)
        x = self._blocks(lane.cache, inputs, step)
        lane.state = self._sampler.start(rows.batch.requests) if self._mesh.is_last_stage else None
        result: Result = x
        if lane.state is not None:
            last = x.view(rows.size, step.window, -1)[rows.all_rows, rows.lengths - 1]
            result = self._sampler.choose(self._model.head(last), lane.state, 0, record=record)
        if lane.graphs is not None:
            lane.graphs.start(rows.lengths, lane.state)
        return result

    def _next(self, lane: _Lane, rows: _Rows, inputs: Tensor, record: bool) -> Result:
        if lane.graphs is not None:
            return lane.graphs.run(inputs, lane.step, rows.batch.prompt_length).clone()
        return self._decode(lane.cache, inputs, rows.step(lane.step), lane.state, lane.step, record=record)

    def _decode(
        self, cache: KVCache, inputs: Tensor, step: Step, state: RowState | None, number: int | Tensor, *, record: bool
    ) -> Result:
        x = self._blocks(cache, inputs, step)
        if state is None:
            return x
        return self._sampler.choose(self._model.head(x), state, number, record=record)

    def _blocks(self, cache: KVCache, inputs: Tensor, step: Step) -> Tensor:
        x = self._model.embed(inputs, step) if self._mesh.is_first_stage else inputs
        return self._model.blocks(x, cache, step)
