"""The least bytes and operations that generating takes, and estimates of a rank's memory.

Bytes and operations are those that any engine needs, so padding and idle rows lower MBU and MFU.
"""

from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from gpt_parallel.layout.part import Part
from gpt_parallel.schema.result import RankReport
from gpt_parallel.schema.run import RunSpec, WorkloadSpec

_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_PROCESS_BYTES = {"cpu": 200 << 20, "cuda": 1 << 30}  # torch in a rank of its own; a CUDA context and work space


def num_lanes(spec: RunSpec) -> int:
    """Batches that a replica has in flight: one per stage, while rows suffice."""
    rows = -(-len(spec.workload.requests) // spec.mesh.dp)
    return min(spec.mesh.pp, rows)


def rows_per_lane(spec: RunSpec) -> int:
    rows = -(-len(spec.workload.requests) // spec.mesh.dp)
    return min(spec.workload.batch_size, -(-rows // num_lanes(spec)))


def bytes_per_step(spec: RunSpec, rank: RankReport) -> float:
    """Bytes that a rank reads to advance one lane by one token: its weights, and the cached keys and values.

    Of the embedding and position tables a step reads a few rows, which are not counted; a tied head is.
    """
    architecture = spec.model.architecture
    item = _ITEM_BYTES[spec.execution.dtype]
    held = rank.holding
    assert held is not None
    weights = held.parameter_bytes
    if rank.place.stage == 0:
        weights -= item * architecture.embedding_weights
        if spec.mesh.pp == 1 and architecture.tied_head:  # the head is a part of one of the tables
            weights += item * architecture.hidden_size * architecture.vocab_size // spec.mesh.tp
    kv_heads = held.num_kv_heads
    if kv_heads is None:  # a result of an earlier version
        kv_heads = held.num_heads * architecture.num_kv_heads // architecture.num_heads
    windows = Counter(architecture.window_of(layer) for layer in range(*held.layers))
    row = sum(
        2 * item * mean_window(spec.workload, window) * kv_heads * architecture.head_size * layers
        for window, layers in windows.items()
    )
    return weights + rows_per_lane(spec) * row


def mean_window(workload: WorkloadSpec, limit: int | None = None) -> float:
    """The mean number of tokens that a decode step attends to, at most `limit`."""
    if limit is None:
        return fmean(len(request.prompt_ids) + request.max_new_tokens / 2 for request in workload.requests)
    return fmean(
        fmean(min(len(request.prompt_ids) + step, limit) for step in range(1, max(request.max_new_tokens, 2)))
        for request in workload.requests
    )


def flop_per_round(spec: RunSpec) -> float:
    """Operations of one pass over all requests, two for each weight and token, and those of attention.

    A token goes through every block's weights and attends with 4·H·d operations in each layer (H query heads of size d)
    to each token up to itself, or to a window's last ones. The head's V·D weights see only the tokens before a sampled
    one. The last sampled token is not fed back.
    """
    architecture = spec.model.architecture
    block_weights = architecture.num_layers * architecture.block_weights
    attention_width = architecture.num_heads * architecture.head_size
    total = 0.0
    for request in spec.workload.requests:
        tokens = len(request.prompt_ids) + request.max_new_tokens - 1
        attended = sum(_attended(tokens, architecture.window_of(layer)) for layer in range(architecture.num_layers))
        total += 2 * block_weights * tokens + 4 * attention_width * attended
        total += 2 * architecture.vocab_size * architecture.hidden_size * request.max_new_tokens
    return total


def _attended(tokens: int, window: int | None) -> float:
    """Pairs of a token and one that it attends to, itself included."""
    first = tokens if window is None else min(tokens, window)
    return first * (first + 1) / 2 + (tokens - first) * first


def messages_per_step(spec: RunSpec, ranks: Sequence[RankReport]) -> dict[str, float]:
    """Collective calls of the busiest rank per decode step of one lane, from the counts of a pass with its prefill."""
    passes = [rank.generated.collectives for rank in ranks if rank.generated]
    busiest = max(passes, key=lambda counts: sum(count.calls for count in counts))
    per_replica = -(-len(spec.workload.requests) // (spec.workload.batch_size * spec.mesh.dp))
    forwards = per_replica * max(request.max_new_tokens for request in spec.workload.requests)
    return {count.op: count.calls / forwards for count in busiest}


def rank_bytes(spec: RunSpec) -> int:
    """An estimate of the largest rank's bytes: its shard of the weights, whole embedding or head, cache, process.

    A rank of one stage keeps the embedding beside its share of the layers; on a CPU the head is packed into a copy.
    """
    architecture, mesh, execution = spec.model.architecture, spec.mesh, spec.execution
    tables = architecture.embedding_weights
    head = architecture.vocab_size * architecture.hidden_size // mesh.tp
    copies = max(architecture.num_kv_heads, mesh.tp)  # of key and value heads, which more shards than heads share
    layers = Part.whole(architecture).num_weights(architecture) - tables
    layers += (copies - architecture.num_kv_heads) * architecture.kv_head_weights * architecture.num_layers
    window = max(request.total_tokens for request in spec.workload.requests)
    rows = min(spec.workload.batch_size * mesh.pp, len(spec.workload.requests))
    cache = 2 * rows * window * copies * architecture.head_size * architecture.num_layers // (mesh.pp * mesh.tp)
    count = layers // (mesh.pp * mesh.tp) + tables + (head if execution.device == "cpu" else 0) + cache
    return count * _ITEM_BYTES[execution.dtype] + _PROCESS_BYTES[execution.device]


def gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
