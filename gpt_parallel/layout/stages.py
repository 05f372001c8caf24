"""Splits a model's layers into pipeline stages of equal work, with the language-model head counted."""

from gpt_parallel.layout.shards import deal
from gpt_parallel.schema.architecture import Architecture
from gpt_parallel.schema.run import ExecutionSpec, WorkloadSpec

# Rows that a device multiplies in the time it takes to read the weight; a pass over fewer rows costs one read.
# Measured on one core with AVX-512 (and AMX for bfloat16); for GPUs 2 · FLOP/s ÷ bytes/s of an H100's data sheet.
_ROWS_PER_READING = {("cpu", "float32"): 20, ("cpu", "bfloat16"): 80, ("cpu", "float16"): 20}
_ROWS_PER_READING_CUDA = 300


def head_cost(architecture: Architecture) -> float:
    """The head's weights in units of one block's. 5.45 for gpt2, 2.62 for gpt2-xl."""
    return architecture.vocab_size * architecture.hidden_size / architecture.block_weights


def head_passes(workload: WorkloadSpec, execution: ExecutionSpec) -> float:
    """The number of reads of the head's weights per read of a block's, over a whole generation.

    Every token reads both, but blocks also process all rows of the prompts, and the head only the last ones.
    """
    rows_per_reading = _ROWS_PER_READING.get((execution.device, execution.dtype), _ROWS_PER_READING_CUDA)
    size, requests = workload.batch_size, workload.requests
    head = blocks = 0.0
    for batch in (requests[start : start + size] for start in range(0, len(requests), size)):
        steps = max(request.max_new_tokens for request in batch)
        prompt_rows = len(batch) * max(len(request.prompt_ids) for request in batch)
        reading = max(1.0, len(batch) / rows_per_reading)
        head += steps * reading
        blocks += (steps - 1) * reading + max(1.0, prompt_rows / rows_per_reading)
    return head / blocks


def stage_layers(architecture: Architecture, pp_size: int, head: float | None = None) -> list[range]:
    """The layers of each stage, chosen so that the heaviest stage is as light as possible.

    The embedding is a look-up and costs nothing. The last stage holds the head, which weighs `head` blocks (unset: as
    in decoding), and may have no block at all. Among equally good partitions the most even one is taken.
    """
    if pp_size == 1:
        return [range(architecture.num_layers)]
    head_weight = head_cost(architecture) if head is None else head
    candidates = [
        [*deal(architecture.num_layers - last, pp_size - 1), last]
        for last in range(architecture.num_layers + 1)
        if architecture.num_layers - last >= pp_size - 1
    ]

    def weights(counts: list[int]) -> list[float]:
        return [*map(float, counts[:-1]), counts[-1] + head_weight]

    best = min(candidates, key=lambda counts: (max(weights(counts)), sum(w * w for w in weights(counts))))
    starts = [sum(best[:stage]) for stage in range(pp_size)]
    return [range(start, start + count) for start, count in zip(starts, best, strict=True)]
