"""Refuses a launch that does not fit in the GPUs' free memory before any rank starts, and says what would fit.

The estimate counts the memory that a rank certainly holds at once. Uncertain parts count with their minimum, so that
no launch is refused that would fit. A launch that passes may still run out of memory, and then reports that itself.
"""

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pydantic import ValidationError

from gpt_parallel.base.errors import SpecError
from gpt_parallel.launch.devices import cuda_devices, open_nvml
from gpt_parallel.layout.batches import Batch, deal_lanes
from gpt_parallel.layout.cost import gib
from gpt_parallel.layout.mesh import Mesh
from gpt_parallel.layout.part import Part, part_of
from gpt_parallel.layout.strategies import STRATEGIES
from gpt_parallel.schema.architecture import Architecture
from gpt_parallel.schema.run import Job, JobKind, RunSpec

_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_CONTEXT_BYTES = 200 << 20
_CUBLAS_BYTES = 8 << 20
_NCCL_BYTES = 4 << 20
_ADVICE_SLACK = 1.1  # advice has to fit with a margin over the certain minimum
_MAX_NAMED = 4


class Gpu(NamedTuple):
    """A GPU and its memory, listed in the order in which ranks take GPUs."""

    title: str
    free_bytes: int
    total_bytes: int
    has_bfloat16: bool


class Need(NamedTuple):
    """The least memory that a rank holds at once, in bytes."""

    weights: int
    cache: int
    rest: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.rest

    def __str__(self) -> str:
        parts = (self.weights, self.cache, self.rest)
        weights, cache, rest = (gib(part).removesuffix(" GiB") for part in parts)
        return f"{gib(self.total)} (weights {weights}, cache {cache}, the rest {rest})"


def check_gpu_memory(job: Job) -> None:
    """Raise SpecError if a launch on this machine's GPUs does not fit in their memory that is free now.

    CPU ranks are not checked, nor GPUs whose memory NVML does not report, nor jobs that do not generate: those need no
    more than the run before them.
    """
    if job.kind != JobKind.GENERATE or job.spec.execution.device != "cuda":
        return
    gpus = _read_gpus()
    if gpus and (overfull := _overfull(job.spec, gpus)):
        raise SpecError(f"{_title(job.spec)} does not fit: {'; '.join(overfull)}. {_advice(job.spec, gpus)}")


def needs(spec: RunSpec) -> list[Need]:
    """The least memory that each rank of a run holds.

    Weights are exact, and so are the caches, allocated for each lane's widest and its longest batch. The rest is the
    prompt pass, at the widest point of a layer or of the head, and libraries:

    - a layer's MLP: three of N × D (its input, the stream, the norm) and two of N × F (before and after the
      activation), four with a gate (it, what it gates, the activated one, the product); or its attention: two of N × D,
      and query, key, value and result of the heads;
    - the head: N × D, and logits B × V in float32 with their magnitudes, which the recorded pass takes;
    - a CUDA context with the kernels in use: 200 MiB, the least of the 200 to 700 MiB that users of torch report
      (pytorch/pytorch issues 28113, 107667 and 109888);
    - cuBLAS's work space in torch: 8 MiB, and 32 on Hopper (CUBLAS_WORKSPACE_CONFIG in torch's notes on CUDA);
    - NCCL: one buffer of 4 MiB (the default of NCCL_BUFFSIZE in its manual) for each communicator; it allocates more.
    """
    architecture, item = spec.model.architecture, _ITEM_BYTES[spec.execution.dtype]
    found = []
    for rank in range(spec.mesh.size):
        place = Mesh(spec.mesh, rank)
        part, lanes = part_of(spec, place), deal_lanes(spec.workload, place)
        row = 2 * len(part.layers) * len(part.kv_heads) * architecture.head_size
        cache = row * sum(_widest(lane) * min(_longest(lane), architecture.max_positions) for lane in lanes)
        rest = max((_work_bytes(batch, architecture, part, item) for lane in lanes for batch in lane), default=0)
        weights = part.num_weights(architecture)
        found.append(Need(item * weights, item * cache, rest + _library_bytes(spec)))
    return found


def _widest(lane: Sequence[Batch]) -> int:
    return max(len(batch.requests) for batch in lane)


def _longest(lane: Sequence[Batch]) -> int:
    return max(batch.prompt_length + batch.num_steps for batch in lane)


def _work_bytes(batch: Batch, architecture: Architecture, part: Part, item: int) -> int:
    num_rows, width = len(batch.requests), architecture.hidden_size
    tokens = num_rows * batch.prompt_length
    heads = (len(part.heads) + len(part.kv_heads)) * architecture.head_size
    inner = (4 if architecture.gated_mlp else 2) * len(part.mlp_columns)
    layer = item * tokens * max(3 * width + inner, 2 * width + 2 * heads)
    head = item * tokens * width + 8 * num_rows * len(part.vocabulary) if part.has_head else 0
    return max(layer, head)


def _library_bytes(spec: RunSpec) -> int:
    communicators = 0
    if spec.execution.backend == "nccl" and spec.mesh.size > 1:
        communicators = 1 + (spec.mesh.tp > 1) + 2 * (spec.mesh.pp > 1)
    return _CONTEXT_BYTES + _CUBLAS_BYTES + communicators * _NCCL_BYTES


def _read_gpus() -> list[Gpu]:
    """The GPUs that ranks take in turn; none if NVML does not report their memory or their order is unknown."""
    with open_nvml() as (nvml, _):
        if nvml is None:
            return []
        try:
            handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
            if len({nvml.nvmlDeviceGetName(handle) for handle in handles}) > 1 and not _is_in_bus_order():
                return []
            found = []
            for index, gpu in enumerate(cuda_devices()):
                memory = nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByUUID(gpu.uuid))
                title, can = f"GPU {index} ({gpu.name})", gpu.compute_capability >= (8, 0)
                found.append(Gpu(title, int(memory.free), int(memory.total), can))
            return found
        except nvml.NVMLError:
            return []


def _is_in_bus_order() -> bool:
    """Whether CUDA numbers GPUs as NVML does; by default CUDA puts the fastest first."""
    return os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"


def _overfull(spec: RunSpec, gpus: Sequence[Gpu], slack: float = 1.0) -> list[str]:
    """For each GPU that cannot hold its ranks, the memory that they need and that is free."""
    found, needed = [], needs(spec)
    for index, gpu in enumerate(gpus):
        ranks = range(index, len(needed), len(gpus))  # a rank's GPU is its number modulo the number of GPUs
        total = sum(needed[rank].total for rank in ranks)
        if total * slack > gpu.free_bytes:
            texts = [f"rank {rank} needs at least {needed[rank]}" for rank in ranks[:_MAX_NAMED]]
            more = f" and {len(ranks) - _MAX_NAMED} more ranks" if len(ranks) > _MAX_NAMED else ""
            together = f", together {gib(total)}" if len(ranks) > 1 else ""
            free = f"{gpu.title} has {gib(gpu.free_bytes).removesuffix(' GiB')} of {gib(gpu.total_bytes)} free"
            found.append(f"{free}, {', '.join(texts)}{more}{together}")
    if len(found) > _MAX_NAMED:
        found[_MAX_NAMED:] = [f"and {len(found) - _MAX_NAMED} more GPUs"]
    return found


def _title(spec: RunSpec) -> str:
    return "the single-device reference" if _is_reference(spec) else spec.name


def _is_reference(spec: RunSpec) -> bool:
    return spec.strategy == "reference"


def _advice(spec: RunSpec, gpus: Sequence[Gpu]) -> str:
    """Changes that would make the run fit: one at a time, or several together if none is enough."""

    def fits(changed: RunSpec) -> bool:
        return not _overfull(changed, gpus, _ADVICE_SLACK)

    unverified = "the no-verify option with " if _is_reference(spec) else ""
    types = list(_other_types(spec, gpus))
    layouts: dict[str, str] = {}
    for name, text, other in _layouts(spec, len(gpus)):
        if name not in layouts and fits(other):
            layouts[name] = text
    found = [text for text, other in types if fits(other)]
    found += [unverified + " or ".join(layouts.values())] if layouts else []
    found += [text for text, other in _smaller_batches(spec) if fits(other)][:1]
    if found:
        return f"What would fit: {'; '.join(found)}"
    text, least = next(iter(types), ("", spec))
    *_, (batch, least) = [("", least), *_smaller_batches(least)]
    every = ("", "", least), *_layouts(least, len(gpus))
    for _, layout, other in every:
        if fits(other):
            changes = [unverified + layout if layout else "", text, batch]
            return f"What would fit: {', '.join(filter(None, changes))}, all together"
    return (
        "No number type, layout or batch size fits here; use a smaller model, shorter prompts or larger GPUs, or end "
        "other programs on them"
    )


def _other_types(spec: RunSpec, gpus: Sequence[Gpu]) -> Iterator[tuple[str, RunSpec]]:
    if _ITEM_BYTES[spec.execution.dtype] > 2:
        dtype = "bfloat16" if all(gpu.has_bfloat16 for gpu in gpus) else "float16"
        yield f"dtype {dtype!r}", spec.with_execution(dtype=dtype)


def _layouts(spec: RunSpec, num_gpus: int) -> Iterator[tuple[str, str, RunSpec]]:
    """Strategies' meshes on this machine's GPUs, by name, except the spec's own and those that the model forbids."""
    seen = {spec.mesh}
    for count in range(1, num_gpus + 1):
        for name, strategy in STRATEGIES.items():
            mesh = strategy.rule(count)
            if mesh is None or mesh in seen:
                continue
            seen.add(mesh)
            try:
                yield name, f"{name} on {count} device(s)", RunSpec(**{**dict(spec), "mesh": mesh})
            except ValidationError:
                continue


def _smaller_batches(spec: RunSpec) -> Iterator[tuple[str, RunSpec]]:
    size = spec.workload.batch_size // 2
    while size:
        workload = spec.workload.model_copy(update={"batch_size": size})
        yield f"batch size {size}", spec.model_copy(update={"workload": workload})
        size //= 2
