"""Converts the events of a generation pass into times; the device is synchronised only at both ends."""

import time
from collections.abc import Iterable

import torch

from gpt_parallel.engine.generation.loop import BatchEvent
from gpt_parallel.schema.result import BatchTimeline

Mark = float | torch.cuda.Event


class Stopwatch:
    """Marks moments on the device's own clock and reads them back as host monotonic seconds."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._origin_s = 0.0
        self._origin: torch.cuda.Event | None = None

    def start(self) -> float:
        self.synchronize()
        if self._cuda:
            self._origin = self._record()
        self._origin_s = time.monotonic()
        return self._origin_s

    def synchronize(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()

    def mark(self) -> Mark:
        return self._record() if self._cuda else time.monotonic()

    def seconds(self, mark: Mark) -> float:
        if isinstance(mark, float):
            return mark
        assert self._origin is not None
        elapsed_ms: float = self._origin.elapsed_time(mark)
        return self._origin_s + elapsed_ms / 1000

    @staticmethod
    def _record() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


def consume(events: Iterable[BatchEvent], stopwatch: Stopwatch) -> tuple[float, list[BatchTimeline], list[BatchEvent]]:
    """Run a pass to its end. Returns its seconds, the batches' timelines and the token events."""
    begin = stopwatch.start()
    marked = [(event, stopwatch.mark()) for event in events]
    stopwatch.synchronize()
    seconds = time.monotonic() - begin
    starts: dict[str, float] = {}
    tokens: dict[str, list[float]] = {}
    for event, mark in marked:
        if event.choice is None:
            starts[event.batch.batch_id] = stopwatch.seconds(mark)
        else:
            tokens.setdefault(event.batch.batch_id, []).append(stopwatch.seconds(mark))
    timelines = [
        BatchTimeline(batch_id=name, start_s=starts.get(name), token_times_s=tuple(tokens.get(name, ())))
        for name in sorted({*starts, *tokens})
    ]
    return seconds, timelines, [event for event, _ in marked if event.choice is not None]
