"""Lists the cases of settings: strategy × number of devices × batch size, or meshes given by their degrees."""

from typing import NamedTuple

from gpt_parallel.inputs.execution import device_counts
from gpt_parallel.inputs.meshes import CUSTOM, chosen_mesh
from gpt_parallel.inputs.settings import Settings
from gpt_parallel.layout.strategies import STRATEGIES, cases, mesh_for, missing


class PlannedCase(NamedTuple):
    """One case; `batch_size` is None if all cases have that of the settings."""

    strategy: str
    num_gpus: int
    batch_size: int | None = None

    @property
    def id(self) -> str:
        batch = "" if self.batch_size is None else f"-b{self.batch_size}"
        return f"{self.strategy}-{self.num_gpus}gpu{batch}"


def cases_of(settings: Settings) -> list[PlannedCase]:
    """All cases in the order they run, batch size by batch size.

    Raises SpecError for an unknown strategy and for degrees that do not fit the number of devices.
    """
    if settings.has_degrees:
        counts, names = settings.device_counts or (None,), settings.strategies or (CUSTOM,)
        rows = [(name, chosen_mesh(settings, name, count).size) for count in counts for name in names]
    else:
        rows = cases(device_counts(settings), settings.strategies)
    return [PlannedCase(*row, batch_size) for batch_size in settings.all_batch_sizes or (None,) for row in rows]


def with_known_strategies(settings: Settings) -> Settings | None:
    """The settings without strategies that no conftest.py has registered yet; None if no strategy is left."""
    known = [name for name in settings.strategies if name in STRATEGIES]
    if settings.strategies and not known:
        return None
    return settings.model_copy(update={"strategy": ",".join(known) or None})


def notes_on_missing_cases(settings: Settings) -> list[str]:
    """A sentence for each number of devices on which some of the strategies do not exist."""
    if settings.has_degrees:
        return []
    absent = missing(device_counts(settings), settings.strategies)
    return [f"no case on {count} devices: {', '.join(names)} (not defined for it)" for count, names in absent.items()]


def check_strategies_have_cases(settings: Settings) -> None:
    """Raise SpecError for a strategy that is unknown, or that exists on none of the given numbers of devices."""
    if settings.has_degrees:
        cases_of(settings)
        return
    counts = device_counts(settings)
    for name in settings.strategies:
        if name not in STRATEGIES or not any(STRATEGIES[name].rule(count) for count in counts):
            mesh_for(name, counts[0])
