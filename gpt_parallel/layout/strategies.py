"""The table of parallel strategies: a name, and a rule that gives the mesh for n devices."""

from collections.abc import Callable
from itertools import takewhile
from typing import Literal, NamedTuple

from gpt_parallel.base.errors import SpecError
from gpt_parallel.base.suggestions import did_you_mean
from gpt_parallel.schema.run import MeshSpec

MeshRule = Callable[[int], MeshSpec | None]


Axis = Literal["tp", "pp", "dp"]
_AXIS_NAMES = {"tp": "tensor", "pp": "pipeline", "dp": "data"}


class Strategy(NamedTuple):
    """A strategy's rule, and its kind: only degrees of `axes` may exceed 1, and together those of `splits` must."""

    name: str
    rule: MeshRule
    description: str = ""
    axes: tuple[Axis, ...] = ("tp", "pp", "dp")
    splits: tuple[Axis, ...] = ()

    @property
    def kind(self) -> str:
        """The kind in words, such as "tensor and data parallel, with tensor_parallel_size at least 2"."""
        text = f"{' and '.join(_AXIS_NAMES[axis] for axis in self.axes)} parallel"
        if self.splits:
            text += f", with {' or '.join(map(size_name, self.splits))} at least 2"
        return text

    def is_of_kind(self, mesh: MeshSpec) -> bool:
        """Whether degrees make a mesh of this strategy's kind. One device is of every kind."""
        degrees: dict[Axis, int] = {"tp": mesh.tp, "pp": mesh.pp, "dp": mesh.dp}
        only_axes = all(degree == 1 for axis, degree in degrees.items() if axis not in self.axes)
        is_split = not self.splits or any(degrees[axis] > 1 for axis in self.splits)
        return only_axes and (is_split or mesh.size == 1)


def size_name(axis: Axis) -> str:
    """The name of the setting that has an axis' degree."""
    return f"{_AXIS_NAMES[axis]}_parallel_size"


def _halves(num_gpus: int) -> int | None:
    """Half of an even number of at least two devices, else None."""
    return num_gpus // 2 if num_gpus >= 2 and num_gpus % 2 == 0 else None


def _tensor_data(num_gpus: int) -> MeshSpec | None:
    half = _halves(num_gpus)
    return MeshSpec(tp=2, dp=half) if half else None


def _pipeline_data(num_gpus: int) -> MeshSpec | None:
    half = _halves(num_gpus)
    return MeshSpec(pp=2, dp=half) if half else None


def _full_model(num_gpus: int) -> MeshSpec | None:
    half = _halves(num_gpus)
    return MeshSpec(tp=2, pp=half) if half else None


STRATEGIES: dict[str, Strategy] = {
    row.name: row
    for row in (
        Strategy("pure_data_parallel", lambda n: MeshSpec(dp=n), "every device holds the whole model", axes=("dp",)),
        Strategy(
            "tensor_data_hybrid",
            _tensor_data,
            "pairs of devices share each layer; pairs are replicas",
            axes=("tp", "dp"),
            splits=("tp",),
        ),
        Strategy(
            "pipeline_data_hybrid",
            _pipeline_data,
            "pairs of devices share the layers; pairs are replicas",
            axes=("pp", "dp"),
            splits=("pp",),
        ),
        Strategy(
            "full_model_parallel",
            _full_model,
            "one model over all devices: layers split, stages in sequence",
            axes=("tp", "pp"),
            splits=("tp", "pp"),
        ),
    )
}


def register_strategy(name: str, rule: MeshRule, description: str = "") -> None:
    """Add a strategy of your own.

    `rule(num_gpus)` returns the `MeshSpec` to use, its size equal to `num_gpus`, or None where the strategy does
    not exist for that number of devices. Call this from a conftest.py (at import) to have `pytest benchmarks` run it.

    Raises ValueError if the name is taken or is not an identifier.
    """
    if not name.isidentifier():
        raise ValueError(f"strategy name {name!r} must be an identifier such as 'my_strategy'")
    if name in STRATEGIES:
        raise ValueError(f"strategy {name!r} is already registered")
    STRATEGIES[name] = Strategy(name, rule, description)


def check_known(strategy: str) -> None:
    if strategy not in STRATEGIES:
        hint = did_you_mean(strategy, STRATEGIES)
        raise SpecError(f"unknown strategy {strategy!r}; allowed: {', '.join(STRATEGIES)}{hint}")


def mesh_for(strategy: str, num_gpus: int) -> MeshSpec:
    """The mesh of a strategy on `num_gpus` devices. Raises SpecError with what is allowed."""
    check_known(strategy)
    mesh = STRATEGIES[strategy].rule(num_gpus) if num_gpus >= 1 else None
    if mesh is None:
        allowed = [n for n in range(1, 17) if STRATEGIES[strategy].rule(n)]
        raise SpecError(f"{strategy} does not exist on {num_gpus} device(s); allowed: {', '.join(map(str, allowed))} …")
    if mesh.size != num_gpus:
        raise SpecError(f"{strategy} makes a mesh {mesh} of {mesh.size} devices when asked for {num_gpus}")
    return mesh


def is_degenerate(strategy: str, mesh: MeshSpec) -> bool:
    """Whether another, earlier strategy makes the same mesh (full model parallel on two devices is just tp2)."""
    if strategy not in STRATEGIES:
        return False
    earlier = takewhile(lambda name: name != strategy, STRATEGIES)
    return any(STRATEGIES[name].rule(mesh.size) == mesh for name in earlier)


def missing(device_counts: tuple[int, ...], only: tuple[str, ...] = ()) -> dict[int, list[str]]:
    """The strategies, or those of `only`, that do not exist on each number of devices above 1."""
    names = [name for name in STRATEGIES if not only or name in only]
    absent = {n: [name for name in names if not STRATEGIES[name].rule(n)] for n in device_counts if n > 1}
    return {n: found for n, found in absent.items() if found}


def cases(device_counts: tuple[int, ...], only: tuple[str, ...] = ()) -> list[tuple[str, int]]:
    """(strategy, devices) for every strategy, or `only` these, that exists there; SpecError for an unknown one."""
    for name in only:
        check_known(name)
    rows = [(name, row) for name, row in STRATEGIES.items() if not only or name in only]
    return [(name, n) for n in device_counts for name, row in rows if row.rule(n)]
