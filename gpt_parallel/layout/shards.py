"""Cutting a model's layers into tensor-parallel shards of equal bytes, also where heads do not divide evenly."""

from dataclasses import dataclass

from gpt_parallel.schema.model import Architecture


@dataclass(frozen=True)
class Shard:
    """One rank's part of every block and of the vocabulary, as half-open ranges."""

    heads: range
    mlp_columns: range
    vocabulary: range


def shard_of(shape: Architecture, tp_size: int, index: int) -> Shard:
    """Shard `index` of `tp_size`.

    Heads are dealt one by one. A head weighs 4·D·d (its columns of Q, K, V and rows of the output projection), an MLP
    column 2·D, so a rank with a head more gets 2·d columns fewer: all ranks hold, and in decoding read, the same bytes.
    """
    heads = [shape.n_head // tp_size + (rank < shape.n_head % tp_size) for rank in range(tp_size)]
    columns = _mlp_columns(shape, heads)
    vocabulary = [shape.vocab_size // tp_size + (rank < shape.vocab_size % tp_size) for rank in range(tp_size)]
    return Shard(_range(heads, index), _range(columns, index), _range(vocabulary, index))


def _mlp_columns(shape: Architecture, heads: list[int]) -> list[int]:
    """Whole columns per rank that sum to n_inner, each at least 1, as near to equal bytes as can be."""
    per_rank = (2 * shape.n_embd + shape.n_inner) / len(heads)
    wanted = [max(1.0, per_rank - 2 * shape.head_size * count) for count in heads]
    scale = (shape.n_inner - len(heads)) / max(sum(wanted) - len(heads), 1e-9)
    exact = [1 + (value - 1) * scale for value in wanted]
    columns = [int(value) for value in exact]
    by_remainder = sorted(range(len(heads)), key=lambda rank: columns[rank] - exact[rank])
    for rank in by_remainder[: shape.n_inner - sum(columns)]:
        columns[rank] += 1
    return columns


def _range(sizes: list[int], index: int) -> range:
    start = sum(sizes[:index])
    return range(start, start + sizes[index])
