"""Checks pytest-benchmark's options before the work; by itself it refuses some only after all cases have run."""

import pytest


def check_comparison(config: pytest.Config) -> None:
    """Raise UsageError if --benchmark-compare-fail has nothing to compare with."""
    if not config.getoption("benchmark_compare_fail", None):
        return
    compare = config.getoption("benchmark_compare")
    if not compare:
        raise pytest.UsageError(
            "gpt_parallel: --benchmark-compare-fail needs --benchmark-compare, which names the saved run to compare "
            "with (without a name: the last one)"
        )
    storage = config._benchmarksession.storage  # type: ignore[attr-defined]  # pytest-benchmark's
    if next(iter(storage.load(*([] if compare is True else [compare]))), None) is None:
        missing = "no saved run" if compare is True else f"no saved run {compare!r}"
        raise pytest.UsageError(
            f"gpt_parallel: --benchmark-compare-fail has nothing to compare with: {missing} in {storage}; save one "
            "first with --benchmark-autosave, without --benchmark-compare-fail (in a first CI run, for example)"
        )
