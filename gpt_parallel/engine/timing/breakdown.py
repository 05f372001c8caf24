"""The breakdown of a rank's time: one extra pass in which every section is timed.

The generation loop has no code for this. For the one pass, methods of model, sampler and transport are replaced, on
these objects only, by methods that mark when a section begins and ends. At any time a rank is in one section, that of
the innermost call, so the sections' times add up to the whole.

Waiting is the time until a peer arrives. The shared-memory transport waits in a method of its own. For torch's process
groups waiting is estimated: among calls that move the same amount, the fastest is assumed not to wait, and the extra
time of the others is waiting. This is a lower bound, and needs no barriers that would change the measurement.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

from torch import Tensor

from gpt_parallel.engine.comm.transport import Transport
from gpt_parallel.engine.generation.sampling import Sampler
from gpt_parallel.engine.model.interface import DecoderPart
from gpt_parallel.engine.timing.stopwatch import Mark, Stopwatch
from gpt_parallel.schema.telemetry import BREAKDOWN_PARTS, Breakdown

_COMPUTE, _COMMUNICATION, _WAITING, _SAMPLING, _HOST = BREAKDOWN_PARTS
_OPERATIONS = ("all_reduce", "gather", "send", "receive")


class _Call(NamedTuple):
    """A transport call whose waiting is estimated; `likeness` is equal for calls that move the same amount."""

    operation: str
    likeness: Hashable


Section = str | _Call


class Sections:
    """The marks of a pass: the section a rank is in from each moment on."""

    def __init__(self, mark: Callable[[], Mark]) -> None:
        self._mark = mark
        self._open: list[Section] = [_HOST]
        self.marks: list[tuple[Mark, Section]] = []

    def timed(self, section: Callable[..., Section], call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, marked as the section that `section` returns for its arguments."""

        def marked(*arguments: Any, **named: Any) -> Any:
            self._open.append(section(*arguments))
            self.marks.append((self._mark(), self._open[-1]))
            try:
                return call(*arguments, **named)
            finally:
                self._open.pop()
                self.marks.append((self._mark(), self._open[-1]))

        return marked


def add_up(marks: Sequence[tuple[float, Section]]) -> dict[str, float]:
    """Seconds of each section, from the marks at which sections begin; the last mark ends the last section."""
    totals: dict[str, float] = defaultdict(float)
    calls: dict[_Call, list[float]] = defaultdict(list)
    for (begin, section), (end, _) in pairwise(marks):
        if isinstance(section, _Call):
            calls[section].append(end - begin)
        else:
            totals[section] += end - begin
    for durations in calls.values():
        moving = min(durations) * len(durations)
        totals[_COMMUNICATION] += moving
        totals[_WAITING] += sum(durations) - moving
    return totals


def break_down(
    run: Callable[[], object], stopwatch: Stopwatch, model: DecoderPart, sampler: Sampler, transport: Transport | None
) -> Breakdown:
    """Time `run`, a pass whose end all ranks wait for, section by section."""
    sections = Sections(stopwatch.mark)
    with ExitStack() as stack:

        def watch(owner: object, name: str, section: Callable[..., Section]) -> None:
            stack.enter_context(_replaced(owner, name, sections.timed(section, getattr(owner, name))))

        for name in ("embed", "blocks", "head"):
            watch(model, name, lambda *_: _COMPUTE)
        for name in ("start", "choose"):
            watch(sampler, name, lambda *_: _SAMPLING)
        if transport is not None:
            _watch_transport(transport, watch)
        begin = stopwatch.start()
        run()
        if transport is not None:
            transport.barrier()
        stopwatch.synchronize()
        wall_s = time.monotonic() - begin
    parts = add_up([(stopwatch.seconds(mark), section) for mark, section in sections.marks])
    known = {f"{name}_s": parts.get(name, 0.0) for name in (_COMPUTE, _COMMUNICATION, _WAITING, _SAMPLING)}
    return Breakdown(wall_s=wall_s, host_s=wall_s - sum(known.values()), method=_method(transport), **known)


def _watch_transport(transport: Transport, watch: Callable[[object, str, Callable[..., Section]], None]) -> None:
    if transport.waits_in is not None:
        for name in (*_OPERATIONS, "barrier"):
            watch(transport, name, lambda *_: _COMMUNICATION)
        watch(transport, transport.waits_in, lambda *_: _WAITING)
        return
    for name in _OPERATIONS:
        watch(transport, name, lambda *arguments, name=name: _Call(name, tuple(map(_likeness, arguments))))
    watch(transport, "barrier", lambda *_: _WAITING)


def _likeness(argument: Any) -> Hashable:
    return argument.shape if isinstance(argument, Tensor) else str(argument)


def _method(transport: Transport | None) -> str:
    if transport is None:
        return "one rank: nothing to wait for"
    if transport.waits_in is not None:
        return "waiting is timed where the transport waits"
    return "waiting is estimated: what a call took longer than the fastest one that moved as much"


@contextmanager
def _replaced(owner: object, name: str, value: object) -> Iterator[None]:
    """Replace a method on one object within the block."""
    own = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)
