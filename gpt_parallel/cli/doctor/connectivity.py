"""The self-test: two ranks, started as in any run, communicate. It tests what facts about the machine cannot show."""

from gpt_parallel.base.errors import SpecError
from gpt_parallel.bench.suite import Suite
from gpt_parallel.cli.doctor.facts import SelfTest
from gpt_parallel.inputs.execution import resolve_device
from gpt_parallel.inputs.meshes import CUSTOM
from gpt_parallel.inputs.settings import Settings, make_settings
from gpt_parallel.launch.devices import cuda_devices
from gpt_parallel.launch.failure import LaunchError
from gpt_parallel.launch.local import launch
from gpt_parallel.schema.result import CollectiveProbe
from gpt_parallel.schema.run import Job, JobKind

TIMEOUT_S = 60.0


def run_self_test(settings: Settings) -> SelfTest:
    """Time sums and gathers between two shards, then messages between two stages, over the settings' backend."""
    device = backend = ""
    probes: list[CollectiveProbe] = []
    try:
        device = resolve_device(settings)
        for axis in ("tensor_parallel_size", "pipeline_parallel_size"):
            given = {
                "device": settings.device,
                "backend": settings.backend,
                "cores_per_rank": settings.cores_per_rank,
                "oversubscribe": device == "cuda" and len(cuda_devices()) < 2,
                "timeout_s": TIMEOUT_S,
                axis: 2,
            }
            spec = Suite(make_settings("smoke", given)).spec(CUSTOM, 2)
            backend = spec.execution.backend
            reports = launch(Job(kind=JobKind.SELF_TEST, spec=spec))
            for of_ranks in zip(*(report.probed or () for report in reports), strict=True):
                probes.append(max(of_ranks, key=lambda probe: probe.seconds))
    except (SpecError, LaunchError) as error:
        return SelfTest(device=device, backend=backend, problem=str(error))
    return SelfTest(device=device, backend=backend, probes=tuple(probes))
