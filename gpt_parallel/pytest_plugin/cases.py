"""Which cases a pytest session has: strategy × number of devices, or the one of a mesh given by its sizes."""

from typing import Any

import pytest

from gpt_parallel.inputs.execution import CUSTOM, custom_mesh, device_counts, reason_to_skip
from gpt_parallel.inputs.settings import Settings
from gpt_parallel.layout.strategies import STRATEGIES, cases


def make_parameters(settings: Settings) -> list[Any]:
    """pytest's parameters `strategy` and `num_gpus`, with their ids and marks.

    Strategies that do not exist are left out: they may be registered later, and who runs cases checks that.
    """
    asked = tuple(name for name in settings.strategies if name in STRATEGIES)
    rows = custom_cases(settings) if settings.has_custom_mesh else cases(device_counts(settings), asked)
    parameters = []
    for strategy, num_gpus in rows:
        marks = [pytest.mark.gpus(n=num_gpus)]
        if reason := reason_to_skip(settings, num_gpus):
            marks.append(pytest.mark.skip(reason=reason))
        parameters.append(pytest.param(strategy, num_gpus, id=f"{strategy}-{num_gpus}gpu", marks=marks))
    return parameters


def custom_cases(settings: Settings) -> list[tuple[str, int]]:
    """The one case of a mesh given by its sizes. Raises SpecError where these do not fit the number of devices."""
    counts = device_counts(settings) if settings.num_gpus else [None]
    return [(CUSTOM, custom_mesh(settings, count).size) for count in counts]
