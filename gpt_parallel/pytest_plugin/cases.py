"""Turns the cases of a pytest session into pytest parameters."""

from typing import Any

import pytest

from gpt_parallel.inputs.cases import cases_of, with_known_strategies
from gpt_parallel.inputs.execution import reason_to_skip
from gpt_parallel.inputs.settings import Settings


def make_parameters(settings: Settings) -> tuple[tuple[str, ...], list[Any]]:
    """The names `strategy` and `num_gpus`, also `gpt_batch_size` with several batch sizes, and a row for each case.

    Unknown strategies are left out: a conftest.py may still register them, and the plugin checks before cases run.
    """
    names = ("strategy", "num_gpus", "gpt_batch_size")[: 3 if settings.all_batch_sizes else 2]
    known = with_known_strategies(settings)
    rows = []
    for case in cases_of(known) if known else []:
        marks = [pytest.mark.gpus(n=case.num_gpus)]
        if reason := reason_to_skip(settings, case.num_gpus):
            marks.append(pytest.mark.skip(reason=reason))
        rows.append(pytest.param(*case[: len(names)], id=case.id, marks=marks))
    return names, rows
