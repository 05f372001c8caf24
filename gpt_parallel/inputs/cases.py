"""Lists the cases of settings: strategy × number of devices × batch size, or meshes given by their degrees."""

from typing import NamedTuple

from gpt_parallel.inputs.execution import CUSTOM, custom_mesh, device_counts
from gpt_parallel.inputs.settings import Settings
from gpt_parallel.layout.strategies import cases


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
    if settings.has_custom_mesh:
        counts = settings.device_counts or (None,)
        rows = [(CUSTOM, custom_mesh(settings, count).size) for count in counts]
    else:
        rows = cases(device_counts(settings), settings.strategies)
    return [PlannedCase(*row, batch_size) for batch_size in settings.all_batch_sizes or (None,) for row in rows]
