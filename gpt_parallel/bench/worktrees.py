"""Checks out commits beside the working tree, and removes them whatever happens."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gpt_parallel.base.errors import SpecError
from gpt_parallel.base.signals import uninterrupted

WORKTREE_PREFIX = "gpt_parallel-ab-"  # of the directories that contain our worktrees, which marks them as ours


@contextmanager
def worktree(repository: Path, commit: str, path: Path) -> Iterator[Path]:
    """Check out a commit beside the working tree, which is not touched."""
    try:
        with uninterrupted():
            _git(repository, "worktree", "add", "--detach", "--quiet", str(path), commit)
        yield path
    finally:
        with uninterrupted():
            _remove_worktree(repository, path)


def _remove_worktree(repository: Path, path: Path) -> None:
    """Remove the directory and its registration, in whatever state an interrupted `git worktree add` left them."""
    shutil.rmtree(path, ignore_errors=True)
    with suppress(SpecError):
        _git(repository, "worktree", "remove", "--force", "--force", str(path))  # twice: it is locked while added


def remove_leftovers(repository: Path) -> None:
    """Remove the registrations of our worktrees that a killed run left. Others may be on a disk that is not mounted."""
    for line in _git(repository, "worktree", "list", "--porcelain").splitlines():
        path = Path(line.removeprefix("worktree "))
        is_ours = line.startswith("worktree ") and path.parent.name.startswith(WORKTREE_PREFIX)
        if is_ours and not path.exists():
            _remove_worktree(repository, path)


def find_repository() -> Path:
    """The repository around the working directory. Raises SpecError if there is none."""
    return Path(_git(Path.cwd(), "rev-parse", "--show-toplevel"))


def find_commit(repository: Path, ref: str) -> str:
    """The commit that a name refers to. Raises SpecError if there is none."""
    try:
        return _git(repository, "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}")
    except SpecError as error:
        raise SpecError(f"no such commit {ref!r}") from error


def _git(directory: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
            start_new_session=True,  # a terminal's Ctrl-C must not interrupt it
        )
    except FileNotFoundError as error:
        raise SpecError("git is not installed") from error
    except subprocess.SubprocessError as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip()
        raise SpecError(f"git {arguments[0]}: {reason}") from error
    return done.stdout.strip()
