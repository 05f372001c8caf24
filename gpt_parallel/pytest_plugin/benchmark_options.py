"""Checks pytest-benchmark's options before the work; some of them it refuses only after all cases have run."""

import pytest

_FIRST_RUN = "a first run needs --benchmark-autosave too, which saves it for later ones"


def check_comparison(config: pytest.Config) -> list[str]:
    """Notes about --benchmark-compare-fail. Raises UsageError if it has nothing to compare with.

    Nothing saved yet is no error in a run that compares with the last one saved and is saved itself.
    """
    session = config._benchmarksession  # type: ignore[attr-defined]  # pytest-benchmark's
    if not session.compare_fail or session.compared_mapping or session.disabled or session.skip:
        return []
    if not session.compare:
        raise pytest.UsageError(
            "gpt_parallel: --benchmark-compare-fail needs --benchmark-compare, which names the saved run to compare "
            f"with (without a name: the last one); {_FIRST_RUN}"
        )
    if session.compare is not True:
        raise pytest.UsageError(
            f"gpt_parallel: --benchmark-compare={session.compare}: no such saved run in {session.storage}; without "
            f"a name it is the last one; {_FIRST_RUN}"
        )
    if not (session.autosave or session.save):
        raise pytest.UsageError(
            f"gpt_parallel: --benchmark-compare-fail: no saved run in {session.storage} to compare with; {_FIRST_RUN}"
        )
    session.compare_fail = None
    return [f"no saved run in {session.storage} yet, so --benchmark-compare-fail has no effect; this run is saved"]
