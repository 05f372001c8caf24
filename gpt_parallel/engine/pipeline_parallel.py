"""Cutting a model's layers into pipeline stages of equal work, the language-model head counted."""

from gpt_parallel.spec import Architecture


def head_cost(shape: Architecture) -> float:
    """The head's weights in units of one block's: V·D / (4·D² + 2·D·n_inner). 5.45 for gpt2, 2.62 for gpt2-xl."""
    return shape.vocab_size / (4 * shape.n_embd + 2 * shape.n_inner)


def stage_layers(shape: Architecture, pp_size: int) -> list[range]:
    """The layers of each stage, chosen so that the heaviest stage is as light as possible.

    The embedding is a look-up and costs nothing. The last stage holds the head and may have no block at all.
    Among equally good partitions the most even one is taken.
    """
    if pp_size == 1:
        return [range(shape.n_layer)]
    head = head_cost(shape)
    candidates = [
        [*_even(shape.n_layer - last, pp_size - 1), last]
        for last in range(shape.n_layer + 1)
        if shape.n_layer - last >= pp_size - 1
    ]

    def weights(counts: list[int]) -> list[float]:
        return [*map(float, counts[:-1]), counts[-1] + head]

    best = min(candidates, key=lambda counts: (max(weights(counts)), sum(w * w for w in weights(counts))))
    starts = [sum(best[:stage]) for stage in range(pp_size)]
    return [range(start, start + count) for start, count in zip(starts, best, strict=True)]


def _even(total: int, parts: int) -> list[int]:
    return [total // parts + (part < total % parts) for part in range(parts)]
