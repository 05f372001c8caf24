"""Facts about a machine as plain data: everything that the judgement needs, so that tests can invent any machine."""

from gpt_parallel.schema.frozen import Frozen
from gpt_parallel.schema.result import CollectiveProbe


class GpuProcess(Frozen):
    """A program that uses a GPU."""

    pid: int
    name: str
    memory_bytes: int | None = None


class GpuFacts(Frozen):
    """One GPU as the driver reports it; values that it does not report are None."""

    index: int
    uuid: str
    name: str
    is_visible: bool
    compute_capability: tuple[int, int]
    memory_bytes: int
    free_bytes: int
    sm_clock_mhz: int | None = None
    max_sm_clock_mhz: int | None = None
    pcie: str | None = None
    num_nvlinks: int | None = None
    processes: tuple[GpuProcess, ...] = ()


class DriverFacts(Frozen):
    """The driver's versions by NVML; `error` if NVML does not answer, `is_absent` if there is no driver at all."""

    version: str | None = None
    cuda: tuple[int, int] | None = None
    error: str | None = None
    is_absent: bool = False


class TorchFacts(Frozen):
    """The installed torch. `build` is the kind of build; `cuda` is the CUDA release of a CUDA build."""

    version: str
    build: str
    cuda: tuple[int, int] | None = None
    nccl: str | None = None


class DirectoryFacts(Frozen):
    """A directory that exists or would be created; `problem` says why it cannot be written."""

    path: str
    free_bytes: int | None = None
    problem: str | None = None


class ModelFacts(Frozen):
    """Whether a model's files are on this disk; `problem` says why existing files cannot be used."""

    name: str
    directory: str | None = None
    has_weights: bool = True
    problem: str | None = None


class SelfTest(Frozen):
    """Communication between two ranks of this machine: each collective's time on its slowest rank, or the problem."""

    device: str = ""
    backend: str = ""
    probes: tuple[CollectiveProbe, ...] = ()
    problem: str | None = None


class Facts(Frozen):
    """The machine and the installation. None means unknown."""

    gpt_parallel: str
    python: str
    platform: str
    torch: TorchFacts | None
    driver: DriverFacts
    gpus: tuple[GpuFacts, ...]
    cuda_visible_devices: str | None
    cpu: str
    num_cores: int
    num_machine_cores: int
    memory_bytes: int
    available_bytes: int
    thread_variables: dict[str, str]
    shm_bytes: int | None
    temporary: DirectoryFacts
    output: DirectoryFacts
    cache: DirectoryFacts
    models: tuple[ModelFacts, ...]

    @property
    def visible_gpus(self) -> tuple[GpuFacts, ...]:
        return tuple(gpu for gpu in self.gpus if gpu.is_visible)
