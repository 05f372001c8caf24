"""The part of a model that one rank holds."""

from dataclasses import dataclass

from gpt_parallel.layout.mesh import Mesh
from gpt_parallel.layout.shards import shard_ranges
from gpt_parallel.layout.stages import head_cost, head_passes, stage_layers
from gpt_parallel.schema.architecture import Architecture
from gpt_parallel.schema.families.registry import family_of
from gpt_parallel.schema.run import RunSpec


@dataclass(frozen=True)
class Part:
    """Half-open ranges of a model's layers, and of the heads, MLP columns and vocabulary in each of them."""

    layers: range
    heads: range
    kv_heads: range
    mlp_columns: range
    vocabulary: range
    has_embedding: bool = True
    has_head: bool = True

    @classmethod
    def whole(cls, architecture: Architecture) -> "Part":
        return part_at(architecture, 0, 1, range(architecture.num_layers))

    def num_weights(self, architecture: Architecture) -> int:
        """Its number of weights: of matrices a shard, norms and biases behind a reduction whole, tables as needed."""
        family, width = family_of(architecture), architecture.hidden_size
        block = len(self.heads) * architecture.query_head_weights + len(self.kv_heads) * architecture.kv_head_weights
        block += len(self.mlp_columns) * architecture.mlp_column_weights
        block += family.block_vectors(architecture, len(self.heads), len(self.kv_heads), len(self.mlp_columns))
        count = len(self.layers) * block
        if self.has_embedding:
            count += architecture.embedding_weights
        if self.has_head:
            count += family.final_vectors(architecture)
            if not (self.has_embedding and architecture.tied_head):
                count += len(self.vocabulary) * width
        return count


def part_at(architecture: Architecture, shard: int, tp_size: int, layers: range, **tables: bool) -> Part:
    """The part of shard `shard` of `tp_size` with these layers; `tables` are `has_embedding` and `has_head`."""
    heads, kv_heads, columns, vocabulary = shard_ranges(architecture, tp_size, shard)
    return Part(layers, heads, kv_heads, columns, vocabulary, **tables)


def kv_copies(architecture: Architecture, tp_size: int, part: Part) -> int:
    """The number of shards that hold a copy of each of a part's key and value heads, the part's own included."""
    return sum(part.kv_heads.start in shard_ranges(architecture, tp_size, shard)[1] for shard in range(tp_size))


def part_of(spec: RunSpec, mesh: Mesh) -> Part:
    """What a rank of a run holds."""
    architecture = spec.model.architecture
    head = head_cost(architecture) * head_passes(spec.workload, spec.execution)
    return part_at(
        architecture,
        mesh.shard,
        mesh.sizes.tp,
        stage_layers(architecture, mesh.sizes.pp, head)[mesh.stage],
        has_embedding=mesh.is_first_stage,
        has_head=mesh.is_last_stage,
    )
