"""Chooses the mesh of a case: by its strategy's rule, or by the degrees that the settings give."""

from gpt_parallel.base.errors import SpecError
from gpt_parallel.inputs.settings import Settings
from gpt_parallel.layout.strategies import STRATEGIES, Axis, check_known, mesh_for, size_name
from gpt_parallel.schema.run import MeshSpec

CUSTOM = "custom"
"""The strategy of a case whose mesh is given by degrees alone."""


def chosen_mesh(settings: Settings, strategy: str, num_gpus: int | None) -> MeshSpec:
    """The mesh of a case on `num_gpus` devices, or of the given degrees alone if that is None.

    One device has one mesh, whatever the strategy. Raises SpecError for an unknown strategy, for one that does not
    exist on `num_gpus` devices, and for degrees that do not multiply to `num_gpus` or do not make a mesh of its kind.
    """
    if strategy != CUSTOM:
        check_known(strategy)
    if settings.has_degrees:
        return _mesh_of_degrees(settings, strategy, num_gpus)
    return MeshSpec() if num_gpus == 1 else mesh_for(strategy, num_gpus or 0)


def _mesh_of_degrees(settings: Settings, strategy: str, num_gpus: int | None) -> MeshSpec:
    """A missing degree is 1, but the first one of the strategy's dp, pp and tp takes the devices that are left over."""
    given: dict[Axis, int | None] = {
        "dp": settings.data_parallel_size,
        "pp": settings.pipeline_parallel_size,
        "tp": settings.tensor_parallel_size,
    }
    degrees = {axis: degree or 1 for axis, degree in given.items()}
    known = MeshSpec(**degrees).size
    axes = ("dp",) if strategy == CUSTOM else STRATEGIES[strategy].axes
    left_over = next((axis for axis, degree in given.items() if degree is None and axis in axes), None)
    if left_over and num_gpus and num_gpus % known == 0:
        degrees[left_over] = num_gpus // known
    mesh = MeshSpec(**degrees)
    if strategy != CUSTOM and not STRATEGIES[strategy].is_of_kind(mesh):
        raise SpecError(f"{strategy} is {STRATEGIES[strategy].kind}; {_in_words(mesh)} is not of that kind")
    if num_gpus is not None and mesh.size != num_gpus:
        raise SpecError(
            f"{_in_words(mesh)} = {mesh.size} devices, but num_gpus is {num_gpus}; the product must be {num_gpus}"
        )
    return mesh


def _in_words(mesh: MeshSpec) -> str:
    return f"{size_name('tp')} {mesh.tp} × {size_name('pp')} {mesh.pp} × {size_name('dp')} {mesh.dp}"
