"""Engines that stay loaded, each in a process of its own, and take turns; one that is late or fails is left out.

Apart from the benchmark for its tests, which give it programs that are no engines.
"""

import json
import os
import select
import subprocess
import time
from contextlib import suppress

from gpt_parallel.launch.local import kill_group
from gpt_parallel.schema.result import RoundReport


class EngineError(RuntimeError):
    """An engine that ended without an answer; with what it printed."""


class TooSlowError(EngineError):
    """An engine that had no answer when its time was up."""


class Engine:
    """A program that answers a line with a line of JSON, within `deadline_s` or not at all."""

    def __init__(self, name, command, log, deadline_s, environment=None):
        self.name, self.rounds, self.peak = name, [], 0
        self._log, self._deadline_s, self._unread = log, deadline_s, b""
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,  # compilers that it starts end with it
            )

    def generate(self):
        """The first answer, for which an engine may load and compile: tokens by request id."""
        answer = self._ask("tokens", "load, compile and generate once")
        self.torch, self.device_name = answer["torch"], answer["device_name"]
        return {int(key): tuple(tokens) for key, tokens in answer["tokens"].items()}

    def run_round(self):
        answer = self._ask("round", "generate once more")
        self.rounds.append(RoundReport.model_validate(answer["round"]))
        self.peak = answer["peak"]

    def _ask(self, command, what):
        begin = time.monotonic()
        with suppress(BrokenPipeError):  # it has ended, which its silence tells
            os.write(self._process.stdin.fileno(), f"{command}\n".encode())
        answers = self._process.stdout.fileno()
        while b"\n" not in self._unread:
            left = begin + self._deadline_s - time.monotonic()
            if left <= 0 or not select.select([answers], [], [], left)[0]:
                raise TooSlowError(f"{self.name} did not {what} within {self._deadline_s:g} s (--engine-deadline)")
            if not (read := os.read(answers, 1 << 16)):
                raise EngineError(f"{self.name} ended without an answer:\n{self._log.read_text(errors='replace')}")
            self._unread += read
        line, self._unread = self._unread.split(b"\n", 1)
        return json.loads(line)

    def stop(self):
        kill_group(self._process.pid)
        with self._process:
            pass


def take_turns(engines, num_rounds):
    """Have each engine generate, then all run `num_rounds` rounds in turn, after a warm one.

    Returns for each name its tokens and its engine, or the EngineError for which it was left out. All are stopped.
    """
    found = {}

    def attempt(engine, act):
        try:
            return act()
        except EngineError as error:
            engine.stop()
            found[engine.name] = error
            return None

    try:
        for engine in engines:
            if (tokens := attempt(engine, engine.generate)) is not None:
                found[engine.name] = tokens, engine
        for number in range(num_rounds + 1):
            for engine in engines:
                if not isinstance(found[engine.name], EngineError):
                    attempt(engine, engine.run_round)
                    if number == 0:
                        engine.rounds.clear()  # warm
    finally:
        for engine in engines:
            engine.stop()
    return found
