"""The command line of the user's launcher (torchrun, srun, mpirun …), and the number of ranks that it starts."""

import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gpt_parallel.base.errors import SpecError

_PLACE = "{num_gpus}"


class Launcher(NamedTuple):
    """A launcher's command line up to the program to start. `{num_gpus}` is replaced by a case's device count."""

    words: tuple[str, ...]

    @property
    def name(self) -> str:
        return Path(self.words[0]).name

    @property
    def is_torchrun(self) -> bool:
        return self.name == "torchrun" or "torch.distributed.run" in self.words

    @property
    def is_local(self) -> bool:
        """Whether all ranks are certain to be on this machine."""
        return self.is_torchrun and ("--standalone" in self.words or (self._option("--nnodes") or "1") == "1")

    @property
    def size(self) -> int | None:
        """The number of ranks it starts; None if the command does not give it or it depends on the case."""
        if any(_PLACE in word for word in self.words):
            return None
        if self.is_torchrun:
            return _product(self._option("--nnodes") or "1", self._option("--nproc-per-node") or "1")
        if self.name == "srun":
            total = self._option("--ntasks", "-n")
            return (
                _product(total) if total else _product(self._option("--nodes", "-N"), self._option("--ntasks-per-node"))
            )
        return _product(self._option("-np", "-n", "--np"))

    def reason_to_skip(self, num_gpus: int) -> str | None:
        """The reason why it cannot start a case on this many devices; None if it can."""
        if self.size is None or self.size == num_gpus:
            return None
        return (
            f"needs {num_gpus} ranks, the launcher starts {self.size} ({_PLACE} in its command adapts it to the case)"
        )

    def command(self, num_gpus: int, program: Sequence[str]) -> list[str]:
        """The whole command that starts `program`. Raises SpecError if this machine does not have the launcher."""
        words = [word.replace(_PLACE, str(num_gpus)) for word in self.words]
        beside = shutil.which(words[0], path=str(Path(sys.executable).parent))
        path = shutil.which(words[0]) or beside
        if path is None:
            raise SpecError(f"launcher {words[0]!r}: no such program on this machine; install it or give its path")
        if self.is_torchrun and "--no-python" not in words:
            words.append("--no-python")
        return [path, *words[1:], *program]

    def _option(self, *names: str) -> str | None:
        """The value of an option (`--name value`, `--name=value`, `-n4`), the last one if it is repeated.

        torchrun accepts `_` for `-`.
        """
        value: str | None = None
        for word, following in zip(self.words, (*self.words[1:], None), strict=True):
            name, has_value, given = word.partition("=")
            if name[:2] == "--":
                name = name.replace("_", "-")
            if name in names:
                value = given if has_value else following
            elif word[:2] in names and word[2:].isdecimal():
                value = word[2:]
        return value


def parse_launcher(text: str) -> Launcher:
    """Split a launcher's command line into words. Raises SpecError if it is not a valid one."""
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise SpecError(f"launcher {text!r}: not a command line ({error})") from error
    if not words:
        raise SpecError('the launcher is empty; give a command such as "torchrun --nnodes=2 --nproc-per-node=4"')
    unknown = [name for word in words for name in re.findall(r"\{\w+\}", word) if name != _PLACE]
    if unknown:
        raise SpecError(
            f"launcher {text!r}: unknown placeholder {unknown[0]}; only {_PLACE} (the case's device count) is replaced"
        )
    return Launcher(words)


def parse_address(text: str) -> tuple[str, int]:
    """Parse HOST:PORT, or [HOST]:PORT for IPv6. Raises SpecError."""
    host, _, port = text.rpartition(":")
    if not (host and port.isascii() and port.isdigit() and int(port) < 65536):
        raise SpecError(f"address {text!r}: must be HOST:PORT with a port from 0 to 65535 (0: any free port)")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _product(*counts: str | None) -> int | None:
    if not all(count is not None and count.isascii() and count.isdigit() for count in counts):
        return None
    total = 1
    for count in counts:
        total *= int(count or "")
    return total
