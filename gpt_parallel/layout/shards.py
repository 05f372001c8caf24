"""Splits a model's layers into tensor-parallel shards of equal bytes, even if heads do not divide evenly."""

from gpt_parallel.schema.model import Architecture


def shard_ranges(architecture: Architecture, tp_size: int, index: int) -> tuple[range, range, range]:
    """Shard `index` of `tp_size`: its key and value heads (each with its query heads), MLP columns and vocabulary.

    Heads are dealt one by one. A key and value head with its query heads weighs as much as some number of MLP columns
    (2·d for GPT-2), so a rank with one more gets so many columns fewer: all ranks hold, and in decoding read, the same
    bytes.
    """
    groups = deal(architecture.num_kv_heads, tp_size)
    columns = _mlp_columns(architecture, groups)
    vocabulary = deal(architecture.vocab_size, tp_size)
    return _range(groups, index), _range(columns, index), _range(vocabulary, index)


def deal(total: int, parts: int) -> list[int]:
    """The sizes of `parts` nearly equal parts, larger ones first."""
    return [total // parts + (part < total % parts) for part in range(parts)]


def _mlp_columns(architecture: Architecture, groups: list[int]) -> list[int]:
    """Whole columns per rank that sum to `mlp_size`, each at least 1, as near to equal bytes as can be."""
    group_columns = architecture.kv_group_weights / architecture.mlp_column_weights
    per_rank = (architecture.num_kv_heads * group_columns + architecture.mlp_size) / len(groups)
    wanted = [max(1.0, per_rank - group_columns * count) for count in groups]
    scale = (architecture.mlp_size - len(groups)) / max(sum(wanted) - len(groups), 1e-9)
    exact = [1 + (value - 1) * scale for value in wanted]
    columns = [int(value) for value in exact]
    by_remainder = sorted(range(len(groups)), key=lambda rank: columns[rank] - exact[rank])
    for rank in by_remainder[: architecture.mlp_size - sum(columns)]:
        columns[rank] += 1
    return columns


def _range(sizes: list[int], index: int) -> range:
    start = sum(sizes[:index])
    return range(start, start + sizes[index])
