"""Splits a model's layers into tensor-parallel shards of equal bytes, even if heads do not divide evenly."""

from gpt_parallel.schema.architecture import Architecture


def shard_ranges(architecture: Architecture, tp_size: int, index: int) -> tuple[range, range, range, range]:
    """Shard `index` of `tp_size`: its query heads, key and value heads, MLP columns and vocabulary.

    What is dealt is a key and value head with its query heads. If there are more shards than such groups, a group is
    shared by several shards: each has a copy of its key and value head, and some of its query heads. Heads weigh as
    much as some number of MLP columns (one of GPT-2's as 2·d), so a rank with more gets so many columns fewer: all
    ranks hold, and in decoding read, the same bytes.
    """
    heads = _deal_heads(architecture, tp_size)
    columns = _mlp_columns(architecture, heads)
    vocabulary = deal(architecture.vocab_size, tp_size)
    return *heads[index], _range(columns, index), _range(vocabulary, index)


def _deal_heads(architecture: Architecture, tp_size: int) -> list[tuple[range, range]]:
    """The query heads and the key and value heads of each shard."""
    groups, size = architecture.num_kv_heads, architecture.num_heads // architecture.num_kv_heads
    if tp_size <= groups:
        own = _ranges(deal(groups, tp_size))
        return [(range(group.start * size, group.stop * size), group) for group in own]
    return [
        (range(group * size + heads.start, group * size + heads.stop), range(group, group + 1))
        for group, num_shards in enumerate(deal(tp_size, groups))
        for heads in _ranges(deal(size, num_shards))
    ]


def deal(total: int, parts: int) -> list[int]:
    """The sizes of `parts` nearly equal parts, larger ones first."""
    return [total // parts + (part < total % parts) for part in range(parts)]


def _mlp_columns(architecture: Architecture, heads: list[tuple[range, range]]) -> list[int]:
    """Whole columns per rank that sum to `mlp_size`, each at least 1, as near to equal bytes as can be."""
    query_columns = architecture.query_head_weights / architecture.mlp_column_weights
    kv_columns = architecture.kv_head_weights / architecture.mlp_column_weights
    attention = [query_columns * len(queries) + kv_columns * len(keys) for queries, keys in heads]
    per_rank = (sum(attention) + architecture.mlp_size) / len(heads)
    wanted = [max(1.0, per_rank - columns) for columns in attention]
    scale = (architecture.mlp_size - len(heads)) / max(sum(wanted) - len(heads), 1e-9)
    exact = [1 + (value - 1) * scale for value in wanted]
    columns = [int(value) for value in exact]
    by_remainder = sorted(range(len(heads)), key=lambda rank: columns[rank] - exact[rank])
    for rank in by_remainder[: architecture.mlp_size - sum(columns)]:
        columns[rank] += 1
    return columns


def _range(sizes: list[int], index: int) -> range:
    start = sum(sizes[:index])
    return range(start, start + sizes[index])


def _ranges(sizes: list[int]) -> list[range]:
    return [_range(sizes, index) for index in range(len(sizes))]
