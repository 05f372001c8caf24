"""Tensor shards and pipeline stages."""

import random

import pytest

from gpt_parallel.inputs.models import ARCHITECTURES
from gpt_parallel.layout.mesh import Mesh
from gpt_parallel.layout.part import part_at
from gpt_parallel.layout.stages import head_cost, stage_layers
from gpt_parallel.schema.architecture import Architecture
from gpt_parallel.schema.run import MeshSpec


def shards(shape, tp_size):
    return [part_at(shape, index, tp_size, range(shape.num_layers)) for index in range(tp_size)]


def sizes(shape, tp_size):
    return [(len(shard.heads), len(shard.mlp_columns)) for shard in shards(shape, tp_size)]


def test_gpt2_xl_is_cut_evenly_by_bytes():
    xl = ARCHITECTURES["gpt2-xl"]

    assert sizes(xl, 2) == [(13, 3136), (12, 3264)]
    assert sizes(xl, 4) == [(7, 1504), (6, 1632), (6, 1632), (6, 1632)]
    assert sizes(xl, 8) == [(4, 688)] + [(3, 816)] * 7


@pytest.mark.parametrize("seed", range(40))
def test_shards_cover_everything_once_and_weigh_the_same(seed):
    choose = random.Random(seed)
    heads, size = choose.randint(1, 40), choose.choice([8, 16, 33, 64])
    inner = choose.choice([4 * heads * size, choose.randint(200, 9000)])
    shape = Architecture(
        n_layer=1, n_head=heads, n_embd=heads * size, n_inner=inner, vocab_size=choose.randint(100, 999), n_positions=8
    )
    tp_size = choose.randint(1, heads)

    parts = shards(shape, tp_size)

    for name, total in (("heads", heads), ("mlp_columns", inner), ("vocabulary", shape.vocab_size)):
        assert [i for part in parts for i in getattr(part, name)] == list(range(total))
    assert min(len(part.mlp_columns) for part in parts) >= 1
    weights = [shape.hidden_size * (4 * size * len(part.heads) + 2 * len(part.mlp_columns)) for part in parts]
    if min(len(part.mlp_columns) for part in parts) > 1:
        assert max(weights) - min(weights) <= 2 * shape.hidden_size, "within one column"
    assert max(len(part.vocabulary) for part in parts) - min(len(part.vocabulary) for part in parts) <= 1


def test_the_head_costs_what_the_design_says():
    assert head_cost(ARCHITECTURES["gpt2"]) == pytest.approx(5.45, abs=0.005)
    assert head_cost(ARCHITECTURES["gpt2-xl"]) == pytest.approx(2.62, abs=0.005)


def test_stages_balance_the_head():
    def counts(name, pp_size):
        return [len(stage) for stage in stage_layers(ARCHITECTURES[name], pp_size)]

    assert counts("gpt2", 1) == [12]
    assert counts("gpt2", 2) == [9, 3]
    assert counts("gpt2", 4) == [4, 4, 4, 0], "a last stage may hold the head alone"
    assert counts("gpt2-xl", 2) == [25, 23]
    assert counts("gpt2-nano", 4) == [2, 1, 1, 0]


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
@pytest.mark.parametrize("pp_size", [1, 2, 3, 4])
def test_no_other_partition_is_lighter(name, pp_size):
    """Against all partitions of the layers, by brute force."""
    shape = ARCHITECTURES[name]
    stages = stage_layers(shape, pp_size)

    def heaviest(counts):
        return max([*counts[:-1], counts[-1] + head_cost(shape)])

    def partitions(total, parts):
        if parts == 1:
            yield [total]
        else:
            for first in range(total + 1):
                yield from ([first, *rest] for rest in partitions(total - first, parts - 1))

    assert [layer for stage in stages for layer in stage] == list(range(shape.num_layers))
    best = min(heaviest(counts) for counts in partitions(shape.num_layers, pp_size))
    assert heaviest([len(stage) for stage in stages]) == pytest.approx(best)


def test_ranks_stand_where_the_mesh_says():
    sizes = MeshSpec(pp=2, dp=3, tp=2)
    places = [Mesh(sizes, rank) for rank in range(sizes.size)]

    assert [(m.stage, m.replica, m.shard) for m in places[:4]] == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1)]
    assert all(m.rank_at(stage=m.stage, replica=m.replica, shard=m.shard) == m.rank for m in places)
    assert places[3].peer(1) == 9
    groups = places[0].tensor_groups()
    assert sorted(rank for group in groups for rank in group) == list(range(12))
    assert all(len({(places[r].stage, places[r].replica) for r in group}) == 1 for group in groups)
