"""The machine and the code a result came from."""

import platform
import subprocess
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

from gpt_parallel import __version__
from gpt_parallel.launch.devices import available_cores, cpu_name, cuda_devices
from gpt_parallel.result import Environment, RankReport


def describe_environment(ranks: Sequence[RankReport]) -> Environment:
    commit, dirty = _git_state()
    return Environment(
        gpt_parallel=__version__,
        torch=ranks[0].torch_version,
        python=platform.python_version(),
        platform=platform.platform(),
        cpu=cpu_name(),
        num_cores=len(available_cores()),
        device_names=tuple(rank.device_name for rank in ranks),
        hostname=platform.node(),
        git_commit=commit,
        git_dirty=dirty,
    )


def describe_machine() -> dict[str, str]:
    """What must not change while figures for one table are measured: machine, torch and code."""
    commit, dirty = _git_state()
    return {
        "hostname": platform.node(),
        "processor": cpu_name(),
        "cores": str(len(available_cores())),
        "gpus": ", ".join(gpu.name for gpu in cuda_devices()),
        "torch": version("torch"),
        "gpt_parallel": __version__,
        "commit": f"{commit or ''}{' with changes' if dirty else ''}",
    }


@lru_cache(maxsize=1)
def _git_state() -> tuple[str | None, bool | None]:
    """Commit and dirty flag of the checkout this package runs from; None for an installed copy."""
    here = Path(__file__).parent
    if _git(here, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None, None
    status = _git(here, "status", "--porcelain", "--untracked-files=no")
    return _git(here, "rev-parse", "HEAD"), None if status is None else bool(status)


def git_branch() -> str | None:
    """The branch of that checkout; None if there is none, or no branch."""
    return _git(Path(__file__).parent, "symbolic-ref", "--short", "--quiet", "HEAD")


def _git(directory: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
